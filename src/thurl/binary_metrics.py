"""Two-class metrics of scores: area under the ROC curve and average precision, ties counted fairly.

scikit-learn has them, too; it is an extra here, and evaluation must run without it. Tests hold both together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


__all__ = ["average_precision", "roc_auc"]


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


def _scores(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1)
