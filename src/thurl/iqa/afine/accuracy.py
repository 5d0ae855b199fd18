"""Agreement of scores with pairwise labels, by the rules of the released evaluation of A-FINE (arXiv 2503.11221).

Every A-FINE score is better when LOWER. An exact tie of the scores is wrong unless people see a tie as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


__all__ = ["correct_pairs", "pair_accuracy", "pair_accuracy_interval"]


def correct_pairs(
    u1: Sequence[float] | np.ndarray,
    u2: Sequence[float] | np.ndarray,
    g: Sequence[float] | np.ndarray,
    *,
    delta: float = 0.0,
) -> np.ndarray:
    """Which pairs the scores get right.

    Args:
        u1, u2: (N,) scores, lower is better.
        g: (N,) 1, 0.5 or 0.
        delta: scores closer than this, or as close, are a tie; >= 0.

    Returns:
        (N,) bool. A pair with a NaN score is False.

    Raises:
        ValueError: shapes that differ, another label, a negative `delta`.
    """
    u1, u2, g = (np.asarray(side, dtype=np.float64) for side in (u1, u2, g))
    if u1.ndim != 1 or not u1.shape == u2.shape == g.shape:
        raise ValueError(f"shapes {u1.shape}, {u2.shape}, {g.shape}: three lists of one length are needed")
    if not np.isin(g, (0.0, 0.5, 1.0)).all() or not delta >= 0:
        raise ValueError(f"labels must be 0, 0.5 or 1 and delta ({delta}) must not be negative")
    gap = np.abs(u1 - u2)
    return (
        ((u1 < u2) & (gap > delta) & (g == 1)) | ((u1 > u2) & (gap > delta) & (g == 0)) | ((gap <= delta) & (g == 0.5))
    )


def pair_accuracy(
    u1: Sequence[float] | np.ndarray,
    u2: Sequence[float] | np.ndarray,
    g: Sequence[float] | np.ndarray,
    *,
    delta: float = 0.0,
) -> float:
    """Share of correct pairs among all, in [0, 1]; arguments and errors as `correct_pairs`.

    NaN without pairs, and when a score is not finite: a model that fails on an image has no accuracy there.
    """
    right = correct_pairs(u1, u2, g, delta=delta)
    if not right.size or not np.isfinite([np.asarray(u1, float), np.asarray(u2, float)]).all():
        return float("nan")
    return float(right.mean())


def pair_accuracy_interval(
    correct: np.ndarray, scenes: Sequence[Hashable], *, n: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy, over whole scenes: pairs of one scene are not independent.

    Args:
        correct: (N,) of `correct_pairs`.
        scenes: (N,) of each pair.
        n: resamples.
        level: coverage, in (0, 1).
        seed: of the resampling.

    Returns:
        (low, high); NaN with fewer than two scenes.

    Raises:
        ValueError: lengths that differ, or values out of range.
    """
    right = np.asarray(correct, dtype=np.float64)
    if len(scenes) != right.size or n < 1 or not 0 < level < 1:
        raise ValueError(f"{len(scenes)} scenes for {right.size} pairs, n={n}, level={level}: one scene per pair")
    index = {scene: place for place, scene in enumerate(dict.fromkeys(scenes))}
    if len(index) < 2:
        return float("nan"), float("nan")
    place = np.array([index[scene] for scene in scenes])
    counts, sums = np.bincount(place).astype(np.float64), np.bincount(place, weights=right)
    rng = np.random.default_rng(seed)
    found = np.empty(n)
    for k in range(n):  # one draw of scenes at a time: thousands of them would not fit at once
        drawn = rng.integers(0, len(index), size=len(index))
        found[k] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
