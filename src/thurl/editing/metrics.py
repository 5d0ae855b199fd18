"""What an edit is judged by: success, generalisation, locality, and what it costs elsewhere.

"Learning Where to Edit Vision Transformers" (NeurIPS 2024, arXiv 2411.01948). All rates are in percent. A group is n
pictures that the base model got wrong in one way; one of them was edited.

Different from the released code: it counts (right pictures of the group - 1) / n as generalisation, so 100 is out of
reach and a failed edit is charged twice. `generalisation_rate` looks at the other n - 1 pictures alone;
`official_generalisation_rate` is the released formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from thurl.errors import DataError, UsageError
from thurl.metrics import bootstrap_interval


__all__ = [
    "MacroAverage",
    "accuracy_drop",
    "expected_calibration_error",
    "front_area",
    "generalisation_rate",
    "locality_rate",
    "macro_average",
    "official_generalisation_rate",
    "pareto_front",
    "prediction_margin",
    "success_rate",
]


def success_rate(right: ArrayLike, edited: int) -> float:
    """SR of one edit: 100 if the edited picture is right now, else 0.

    Args:
        right: bool [n], whether each picture of the group is right after the edit.
        edited: which of them was edited.

    Raises:
        UsageError: no such picture.
    """
    return 100.0 * float(_group(right, edited)[edited])


def generalisation_rate(right: ArrayLike, edited: int) -> float:
    """GR of one edit: share of the other n - 1 pictures that are right now; NaN in a group of one.

    Args:
        right, edited: as `success_rate`.

    Raises:
        UsageError: no such picture.
    """
    others = np.delete(_group(right, edited), edited)
    return 100.0 * float(others.mean()) if others.size else math.nan


def official_generalisation_rate(right: ArrayLike) -> float:
    """GR as released: 100 (right pictures of the whole group - 1) / n, from -100 / n to 100 (n - 1) / n.

    Args:
        right: as `success_rate`.
    """
    found = _group(right, 0)
    return 100.0 * (int(found.sum()) - 1) / found.size


def locality_rate(before: ArrayLike, after: ArrayLike) -> float:
    """LR: share of unrelated pictures whose predicted class is the same after the edit; labels do not matter.

    Args:
        before, after: int [N], predicted classes.

    Returns:
        NaN without pictures.

    Raises:
        UsageError: the lengths differ.
    """
    first, second = _pair(before, after)
    return 100.0 * float((first == second).mean()) if first.size else math.nan


def accuracy_drop(before: ArrayLike, after: ArrayLike, labels: ArrayLike) -> float:
    """Accuracy before the edit minus accuracy after it, in points; negative where the model became better.

    Args:
        before, after, labels: int [N], predicted classes and right ones.

    Returns:
        NaN without pictures.

    Raises:
        UsageError: the lengths differ.
    """
    first, right = _pair(before, labels)
    second, _ = _pair(after, labels)
    return 100.0 * (float((first == right).mean()) - float((second == right).mean())) if right.size else math.nan


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """ECE in points: how far confidence is from accuracy, over bins of equal width (Guo et al., arXiv 1706.04599).

    Args:
        probabilities: float [N, C], rows that add up to 1.
        labels: int [N].
        bins: of the largest probability; bin i is (i / bins, (i + 1) / bins].

    Returns:
        100 * sum over bins of (share of pictures) * |accuracy - mean confidence|; NaN without pictures.

    Raises:
        UsageError: shapes that do not fit, or fewer than one bin.
        DataError: rows that are no probabilities.
    """
    values, right = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or right.shape != values.shape[:1] or bins < 1:
        raise UsageError(
            f"probabilities of shape {list(values.shape)}, labels of shape {list(right.shape)}, {bins} bins; must "
            "be [N, C] and [N], with at least one bin"
        )
    if not right.size:
        return math.nan
    if not (values >= 0).all() or not np.allclose(values.sum(axis=1), 1, atol=1e-3):
        raise DataError("rows that are no probabilities: each must be 0 or more and add up to 1; apply softmax first")
    confidence, hit = values.max(axis=1), values.argmax(axis=1) == right
    # A share of exactly i / bins belongs to the bin that ends there.
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=hit - confidence, minlength=bins)
    return 100.0 * float(np.abs(gaps).sum()) / right.size


def prediction_margin(probabilities: ArrayLike) -> np.ndarray:
    """Largest probability minus the second largest, float64 [N], of [N, C] with two or more classes."""
    best = np.sort(np.asarray(probabilities, dtype=np.float64), axis=1)[:, -2:]
    return best[:, 1] - best[:, 0]


@dataclass(frozen=True)
class MacroAverage:
    """Mean of the means of groups.

    Args:
        mean: over the groups with a value; NaN without one.
        low, high: 95 % bootstrap interval over whole groups; NaN with fewer than two.
        groups: with a value.
        skipped: groups in which no edit has a value, such as GR in groups of one picture.
    """

    mean: float
    low: float
    high: float
    groups: int
    skipped: int


def macro_average(values: Mapping[str, Sequence[float]], *, seed: int = 0, resamples: int = 1000) -> MacroAverage:
    """Average of a metric: over the edits of a group first, then over groups, so that large groups do not rule.

    Args:
        values: group -> one value for each edit; NaN is undefined and left out.
        seed, resamples: of the bootstrap over groups. Edits of one group are not independent.
    """
    means = []
    for one in values.values():
        defined = [value for value in one if not math.isnan(value)]
        if defined:
            means.append(math.fsum(defined) / len(defined))
    # A group of one mean each: the mean of the groups is what is drawn again, all resamples at once.
    low, high = bootstrap_interval(
        lambda found, _: float(found[0]), means, means, groups=range(len(means)), within_groups=True, seed=seed,
        n=resamples,
    )  # fmt: skip
    mean = math.fsum(means) / len(means) if means else math.nan
    return MacroAverage(mean, low, high, len(means), len(values) - len(means))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points no other point beats, by rising first coordinate; of equal points the first one.

    Args:
        points: such as (LR, GR), higher is better; points with NaN are never on the front.
    """
    best, front = -math.inf, []
    order = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]
    for index in sorted(order, key=lambda index: (-points[index][0], -points[index][1], index)):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front[::-1]


def front_area(points: Sequence[tuple[float, float]], reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """Share in [0, 1] of the rectangle from `reference` to (100, 100) that a set of points dominates.

    Between points the front is a staircase: what lies between two densities is not promised.

    Args:
        points: (LR, GR) in percent, one for each setting of a method; what is not above the reference adds nothing.
        reference: worst values that still count.

    Raises:
        UsageError: a reference that leaves no rectangle.
    """
    left, floor = reference
    if not left < 100 or not floor < 100:
        raise UsageError(f"reference {reference}: both numbers must be below 100")
    area, reached = 0.0, left
    for index in pareto_front(points):
        across, up = points[index]
        if across > reached and up > floor:
            area += (across - reached) * (up - floor)
            reached = across
    return area / ((100 - left) * (100 - floor))


def _group(right: ArrayLike, edited: int) -> np.ndarray:
    found = np.asarray(right, dtype=bool)
    if found.ndim != 1 or not 0 <= edited < found.size:
        raise UsageError(f"picture {edited} of a group of shape {list(found.shape)}; the group must hold it")
    return found


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.asarray(first), np.asarray(second)
    if one.ndim != 1 or one.shape != other.shape:
        raise UsageError(f"classes of shapes {list(one.shape)} and {list(other.shape)}; they must be lists as long")
    return one, other
