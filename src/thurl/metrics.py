"""Agreement between predicted quality and mean opinion scores.

Everything here is numpy and scipy and returns NaN where a number is undefined (fewer than two items, a constant
input, a value that is not finite): a model that always answers the same has no correlation, not one of zero.

SRCC and raw PLCC are the numbers of VisualQuality-R1 (arXiv 2505.14460, Table 2). The five-parameter logistic is the
mapping of Sheikh, Sabir and Bovik, "A statistical evaluation of recent full reference image quality assessment
algorithms" (IEEE TIP 2006), which the image-quality literature fits before PLCC.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeWarning, least_squares
from scipy.special import expit
from scipy.stats import rankdata


__all__ = [
    "LogisticFit",
    "accuracy_2afc",
    "bootstrap_interval",
    "fit_logistic",
    "per_group",
    "plcc",
    "plcc_logistic",
    "srcc",
]

Metric = Callable[[np.ndarray, np.ndarray], float]

# Relative spread below which an input counts as constant: what summing equal float64 numbers can leave behind.
_CONSTANT = 1e-13


def srcc(pred: Sequence[float] | np.ndarray, mos: Sequence[float] | np.ndarray) -> float:
    """Spearman rank correlation with average ranks for ties.

    Args:
        pred: predicted scores, shape (N,), any scale.
        mos: mean opinion scores, shape (N,), any scale.

    Returns:
        A value in [-1, 1]; NaN when N < 2, when either side is constant or when a value is not finite.

    Raises:
        ValueError: the lengths differ or an input is not one-dimensional.
    """
    pred, mos = _pair(pred, mos)
    if not _defined(pred, mos):
        return float("nan")
    return _pearson(rankdata(pred), rankdata(mos))


def plcc(pred: Sequence[float] | np.ndarray, mos: Sequence[float] | np.ndarray) -> float:
    """Pearson linear correlation of the raw values, no mapping fitted. Arguments, NaN rule and errors as `srcc`."""
    pred, mos = _pair(pred, mos)
    if not _defined(pred, mos):
        return float("nan")
    return _pearson(pred, mos)


@dataclass(frozen=True)
class LogisticFit:
    """Least-squares fit of `b1 * (1/2 - 1/(1 + exp(b2 * (x - b3)))) + b4 * x + b5`.

    Attributes:
        parameters: (b1, b2, b3, b4, b5) on the scale of the inputs, or None when the fit failed.
        plcc: Pearson correlation of the fitted values with the MOS, in [0, 1]; NaN when the fit failed.
        ok: whether the optimiser converged.
        reason: why it failed, empty when it did not.
    """

    parameters: tuple[float, float, float, float, float] | None
    plcc: float
    ok: bool
    reason: str = ""

    def __call__(self, pred: Sequence[float] | np.ndarray) -> np.ndarray:
        """Map scores of shape (N,) to the MOS scale; NaN everywhere when the fit failed."""
        pred = np.asarray(pred, dtype=np.float64)
        if self.parameters is None:
            return np.full_like(pred, np.nan)
        return _logistic(np.asarray(self.parameters), pred)


def fit_logistic(pred: Sequence[float] | np.ndarray, mos: Sequence[float] | np.ndarray) -> LogisticFit:
    """Fit the five-parameter logistic from predictions to MOS.

    For fixed (b2, b3) the other three parameters are a linear regression, so the start is the best of a grid over
    (b2, b3) on standardised inputs; the linear map b1 = 0 is among the starts, so the fit is never worse than the
    raw correlation. It is blind to direction: a predictor with reversed sign gets the same value as a good one, so
    read it beside the raw PLCC.

    Args:
        pred: predicted scores, shape (N,).
        mos: mean opinion scores, shape (N,).

    Raises:
        ValueError: the lengths differ or an input is not one-dimensional.
    """
    pred, mos = _pair(pred, mos)
    if pred.size < 6:
        return LogisticFit(None, float("nan"), False, f"{pred.size} points cannot fix 5 parameters, at least 6 needed")
    if not _defined(pred, mos):
        return LogisticFit(None, float("nan"), False, "a side is constant or holds a value that is not finite")
    x_mean, x_std, y_mean, y_std = (float(v) for v in (pred.mean(), pred.std(), mos.mean(), mos.std()))
    x, y = (pred - x_mean) / x_std, (mos - y_mean) / y_std

    starts = [np.array([0.0, 1.0, 0.0, *_linear_part(x, y)])]
    starts += [
        _start(x, y, b2, b3) for b2 in (0.5, 1.0, 2.0, 5.0, 15.0) for b3 in np.quantile(x, (0.1, 0.3, 0.5, 0.7, 0.9))
    ]
    starts.sort(key=lambda b: float(np.sum((_logistic(b, x) - y) ** 2)))
    linear_cost = float(np.sum((_logistic(np.array([0.0, 1.0, 0.0, *_linear_part(x, y)]), x) - y) ** 2))

    best = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        for start in starts[:3]:
            try:
                fit = least_squares(
                    lambda b: _logistic(b, x) - y,
                    start,
                    jac=lambda b: _jacobian(b, x),
                    method="trf",
                    x_scale="jac",
                    ftol=1e-10,
                    xtol=1e-10,
                    gtol=1e-10,
                    max_nfev=500,
                )
            except (ValueError, np.linalg.LinAlgError):
                continue
            if fit.success and np.isfinite(fit.x).all() and (best is None or fit.cost < best.cost):
                best = fit
    if best is None:
        return LogisticFit(None, float("nan"), False, "the optimiser did not converge from any start")
    if 2 * best.cost > linear_cost * (1 + 1e-9) + 1e-12:
        return LogisticFit(None, float("nan"), False, "the optimiser ended worse than a straight line")
    fitted = _logistic(best.x, x)
    if not _defined(fitted, y):
        return LogisticFit(None, float("nan"), False, "the fitted curve is constant")
    b1, b2, b3, b4, b5 = best.x.tolist()
    parameters = (
        b1 * y_std,
        b2 / x_std,
        b3 * x_std + x_mean,
        b4 * y_std / x_std,
        b5 * y_std + y_mean - b4 * y_std * x_mean / x_std,
    )
    return LogisticFit(parameters, _pearson(fitted, y), True)


def plcc_logistic(pred: Sequence[float] | np.ndarray, mos: Sequence[float] | np.ndarray) -> float:
    """Pearson correlation after the five-parameter logistic; NaN when the fit fails (`fit_logistic` says why)."""
    return fit_logistic(pred, mos).plcc


def per_group(
    metric: Metric,
    pred: Sequence[float] | np.ndarray,
    mos: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable],
) -> tuple[float, int]:
    """Plain mean of `metric` over groups (for example the distorted versions of one reference picture).

    Args:
        metric: a function of (pred, mos) returning a float, NaN where undefined.
        pred: predicted scores, shape (N,).
        mos: mean opinion scores, shape (N,).
        groups: group name of every item, length N.

    Returns:
        The mean over the groups where the metric is defined (NaN if there is none) and how many groups that is.

    Raises:
        ValueError: the lengths differ.
    """
    values = _group_values(metric, pred, mos, groups)
    used = values[~np.isnan(values)]
    return (float(used.mean()) if used.size else float("nan")), int(used.size)


def bootstrap_interval(
    metric: Metric,
    pred: Sequence[float] | np.ndarray,
    mos: Sequence[float] | np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    within_groups: bool = False,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric.

    Args:
        metric: a function of (pred, mos) returning a float, NaN where undefined.
        pred: predicted scores, shape (N,).
        mos: mean opinion scores, shape (N,).
        groups: resample whole groups instead of single items. Pictures made from one reference are not independent,
            so resampling them one by one gives intervals that are too narrow.
        within_groups: the statistic is the mean of the metric inside each group (`per_group`) instead of the metric
            over all items; needs `groups`.
        n: number of resamples.
        level: coverage, in (0, 1).
        seed: seed of the resampling.

    Returns:
        (low, high); (NaN, NaN) when fewer than two units can be resampled or when more than half of the resamples
        leave the metric undefined.

    Raises:
        ValueError: the lengths differ, `n` < 1, `level` is outside (0, 1), or `within_groups` without `groups`.
    """
    pred, mos = _pair(pred, mos)
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n={n} must be at least 1 and level={level} between 0 and 1")
    rng = np.random.default_rng(seed)
    if within_groups:
        if groups is None:
            raise ValueError("within_groups=True needs `groups`")
        values = _group_values(metric, pred, mos, groups)
        values = values[~np.isnan(values)]
        if values.size < 2:
            return float("nan"), float("nan")
        results = values[rng.integers(0, values.size, size=(n, values.size))].mean(axis=1)
        return _percentiles(results, level)
    members = [np.array([i]) for i in range(pred.size)] if groups is None else _members(groups, pred.size)
    if len(members) < 2:
        return float("nan"), float("nan")
    results = np.empty(n)
    for k in range(n):
        chosen = rng.integers(0, len(members), size=len(members))
        index = chosen if groups is None else np.concatenate([members[c] for c in chosen])
        results[k] = metric(pred[index], mos[index])
    return _percentiles(results, level)


