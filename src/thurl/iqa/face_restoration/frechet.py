"""Distances between sets of features: Frechet distance (FID, arXiv 1706.08500) and kernel distance (KID, 1801.01401).

FID = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). The official code takes a matrix square root of the product,
which is unstable where a covariance is singular, as with fewer pictures than features, and whose interface changed in
scipy 1.16. Here C = B B' from an eigendecomposition, and tr (C1 C2)^(1/2) is the sum of the singular values of B1' B2:
the same number, without squaring small values and without an imaginary part.

FID is biased upwards, the more so the fewer pictures there are; it compares sets of the *same* size only. The
bootstrap below describes the spread at that size, not the bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thurl.errors import DataError


__all__ = ["Interval", "feature_moments", "frechet_bootstrap", "frechet_distance", "kernel_distance"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Spread of a statistic over bootstrap resamples.

    Attributes:
        low, high: interval around the statistic: its value plus the quantiles of the resamples' deviation from their
            own mean.
        std: standard deviation of the resamples.
        shift: mean of the resamples minus the statistic; positive for FID, since a resample has fewer distinct
            pictures.
        resamples: their number.
    """

    low: float
    high: float
    std: float
    shift: float
    resamples: int


def feature_moments(features: NDArray[np.floating]) -> tuple[Array, Array]:
    """Mean (D,) and covariance (D, D), divided by N - 1, in float64.

    Args:
        features: (N, D) with N of 2 or more.

    Raises:
        DataError: fewer than two rows, or values that are not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] < 2:
        raise DataError(f"features of shape {x.shape}: a covariance needs (N, D) with two rows or more")
    if not np.isfinite(x).all():
        raise DataError("features hold values that are not finite")
    return x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))


def frechet_distance(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """Frechet distance of two Gaussians, 0 or more up to rounding.

    Args:
        mean1, mean2: (D,) float64.
        cov1, cov2: (D, D) float64, symmetric and positive semi-definite.

    Raises:
        DataError: shapes that do not fit together, values that are not finite, a covariance with clearly negative
            eigenvalues.
    """
    _check_moments(mean1, cov1, "first")
    _check_moments(mean2, cov2, "second")
    if mean1.shape != mean2.shape:
        raise DataError(f"features of length {mean1.shape[0]} and {mean2.shape[0]}: take both from one network")
    overlap = np.linalg.svd(_factor(cov1).T @ _factor(cov2), compute_uv=False).sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * overlap)


def frechet_bootstrap(
    features: NDArray[np.floating],
    mean: Array,
    cov: Array,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Frechet distance of features from moments, and its spread when the pictures are drawn again with replacement.

    Each resample costs the eigenvalues of an (N, N) matrix, not of a (D, D) one: the overlap term is the sum of the
    singular values of the centred rows times C2^(1/2), and their Gram matrix is a selection from one that is computed
    once.

    Args:
        features: (N, D), N of 2 or more.
        mean, cov: moments (D,), (D, D) of the reference.
        resamples: number of resamples, 2 or more.
        level: probability of the interval, in (0, 1).
        seed: of the draws.

    Returns:
        the distance, equal to `frechet_distance` of the features' moments, and its interval.
    """
    if resamples < 2 or not 0 < level < 1:
        raise DataError(f"resamples={resamples}, level={level}: at least 2 resamples and a level between 0 and 1")
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] < 2 or not np.isfinite(x).all():
        raise DataError(f"features of shape {x.shape}: (N, D), two rows or more, finite values are needed")
    _check_moments(mean, cov, "reference")
    mean1 = x.mean(axis=0)
    x = x - mean1
    root = x @ _factor(cov)
    gram, lengths = root @ root.T, (x**2).sum(axis=1)
    # The same overlap as that of the factors of both covariances, without the eigenvalues of a (D, D) matrix.
    overlap = np.linalg.svd(root, compute_uv=False).sum() / math.sqrt(len(x) - 1)
    point = float(((mean1 - mean) ** 2).sum() + lengths.sum() / (len(x) - 1) + np.trace(cov) - 2.0 * overlap)
    n, rng = x.shape[0], np.random.default_rng(seed)
    values = np.empty(resamples)
    for k in range(resamples):
        counts = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        share = counts / n
        middle = share @ x  # mean of the resample, from the mean of all
        trace = (counts @ lengths - n * (middle @ middle)) / (n - 1)
        drawn = np.flatnonzero(counts)
        part, weight = gram[np.ix_(drawn, drawn)], share[drawn]
        across = part @ weight
        centred = part - across[:, None] - across + weight @ across
        scale = np.sqrt(counts[drawn] / (n - 1))
        eigenvalues = np.linalg.eigvalsh(centred * scale[:, None] * scale)
        overlap = np.sqrt(np.clip(eigenvalues, 0.0, None)).sum()
        values[k] = ((mean1 + middle - mean) ** 2).sum() + trace + np.trace(cov) - 2.0 * overlap
    centre = values.mean()
    low, high = np.quantile(values - centre, [(1 - level) / 2, (1 + level) / 2])
    spread = float(values.std(ddof=1))
    return point, Interval(float(point + low), float(point + high), spread, float(centre - point), resamples)


def kernel_distance(
    features1: NDArray[np.floating],
    features2: NDArray[np.floating],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Kernel distance (KID): unbiased squared maximum mean discrepancy with the kernel (x'y / D + 1)^3.

    Unlike FID its expectation does not depend on the number of pictures, so small sets can be compared.

    Args:
        features1, features2: (N, D) and (M, D), two rows or more each.
        subsets: number of random subsets that are averaged, 2 or more.
        subset_size: rows in each, at most N and M.
        seed: of the draws.

    Returns:
        mean over the subsets, around 0 for equal distributions and possibly negative; standard deviation over them.

    Raises:
        DataError: too few rows, or features of different lengths.
    """
    a, b = (np.asarray(part, dtype=np.float64) for part in (features1, features2))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DataError(f"features of shape {a.shape} and {b.shape}: (N, D) and (M, D) from one network are needed")
    size = min(subset_size, len(a), len(b))
    if size < 2 or subsets < 2:
        raise DataError(f"{size} rows in {subsets} subsets: two or more of both are needed")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x = a[rng.choice(len(a), size, replace=False)]
        y = b[rng.choice(len(b), size, replace=False)]
        within = sum((kernel.sum() - np.trace(kernel)) for kernel in (_cubic(x, x), _cubic(y, y)))
        values.append(within / (size * (size - 1)) - 2.0 * _cubic(x, y).mean())
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _cubic(x: Array, y: Array) -> Array:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _factor(cov: Array) -> Array:
    """B with B B' = `cov`, one column per eigenvalue that is more than rounding."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    largest = max(float(values[-1]), 0.0)
    limit = largest * len(values) * np.finfo(np.float64).eps
    if values[0] < -max(1e-6 * largest, 1e-300):
        raise DataError(f"a covariance has the eigenvalue {values[0]:.3g}: it is not positive semi-definite")
    kept = values > limit
    return vectors[:, kept] * np.sqrt(values[kept])


def _check_moments(mean: Array, cov: Array, which: str) -> None:
    if mean.ndim != 1 or cov.shape != (mean.shape[0], mean.shape[0]):
        raise DataError(f"{which} set: mean {mean.shape} and covariance {cov.shape}, (D,) and (D, D) are needed")
    if not (math.isfinite(float(mean.sum())) and math.isfinite(float(cov.sum()))):
        raise DataError(f"{which} set: mean or covariance holds values that are not finite")
