"""Fits of A-FINE's bounded curves: naturalness between the stages, the final scaling after them.

Paper: arXiv 2503.11221, Eq. 7 and 8 for the curve. `G(x) = (upper - lower) sigmoid((x - eta3) / |eta4|) + lower`.

Between the stages the raw naturalness of PIPAL's training images is fitted to their opinions, turned round (lower is
better) and brought to [-2, 2]. The final scaling (`thurl.iqa.afine.AFineConfig`) is a pair of constants: the authors
fitted them once to the labels of SRIQA-Bench, with `fit_bounded` and bounds 0 and 100. Both curves are increasing, so
they change no order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit

from thurl.errors import DataError
from thurl.metrics import plcc


__all__ = [
    "BoundedFit",
    "fit_bounded",
    "fit_naturalness",
    "lower_is_better",
    "moments",
    "plcc_four_parameters",
]

_GUARD = 1e-10  # beside |eta4|, as in the model


@dataclass(frozen=True)
class BoundedFit:
    """The curve `G` with its two bounds; `eta4` is a width, > 0."""

    eta3: float
    eta4: float
    upper: float
    lower: float

    def __call__(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Values of any shape mapped into (lower, upper), float64."""
        x = np.asarray(values, dtype=np.float64)
        return (self.upper - self.lower) * expit((x - self.eta3) / (abs(self.eta4) + _GUARD)) + self.lower


def fit_bounded(
    raw: Sequence[float] | np.ndarray, target: Sequence[float] | np.ndarray, *, upper: float, lower: float
) -> BoundedFit:
    """Least-squares fit of `G` with fixed bounds, from the start (mean, standard deviation / 4).

    Args:
        raw: (N,) values of the model, N >= 3.
        target: (N,) where they should land.
        upper, lower: of the curve.

    Raises:
        DataError: fewer than three values, values that are not finite or all equal, or no convergence.
    """
    x, y = (np.asarray(side, dtype=np.float64) for side in (raw, target))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise DataError(f"shapes {x.shape} and {y.shape}: two lists of the same length, 3 or more, are needed")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("a curve is fitted to finite values only; some are not")
    if x.std() == 0:
        raise DataError(f"all {len(x)} raw values are {x[0]:g}; nothing can be fitted to a constant")
    with warnings.catch_warnings():
        warnings.simplefilter("error", OptimizeWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow on the way is not the end
        try:
            (eta3, eta4), _ = curve_fit(
                lambda v, a, b: (upper - lower) * expit((v - a) / (abs(b) + _GUARD)) + lower,
                x,
                y,
                p0=(x.mean(), x.std() / 4),
                maxfev=10000,
            )
        except (RuntimeError, OptimizeWarning) as error:
            raise DataError(f"the curve could not be fitted to {len(x)} values: {error}") from error
    return BoundedFit(float(eta3), float(abs(eta4)), upper, lower)


def fit_naturalness(raw: Sequence[float] | np.ndarray, mos: Sequence[float] | np.ndarray) -> BoundedFit:
    """The map of raw naturalness to (-2, 2) from opinions, higher better (official: PIPAL's training images).

    Args:
        raw: (N,) raw naturalness, lower better.
        mos: (N,) mean opinion scores, higher better.
    """
    return fit_bounded(raw, lower_is_better(mos, low=-2.0, high=2.0), upper=2.0, lower=-2.0)


def lower_is_better(mos: Sequence[float] | np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Opinions mapped linearly so that the best one becomes `low` and the worst `high`.

    Raises:
        DataError: all equal, or values that are not finite.
    """
    values = np.asarray(mos, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all() or np.ptp(values) == 0:
        raise DataError("opinions must be finite and not all equal: there is no range to map")
    return high - (high - low) * (values - values.min()) / np.ptp(values)


def moments(raw: Sequence[float] | np.ndarray) -> BoundedFit:
    """`eta3` and `eta4` as mean and standard deviation: for data without opinions.

    Raises:
        DataError: fewer than two values, values that are not finite, or all equal.
    """
    x = np.asarray(raw, dtype=np.float64)
    if x.size < 2 or not np.isfinite(x).all() or x.std() == 0:
        raise DataError(f"{x.size} raw values; two or more, finite and not all equal, are needed")
    return BoundedFit(float(x.mean()), float(x.std()), 2.0, -2.0)


def plcc_four_parameters(pred: Sequence[float] | np.ndarray, mos: Sequence[float] | np.ndarray) -> float:
    """Pearson correlation after `G` with all four parameters free has been fitted from predictions to MOS.

    Blind to direction, as any such fit; read it beside the rank correlation.

    Returns:
        a value in [0, 1]; NaN with fewer than five items, with a constant side, or without convergence.

    Raises:
        ValueError: the lengths differ.
    """
    x, y = np.asarray(pred, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    if not np.isfinite(plcc(x, y)) or x.size < 5:
        return float("nan")
    z = (x - x.mean()) / x.std()
    sign = 1.0 if plcc(x, y) >= 0 else -1.0

    def curve(v: np.ndarray, top: float, bottom: float, a: float, b: float) -> np.ndarray:
        return (top - bottom) * expit((v - a) / (abs(b) + _GUARD)) + bottom

    start = (y.max(), y.min(), 0.0, 0.25) if sign > 0 else (y.min(), y.max(), 0.0, 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            best, _ = curve_fit(curve, z, y, p0=start, maxfev=10000)
        except RuntimeError:
            return float("nan")
    return abs(plcc(curve(z, *best), y))
