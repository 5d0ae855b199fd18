"""Accuracy, plasticity and forgetting of a class-incremental learner.

"CLDyB: Towards Dynamic Benchmarking for Continual Learning with Pre-trained Models" (ICLR 2025, arXiv 2503.04655).
AA, ALA, AFM and AR are its metrics; ALA and AFM are its equations 1 and 2. How it defines AR is not known, so both
plausible forms are here under names of their own: `average_retention` (1 - AFM) and `retention_ratio`.

An accuracy matrix is a sequence of rows: row t holds t + 1 numbers in [0, 1], the accuracy on the held-out part of
tasks 0..t after learning tasks 0..t with one head over all seen classes and no task label. NaN is an undefined
accuracy and makes every metric that uses it NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from thurl.errors import DataError, UsageError


__all__ = [
    "DEFINITIONS",
    "Rows",
    "accuracy_matrix",
    "average_accuracy",
    "average_forgetting",
    "average_incremental_accuracy",
    "average_learning_accuracy",
    "average_retention",
    "backward_transfer",
    "continual_metrics",
    "difficulty",
    "max_forgetting",
    "retention_ratio",
    "sample_weighted_accuracy",
]

DEFINITIONS = {
    "aa": "average accuracy over the tasks learned so far, (1/t) sum of a(t,i)",
    "aaa": "average incremental accuracy, mean of AA over all steps",
    "ala": "average learning accuracy, (1/t) sum of a(i,i)",
    "afm": "average forgetting, (1/(t-1)) sum over i<t of a(i,i) - a(t,i); 0 for t=1",
    "afm_max": "forgetting against the best accuracy a task ever had; 0 for t=1",
    "ar": "average retention as 1 - AFM; 1 for t=1",
    "ar_ratio": "average retention as mean over i<t of min(1, a(t,i)/a(i,i)), 1 where a(i,i)=0; 1 for t=1",
    "bwt": "backward transfer, -AFM after the last task",
}
"""What each number of `continual_metrics` is; reports print it, since the paper's AR is one of two."""

Rows = Sequence[Sequence[float]] | NDArray[np.float64]


def accuracy_matrix(rows: Rows) -> NDArray[np.float64]:
    """Rows of an accuracy matrix as a square array, float64 [T, T], NaN above the diagonal.

    Raises:
        DataError: no row, a row of the wrong length, or a number outside [0, 1]; all problems together.
    """
    count = len(rows)
    matrix = np.full((count, count), math.nan)
    problems = [] if count else ["an accuracy matrix has at least one row"]
    square = isinstance(rows, np.ndarray) and rows.ndim == 2
    for step, row in enumerate(rows):
        if len(row) != step + 1 and not (square and len(row) == count):
            problems.append(f"accuracies after task {step + 1}: {len(row)} numbers; there must be {step + 1}")
            continue
        matrix[step, : step + 1] = row[: step + 1]
    outside = np.argwhere((matrix < 0) | (matrix > 1))
    problems += [
        f"accuracy on task {i + 1} after task {t + 1} is {matrix[t, i]}; it must lie in [0, 1]" for t, i in outside
    ]
    if problems:
        raise DataError("\n".join(problems))
    return matrix


def average_accuracy(rows: Rows) -> NDArray[np.float64]:
    """AA after each task, float64 [T] in [0, 1]: every task counts alike, whatever its size."""
    return np.array([row[: t + 1].mean() for t, row in enumerate(accuracy_matrix(rows))])


def average_learning_accuracy(rows: Rows) -> NDArray[np.float64]:
    """ALA after each task, float64 [T] in [0, 1]: mean accuracy of the tasks when they were new (equation 2)."""
    own = np.diagonal(accuracy_matrix(rows))
    return np.cumsum(own) / np.arange(1, len(own) + 1)


def average_forgetting(rows: Rows) -> NDArray[np.float64]:
    """AFM after each task, float64 [T] in [-1, 1], 0 after the first (equation 1); negative is backward transfer."""
    matrix = accuracy_matrix(rows)
    own = np.diagonal(matrix)
    return _over_earlier(matrix, lambda t: own[:t] - matrix[t, :t], first=0.0)


