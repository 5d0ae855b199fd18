"""A Gaussian mixture over features of photographic faces: fitted with scikit-learn, scored with torch in float64.

Both papers' one-class detector (arXiv 2501.02207: 12 components on raw features; arXiv 2507.22824: 10 on features of
length 1), with their code's settings: full covariances, k-means++ start, seed 2024, scikit-learn's defaults elsewhere.

Deliberate differences: a full covariance of d columns needs more than d pictures per component, else it is held up by
`reg_covar` alone and its likelihoods are noise; the official code fits whatever it is given, here fewer parameters are
fitted, with a warning, or none. The fit sees the features in the order they come in, so it is the same each time.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from thurl.errors import DataError, MissingRequirementError, UsageError


__all__ = ["COVARIANCES", "FALLBACKS", "Mixture", "fit_mixture"]

logger = logging.getLogger(__name__)

COVARIANCES = ("full", "tied", "diag")
FALLBACKS = ("tied", "diag", "pca", "refuse")

_CHUNK = 4096  # rows scored at a time: 25 MB of float64 at 768 columns


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture of K Gaussians in d dimensions, behind an optional projection from D.

    Attributes:
        covariance: one of `COVARIANCES`.
        weights: (K,) float64, positive, sum 1.
        means: (K, d) float64.
        precisions_cholesky: float64, scikit-learn's `precisions_cholesky_`: (K, d, d) upper triangular for "full",
            (d, d) for "tied", (K, d) inverse standard deviations for "diag".
        pca_mean: (D,) float64, None without projection.
        pca_components: (d, D) float64 orthonormal rows, None without projection.
    """

    covariance: str
    weights: torch.Tensor
    means: torch.Tensor
    precisions_cholesky: torch.Tensor
    pca_mean: torch.Tensor | None = None
    pca_components: torch.Tensor | None = None

    @property
    def width(self) -> int:
        """Columns of the features it takes."""
        return int(self.means.shape[1] if self.pca_components is None else self.pca_components.shape[1])

    def to(self, device: torch.device | str) -> Mixture:
        """The same on another device, which must know float64 (CPU and CUDA do)."""
        return Mixture(self.covariance, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by the names of their attributes, without those that are None."""
        names = ("weights", "means", "precisions_cholesky", "pca_mean", "pca_components")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def log_likelihood(self, features: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Logarithm of the density, in nats; higher is more photographic.

        `logsumexp_k [ log w_k - d/2 log 2 pi + sum_j log P_k,jj - |(x - mu_k) P_k|^2 / 2 ]`, computed in float64 on
        the device of the mixture. A row's value does not depend on the other rows.

        Args:
            features: (N, D), any floating dtype.

        Returns:
            (N,) float64; NaN for a row with a value that is not finite.

        Raises:
            DataError: another number of columns.
        """
        rows = torch.as_tensor(features).to(self.means.device, torch.float64)
        if rows.dim() != 2 or rows.shape[1] != self.width:
            raise DataError(
                f"features of shape {tuple(rows.shape)}: the detector was fitted to (N, {self.width}); use the "
                "encoder it was fitted with"
            )
        with torch.no_grad():
            parts = [self._score(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
            scores = torch.cat(parts) if parts else rows.new_zeros(0)
            return scores.where(rows.isfinite().all(dim=1), torch.nan)

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        if self.pca_components is not None:
            rows = (rows - self.pca_mean) @ self.pca_components.T
        constant = -0.5 * self.means.shape[1] * np.log(2 * np.pi)
        terms = []
        for number, (weight, mean) in enumerate(zip(self.weights, self.means, strict=True)):
            chol = self.precisions_cholesky if self.covariance == "tied" else self.precisions_cholesky[number]
            if self.covariance == "diag":
                white, scale = (rows - mean) * chol, chol
            else:
                white, scale = (rows - mean) @ chol, chol.diagonal()
            terms.append(weight.log() + constant + scale.log().sum() - 0.5 * white.square().sum(dim=1))
        return torch.logsumexp(torch.stack(terms), dim=0)

    @classmethod
    def from_tensors(cls, covariance: str, tensors: Mapping[str, torch.Tensor]) -> Mixture:
        """Build one from what `tensors` gave, and check that it is a density.

        Raises:
            DataError: all that is wrong with it: missing or ill-shaped tensors, another dtype, values that are not
                finite, weights that do not sum to 1, a precision that is not positive or not triangular.
        """
        problems = _problems(covariance, tensors)
        if problems:
            raise DataError("no Gaussian mixture: " + "; ".join(problems))
        return cls(covariance, **tensors)


def fit_mixture(
    features: np.ndarray | torch.Tensor,
    *,
    components: int = 10,
    covariance: str = "full",
    pca: int | None = None,
    fallback: str = "tied",
    seed: int = 2024,
) -> Mixture:
    """Fit a mixture to features of photographs.

    A full covariance of d columns has full rank from d + 1 pictures on, so `components * (d + 1)` are asked for. With
    fewer, `fallback` decides: "tied" fits one covariance for all components where that has full rank, and "diag"
    otherwise; "pca" projects to as many columns as leave twice that number; "refuse" raises. A warning says so.

    Args:
        features: (N, D), any floating dtype, in an order that stays the same from run to run.
        components: K, 10 for BLADES and 12 for the one-class paper.
        covariance: one of `COVARIANCES`.
        pca: project to this many columns first.
        fallback: one of `FALLBACKS`.
        seed: of the start; 2024 in the official code.

    Raises:
        DataError: features that are not finite, or too few of them.
        UsageError: a setting that does not exist.
        MissingRequirementError: scikit-learn is not installed.
    """
    rows = np.asarray(torch.as_tensor(features).detach().cpu().to(torch.float64))
    _check_settings(rows, components, covariance, pca, fallback)
    projection: dict[str, torch.Tensor] = {}
    if pca is not None:
        rows, projection = _project(rows, pca, seed)
    if covariance == "full" and len(rows) < components * (rows.shape[1] + 1):
        have = f"{len(rows)} pictures for {components} full covariances of {rows.shape[1]} columns"
        need = f"{components * (rows.shape[1] + 1)} are needed for full rank"
        if fallback == "refuse":
            raise DataError(f"{have}: {need}. Give more pictures, fewer components, `pca` or another `covariance`.")
        covariance, narrow = _fall_back(rows, components, fallback)
        if narrow is not None:
            rows, projection = _project(rows, narrow, seed)
        fitted = f"{covariance} covariances" + (f" after projection to {narrow} columns" if narrow is not None else "")
        logger.warning("%s: %s; fitting %s instead.", have, need, fitted)
    estimator = _fit(rows, components, covariance, seed)
    smallest = float(estimator.weights_.min()) * len(rows)
    if covariance == "full" and smallest < rows.shape[1] + 1:
        logger.warning(
            "The smallest of %d components holds %.0f pictures, fewer than its %d columns: its likelihoods rest on "
            "the regularisation. Fit fewer components or more pictures.",
            components, smallest, rows.shape[1],
        )  # fmt: skip
    parts = {
        "weights": estimator.weights_,
        "means": estimator.means_,
        "precisions_cholesky": estimator.precisions_cholesky_,
    }
    tensors = {name: torch.from_numpy(np.array(part, np.float64)) for name, part in parts.items()}
    return Mixture.from_tensors(covariance, {**tensors, **projection})


def _fit(rows: np.ndarray, components: int, covariance: str, seed: int):  # noqa: ANN202 - imported below
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise MissingRequirementError(
            f'fitting a mixture needs scikit-learn ({error}): pip install "thurl[vision]"'
        ) from None
    estimator = GaussianMixture(
        n_components=components, covariance_type=covariance, init_params="k-means++", random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            estimator.fit(rows)
        except ValueError as error:  # a covariance that is not positive definite
            raise DataError(
                f"no mixture of {components} components fits these {len(rows)} features ({error}); fit fewer "
                "components, or look for features that are all the same"
            ) from None
    if not estimator.converged_:
        logger.warning("The fit of the mixture stopped after %d rounds without converging.", estimator.n_iter_)
    return estimator


def _project(rows: np.ndarray, width: int, seed: int) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    from sklearn.decomposition import PCA

    found = PCA(n_components=width, svd_solver="full", random_state=seed).fit(rows)
    projected = (rows - found.mean_) @ found.components_.T
    return projected, {
        "pca_mean": torch.from_numpy(found.mean_.copy()),
        "pca_components": torch.from_numpy(np.ascontiguousarray(found.components_)),
    }


def _fall_back(rows: np.ndarray, components: int, fallback: str) -> tuple[str, int | None]:
    """Covariance to fit, and the number of columns to project to or None."""
    if fallback == "pca":
        width = min(len(rows) // (2 * components) - 1, rows.shape[1] - 1)
        return ("full", width) if width >= 2 else ("diag", None)
    if fallback == "tied" and len(rows) >= components + rows.shape[1] + 1:
        return "tied", None
    return "diag", None


def _check_settings(rows: np.ndarray, components: int, covariance: str, pca: int | None, fallback: str) -> None:
    problems = []
    if covariance not in COVARIANCES:
        problems.append(f"covariance {covariance!r} is none of {', '.join(COVARIANCES)}")
    if fallback not in FALLBACKS:
        problems.append(f"fallback {fallback!r} is none of {', '.join(FALLBACKS)}")
    if components < 1:
        problems.append(f"components={components}: at least 1 is needed")
    if pca is not None and (rows.ndim != 2 or not 1 <= pca <= min(rows.shape)):
        problems.append(f"pca={pca}: between 1 and the smaller side of the features {rows.shape} is possible")
    if problems:
        raise UsageError(problems)
    if rows.ndim != 2 or not rows.shape[1]:
        raise DataError(f"features of shape {rows.shape}: a table (pictures, columns) is needed")
    if len(rows) < max(2, components):
        raise DataError(f"{len(rows)} pictures for {components} components: at least {max(2, components)} are needed")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise DataError(f"{bad.size} features hold values that are not finite, the first in row {bad[0]}")


def _problems(covariance: str, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    if covariance not in COVARIANCES:
        return [f"covariance {covariance!r} is none of {', '.join(COVARIANCES)}"]
    needed = ("weights", "means", "precisions_cholesky")
    if lacking := [name for name in needed if name not in tensors]:
        return [f"{', '.join(lacking)} missing"]
    problems = [
        f"{name} is {tensor.dtype}, float64 is needed"
        for name, tensor in tensors.items()
        if tensor.dtype != torch.float64
    ]
    means, chol = tensors["means"], tensors["precisions_cholesky"]
    if means.dim() != 2 or not means.numel():
        return [*problems, f"means have the shape {tuple(means.shape)}, (components, columns) is needed"]
    k, d = means.shape
    shapes = {"weights": (k,), "precisions_cholesky": {"full": (k, d, d), "tied": (d, d), "diag": (k, d)}[covariance]}
    if ("pca_mean" in tensors) != ("pca_components" in tensors):
        problems.append("pca_mean and pca_components belong together, one is missing")
    elif "pca_mean" in tensors:
        width = tensors["pca_mean"].numel()
        shapes |= {"pca_mean": (width,), "pca_components": (d, width)}
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            problems.append(f"{name} has the shape {tuple(tensors[name].shape)}, {shape} is needed")
    problems += [f"{name} holds values that are not finite" for name, t in tensors.items() if not t.isfinite().all()]
    if problems:
        return problems
    weights = tensors["weights"]
    if not (weights > 0).all() or abs(float(weights.sum()) - 1) > 1e-9:
        problems.append(f"weights from {float(weights.min()):.3g} with the sum {float(weights.sum()):.12g}; positive "
                        "weights with the sum 1 are needed")  # fmt: skip
    scale = chol if covariance == "diag" else chol.diagonal(dim1=-2, dim2=-1)
    if not (scale > 0).all():
        problems.append(f"the diagonal of precisions_cholesky goes down to {float(scale.min()):.3g}; it must be > 0")
    if covariance != "diag" and bool(chol.tril(-1).any()):
        problems.append("precisions_cholesky is not upper triangular")
    return problems