def accuracy_2afc(
    pred_a: Sequence[float] | np.ndarray, pred_b: Sequence[float] | np.ndarray, prefers_a: Sequence[float] | np.ndarray
) -> float:
    """Share of two-alternative forced choices on which the predictions agree with people.

    Args:
        pred_a: predicted quality of the first picture of each pair, shape (N,), higher is better.
        pred_b: predicted quality of the second picture, shape (N,).
        prefers_a: share of people who prefer the first picture, shape (N,), in [0, 1]; 0 and 1 for a single verdict.

    Returns:
        Mean over pairs of the share of people who agree with the prediction, in [0, 1]; a predicted tie counts one
        half. NaN without pairs or with a value that is not finite.

    Raises:
        ValueError: the lengths differ or a share is outside [0, 1].
    """
    pred_a, pred_b = _pair(pred_a, pred_b)
    prefers_a = np.asarray(prefers_a, dtype=np.float64)
    if prefers_a.shape != pred_a.shape:
        raise ValueError(f"{prefers_a.size} preferences for {pred_a.size} pairs: one per pair is needed")
    if pred_a.size == 0 or not np.isfinite(np.concatenate([pred_a, pred_b, prefers_a])).all():
        return float("nan")
    if prefers_a.min() < 0 or prefers_a.max() > 1:
        raise ValueError(f"preferences lie in [{prefers_a.min()}, {prefers_a.max()}], they are shares and need [0, 1]")
    says_a = (np.sign(pred_a - pred_b) + 1) / 2
    return float(np.mean(says_a * prefers_a + (1 - says_a) * (1 - prefers_a)))


