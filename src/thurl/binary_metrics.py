"""Two-class metrics of scores and of probabilities, ties counted fairly.

scikit-learn has them, too; it is an extra here, and evaluation must run without it. Tests hold both together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


__all__ = [
    "average_precision",
    "best_threshold",
    "binary_calibration_error",
    "equal_error_rate",
    "roc_auc",
    "tpr_at_fpr",
]


def roc_auc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Probability that a positive item scores above a negative one, ties counting one half.

    Args:
        positive: scores of the positive items, shape (N,).
        negative: scores of the negative items, shape (M,).

    Returns:
        A value in [0, 1]; NaN when a side is empty or a score is NaN.
    """
    high, low = _scores(positive), _scores(negative)
    if not high.size or not low.size or np.isnan(high).any() or np.isnan(low).any():
        return float("nan")
    ranks = rankdata(np.concatenate([high, low]))[: high.size]
    return float((ranks.sum() - high.size * (high.size + 1) / 2) / (high.size * low.size))


def average_precision(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Sum over thresholds of precision times the gain in recall; items with one score enter together.

    Args:
        positive: scores of the positive items, shape (N,), higher for positive.
        negative: scores of the negative items, shape (M,).

    Returns:
        A value in (0, 1]; NaN without positive items or with a score that is NaN.
    """
    high, low = _scores(positive), _scores(negative)
    if not high.size or np.isnan(high).any() or np.isnan(low).any():
        return float("nan")
    values = np.concatenate([high, low])
    order = np.argsort(-values, kind="stable")
    found = np.cumsum(order < high.size)
    last = np.append(np.flatnonzero(np.diff(values[order])), values.size - 1)
    recall, precision = found[last] / high.size, found[last] / (last + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def equal_error_rate(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Rate at which as large a share of the positive items is missed as of the negative ones is taken for positive.

    Where no threshold gives two equal rates, the ROC curve is taken as straight between its points.

    Args:
        positive: scores of the positive items, shape (N,), higher for positive.
        negative: scores of the negative items, shape (M,).

    Returns:
        A value in [0, 1]; NaN when a side is empty or a score is NaN.
    """
    false_alarms, found = _roc(positive, negative)
    if not found.size:
        return float("nan")
    gap = 1 - found - false_alarms  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(false_alarms[after - 1] + share * (false_alarms[after] - false_alarms[after - 1]))


def tpr_at_fpr(
    positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray, rate: float = 0.01
) -> float:
    """Largest share of the positive items that a threshold finds with at most `rate` of the negative ones.

    Args:
        positive: scores of the positive items, shape (N,), higher for positive.
        negative: scores of the negative items, shape (M,).
        rate: in (0, 1).

    Returns:
        A value in [0, 1]; NaN with fewer than 1 / rate negative items, among which such a rate cannot be seen, without
        positive items, or when a score is NaN.
    """
    false_alarms, found = _roc(positive, negative)
    if not found.size or len(_scores(negative)) * rate < 1 - 1e-9:
        return float("nan")
    return float(found[false_alarms <= rate + 1e-12][-1])


def best_threshold(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """The threshold with the largest balanced accuracy: an item counts as positive from this score on.

    Balanced, since the most right decisions among many positive and few negative items may be to call all positive.

    Args:
        positive: scores of the positive items, shape (N,), higher for positive.
        negative: scores of the negative items, shape (M,).

    Returns:
        Midway between two neighbouring scores, of equally good places the lowest; NaN when a side is empty or a score
        is NaN.
    """
    high, low = _scores(positive), _scores(negative)
    if not high.size or not low.size or np.isnan(high).any() or np.isnan(low).any():
        return float("nan")
    values = np.unique(np.concatenate([high, low]))
    missed = np.searchsorted(np.sort(high), values)  # below each score
    right = 1 - missed / high.size + np.searchsorted(np.sort(low), values) / low.size
    place = int(np.argmax(right))
    return float(values[place] if place == 0 else (values[place - 1] + values[place]) / 2)


def binary_calibration_error(
    probabilities: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray, bins: int = 15
) -> float:
    """Expected calibration error of the probability of one class: its mean distance from the share of that class.

    Bins are over the probability itself, not over the larger of it and its complement as for many classes
    (`thurl.editing.metrics.expected_calibration_error`), so that too high values for one class and too low ones for
    the other do not hide each other.

    Args:
        probabilities: of the positive class, shape (N,), in [0, 1].
        labels: 1 positive, 0 negative, shape (N,).
        bins: of equal width.

    Returns:
        A value in [0, 1]; NaN without items or with one that is NaN.
    """
    values, truth = _scores(probabilities), np.asarray(labels, dtype=np.float64).reshape(-1)
    if not values.size or np.isnan(values).any():
        return float("nan")
    place = np.clip((values * bins).astype(int), 0, bins - 1)
    gaps = np.bincount(place, weights=truth - values, minlength=bins)
    return float(np.abs(gaps).sum() / values.size)


def _roc(
    positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of negative and positive items at or above each score, from none to all; empty where undefined."""
    high, low = _scores(positive), _scores(negative)
    if not high.size or not low.size or np.isnan(high).any() or np.isnan(low).any():
        return np.empty(0), np.empty(0)
    values = np.unique(np.concatenate([high, low]))[::-1]
    found, alarms = (1 - np.searchsorted(np.sort(side), values) / side.size for side in (high, low))
    return np.r_[0.0, alarms], np.r_[0.0, found]


def _scores(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1)