def max_forgetting(rows: Rows) -> NDArray[np.float64]:
    """Forgetting against the best accuracy a task had before, float64 [T] in [-1, 1] (Chaudhry et al.,
    arXiv 1801.10112)."""
    matrix = accuracy_matrix(rows)

    def lost(t: int) -> NDArray[np.float64]:
        best = [matrix[i:t, i].max() for i in range(t)]
        return np.array(best) - matrix[t, :t]

    return _over_earlier(matrix, lost, first=0.0)


def average_retention(rows: Rows) -> NDArray[np.float64]:
    """AR as 1 - AFM after each task, float64 [T] in [0, 2], 1 after the first."""
    return 1 - average_forgetting(rows)


def retention_ratio(rows: Rows) -> NDArray[np.float64]:
    """AR as the mean share of the first accuracy that is left, at most 1, float64 [T]; 1 where nothing was learned."""
    matrix = accuracy_matrix(rows)
    own = np.diagonal(matrix)

    def kept(t: int) -> NDArray[np.float64]:
        learned = np.where(own[:t] == 0, 1.0, own[:t])
        ratio = np.minimum(1.0, matrix[t, :t] / learned)
        # Undefined stays undefined, also where nothing was learned.
        return np.where((own[:t] == 0) & ~np.isnan(ratio), 1.0, ratio)

    return _over_earlier(matrix, kept, first=1.0)


def average_incremental_accuracy(rows: Rows) -> float:
    """AAA in [0, 1]: the mean of AA over all steps."""
    return float(average_accuracy(rows).mean())


def backward_transfer(rows: Rows) -> float:
    """BWT in [-1, 1]: minus the forgetting after the last task."""
    return float(0.0 - average_forgetting(rows)[-1])


def difficulty(rows: Rows, *, learning_weight: float = 1.0, forgetting_weight: float = 1.0) -> NDArray[np.float64]:
    """How hard the sequence is after each task, float64 [T] in [0, 1] for any accuracies.

        (w_a (1 - ALA) + w_f (AFM + 1)) / (w_a + 2 w_f)

    The paper's reward (equation 4) combines the same two; its weights are not known. With w_f/w_a = (t-1)/t this is
    1 - AA up to scale, since AA = ALA - (t-1)/t AFM.

    Raises:
        UsageError: a negative weight, or both 0.
    """
    if min(learning_weight, forgetting_weight) < 0 or learning_weight + forgetting_weight == 0:
        raise UsageError(
            f"weights of the reward: learning {learning_weight}, forgetting {forgetting_weight}; "
            "both must be 0 or more and one above 0"
        )
    learning = learning_weight * (1 - average_learning_accuracy(rows))
    forgetting = forgetting_weight * (average_forgetting(rows) + 1)
    return (learning + forgetting) / (learning_weight + 2 * forgetting_weight)


def sample_weighted_accuracy(rows: Rows, sizes: Sequence[int]) -> NDArray[np.float64]:
    """Accuracy over all held-out samples after each task, float64 [T] in [0, 1]: large tasks count more.

    Args:
        sizes: held-out samples of each task, at least 1.

    Raises:
        UsageError: another number of sizes than tasks, or an empty task.
    """
    matrix = accuracy_matrix(rows)
    if len(sizes) != len(matrix) or min(sizes) < 1:
        raise UsageError(f"sizes is {list(sizes)}; it must hold a number of 1 or more for each of {len(matrix)} tasks")
    weights = np.asarray(sizes, dtype=np.float64)
    return np.array([np.average(matrix[t, : t + 1], weights=weights[: t + 1]) for t in range(len(matrix))])


def continual_metrics(rows: Rows) -> dict[str, float]:
    """All metrics after the last task; `DEFINITIONS` says what each is."""
    return {
        "aa": float(average_accuracy(rows)[-1]),
        "aaa": average_incremental_accuracy(rows),
        "ala": float(average_learning_accuracy(rows)[-1]),
        "afm": float(average_forgetting(rows)[-1]),
        "afm_max": float(max_forgetting(rows)[-1]),
        "ar": float(average_retention(rows)[-1]),
        "ar_ratio": float(retention_ratio(rows)[-1]),
        "bwt": backward_transfer(rows),
    }


def _over_earlier(
    matrix: NDArray[np.float64], terms: Callable[[int], NDArray[np.float64]], *, first: float
) -> NDArray[np.float64]:
    """Mean of `terms(t)` over the earlier tasks for every t; `first` where there are none and t is defined."""
    head = first if not math.isnan(matrix[0, 0]) else math.nan
    return np.array([head, *(terms(t).mean() for t in range(1, len(matrix)))])