def _pair(pred: Sequence[float] | np.ndarray, mos: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pred, mos = np.asarray(pred, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    if pred.ndim != 1 or mos.ndim != 1 or pred.size != mos.size:
        raise ValueError(
            f"inputs of shapes {pred.shape} and {mos.shape}: two one-dimensional lists of equal length needed"
        )
    return pred, mos


def _defined(pred: np.ndarray, mos: np.ndarray) -> bool:
    if pred.size < 2 or not (np.isfinite(pred).all() and np.isfinite(mos).all()):
        return False
    return all(np.ptp(side) > _CONSTANT * np.abs(side).max() for side in (pred, mos))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    # Scaling first keeps the squares of very large or very small inputs inside the range of float64.
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _logistic(b: np.ndarray, x: np.ndarray) -> np.ndarray:
    # 1/2 - 1/(1 + exp(t)) = expit(t) - 1/2, which cannot overflow
    return b[0] * (expit(b[1] * (x - b[2])) - 0.5) + b[3] * x + b[4]


def _jacobian(b: np.ndarray, x: np.ndarray) -> np.ndarray:
    s = expit(b[1] * (x - b[2]))
    slope = b[0] * s * (1 - s)
    return np.stack([s - 0.5, slope * (x - b[2]), -slope * b[1], x, np.ones_like(x)], axis=1)


def _linear_part(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1), y, rcond=None)[0]


def _start(x: np.ndarray, y: np.ndarray, b2: float, b3: float) -> np.ndarray:
    design = np.stack([expit(b2 * (x - b3)) - 0.5, x, np.ones_like(x)], axis=1)
    b1, b4, b5 = np.linalg.lstsq(design, y, rcond=None)[0]
    return np.array([b1, b2, b3, b4, b5])


def _members(groups: Sequence[Hashable], size: int) -> list[np.ndarray]:
    if len(groups) != size:
        raise ValueError(f"{len(groups)} group names for {size} items: one per item is needed")
    index: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        index.setdefault(group, []).append(i)
    return [np.array(rows) for rows in index.values()]


def _group_values(
    metric: Metric,
    pred: Sequence[float] | np.ndarray,
    mos: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable],
) -> np.ndarray:
    pred, mos = _pair(pred, mos)
    return np.array([metric(pred[rows], mos[rows]) for rows in _members(groups, pred.size)], dtype=np.float64)


def _percentiles(results: np.ndarray, level: float) -> tuple[float, float]:
    results = results[~np.isnan(results)] if np.isnan(results).sum() * 2 <= results.size else results[:0]
    if results.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(results, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
