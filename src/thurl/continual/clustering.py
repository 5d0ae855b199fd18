"""Few tasks that stand for many: candidates are clustered by what they look like and by how a closed-form learner
answers to them, and one of each cluster is kept.

CLDyB shrinks its sampled tasks by "functional task clustering" and draws one per cluster; features and algorithm are
not known. Ours: the mean prototype of the task under each encoder, optionally with the answers of SimpleCIL, and
k-means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from thurl.errors import MissingRequirementError, UsageError


__all__ = ["cluster_labels", "pick_members", "task_embeddings"]

Array = NDArray[np.float64]
Task = Sequence[int]


def task_embeddings(tasks: Sequence[Task], prototypes: Sequence[Array], responses: Array | None = None) -> Array:
    """A row per task, float64 [n, sum of D_m (+ R)].

    Args:
        prototypes: class prototypes [C, D_m] of each encoder; a task's mean is scaled to length 1.
        responses: answers of a learner [n, R]; each column is scaled to mean 0 and deviation 1, a constant one to 0.
    """
    parts = []
    for matrix in prototypes:
        means = np.stack([matrix[list(task)].mean(axis=0) for task in tasks])
        parts.append(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12))
    if responses is not None:
        spread = responses.std(axis=0)
        parts.append((responses - responses.mean(axis=0)) / np.where(spread > 0, spread, 1.0))
    return np.concatenate(parts, axis=1)


def cluster_labels(embeddings: Array, clusters: int) -> NDArray[np.int64]:
    """Cluster of each row, int64 [n]; every row is its own where there are no more rows than clusters.

    Raises:
        MissingRequirementError: scikit-learn is not installed.
    """
    if clusters < 1:
        raise UsageError(f"clusters is {clusters}; it must be 1 or more")
    if len(embeddings) <= clusters:
        return np.arange(len(embeddings))
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise MissingRequirementError("clustering needs scikit-learn; run `pip install 'thurl[vision]'`") from None
    # Tasks of one place are one cluster; more clusters than places would make k-means warn.
    places = len(np.unique(embeddings, axis=0))
    found = KMeans(n_clusters=min(clusters, places), n_init=3, random_state=0).fit_predict(embeddings)
    # Numbered by their first member, so that equal clusterings have equal labels.
    first = {int(label): number for number, label in enumerate(dict.fromkeys(found.tolist()))}
    return np.array([first[int(label)] for label in found])


def pick_members(
    labels: NDArray[np.int64], generator: np.random.Generator, hardness: Array | None = None
) -> list[int]:
    """One row of each cluster, in the order of the clusters.

    Args:
        labels: from `cluster_labels`.
        hardness: float [n]: the hardest of a cluster is picked, the first of equal ones; None draws uniformly.
    """
    picked = []
    for cluster in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == cluster)
        best = generator.integers(len(members)) if hardness is None else int(hardness[members].argmax())
        picked.append(int(members[best]))
    return picked
