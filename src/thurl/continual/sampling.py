"""Tasks that are hard to learn: classes that look alike to the learners (CLDyB's equation 5, solved greedily).

The paper draws a first class at random and adds the class most similar to those chosen. Which similarity it uses is
not known; ours is the cosine of class prototypes, averaged over the learners' encoders as they are now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from thurl.errors import UsageError


__all__ = ["free_classes", "greedy_task", "greedy_tasks", "keyed_generator", "mean_similarity", "random_task"]

Array = NDArray[np.float64]


def keyed_generator(*key: object) -> np.random.Generator:
    """A generator that depends on its key alone, not on what was drawn before: the candidates of a node are the same
    in whatever order the tree is visited. The key holds JSON values."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def mean_similarity(prototypes: Sequence[Array]) -> Array:
    """Cosine of class prototypes, averaged over encoders, float64 [C, C] in [-1, 1].

    Args:
        prototypes: mean features [C, D_m] of each encoder; norms below 1e-12 count as that.
    """
    if not prototypes:
        raise UsageError("no prototypes; at least one encoder is needed")
    units = [p / np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-12) for p in prototypes]
    return np.mean([unit @ unit.T for unit in units], axis=0)


def greedy_task(
    similarity: Array, start: int, free: Sequence[int], size: int, groups: Sequence[int] | None = None
) -> tuple[int, ...] | None:
    """`start` and then, one by one, the free class with the largest summed similarity to those chosen.

    Args:
        similarity: [C, C].
        free: classes to choose from, `start` among them; of equal ones the first in this order is taken.
        size: classes of a task.
        groups: alias group of each class; two of one group are never in a task.

    Returns:
        classes in the order they were added; None where fewer than `size` can be had.
    """
    order = np.asarray(free)
    group = np.arange(len(similarity)) if groups is None else np.asarray(groups)
    open_ = group[order] != group[start]
    chosen, summed = [start], similarity[start, order].copy()
    while len(chosen) < size:
        if not open_.any():
            return None
        best = int(order[np.where(open_, summed, -np.inf).argmax()])
        chosen.append(best)
        summed += similarity[best, order]
        open_ &= group[order] != group[best]
    return tuple(int(index) for index in chosen)


def greedy_tasks(
    similarity: Array,
    free: Sequence[int],
    size: int,
    starts: int,
    generator: np.random.Generator,
    groups: Sequence[int] | None = None,
) -> list[tuple[int, ...]]:
    """`greedy_task` from several first classes drawn without replacement; equal sets are kept once."""
    drawn = generator.permutation(np.asarray(free))[:starts]
    tasks = [greedy_task(similarity, int(first), free, size, groups) for first in drawn]
    return list({frozenset(task): task for task in reversed(tasks) if task is not None}.values())[::-1]


def random_task(
    free: Sequence[int], size: int, generator: np.random.Generator, groups: Sequence[int] | None = None
) -> tuple[int, ...] | None:
    """Classes drawn uniformly, no two of one alias group; None where fewer than `size` can be had."""
    chosen: list[int] = []
    taken: set[int] = set()
    for index in generator.permutation(np.asarray(free)) if len(free) else ():
        group = int(index) if groups is None else groups[index]
        if group not in taken:
            chosen.append(int(index))
            taken.add(group)
        if len(chosen) == size:
            return tuple(chosen)
    return None


def free_classes(groups: Sequence[int], used: Sequence[Sequence[int]]) -> list[int]:
    """Classes whose alias group no class of the `used` tasks is in, in ascending order."""
    seen = {groups[index] for task in used for index in task}
    return [index for index in range(len(groups)) if groups[index] not in seen]
