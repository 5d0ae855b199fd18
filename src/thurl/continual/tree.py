"""Monte Carlo tree search with a bounded depth: the four phases of CLDyB's figure 1 (arXiv 2503.04655).

Deterministic problems with known children. The paper's constants and its return are not known; ours: UCB1 with the
natural logarithm, and the discounted mean of the rewards on the path, which keeps values in the range of one reward so
that one exploration constant serves every depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from thurl.errors import UsageError


__all__ = ["Path", "Simulation", "Tree", "TreeProblem", "normalised_return", "tree_search"]

Path = tuple[int, ...]
"""Numbers of the children from the root on; the root is ()."""


class TreeProblem(Protocol):
    """What is searched."""

    def children(self, path: Path) -> int:
        """How many children the node has; 0 ends every path through it."""
        ...

    def reward(self, path: Path) -> float:
        """Of the last edge of `path`, which has at least one."""
        ...

    def rollout(self, path: Path, count: int) -> int:
        """The child, 0..count-1, by which a roll-out leaves `path`."""
        ...


@dataclass(frozen=True)
class Simulation:
    """One simulation: the node added or reached, the whole path with its roll-out, and the return."""

    leaf: Path
    path: Path
    value: float


@dataclass
class Tree:
    """Visits and summed returns per node; nodes of roll-outs are not in it."""

    visits: dict[Path, int] = field(default_factory=lambda: {(): 0})
    totals: dict[Path, float] = field(default_factory=lambda: {(): 0.0})
    trace: list[Simulation] = field(default_factory=list)
    stopped_early: bool = False

    def value(self, path: Path) -> float:
        """Mean return of a visited node."""
        return self.totals[path] / self.visits[path]

    def best(self, by: str = "visits") -> int:
        """Child of the root to commit to: most visits, then the highest value, then the lowest number; `by` "value"
        asks for the value first.

        Raises:
            UsageError: an unknown order, or no child was visited.
        """
        if by not in ("visits", "value"):
            raise UsageError(f"commit is {by!r}; choose visits or value")
        tried = [path for path in self.visits if len(path) == 1 and self.visits[path]]
        if not tried:
            raise UsageError("no child of the root was visited; there is nothing to commit to")
        keys: dict[Path, tuple[float, float]] = {path: (self.visits[path], self.value(path)) for path in tried}
        if by == "value":
            keys = {path: (value, visits) for path, (visits, value) in keys.items()}
        return min(tried, key=lambda path: (-keys[path][0], -keys[path][1], path))[0]

    def subtree(self, child: int) -> Tree:
        """The tree below a child of the root, which becomes the root."""
        kept = [path for path in self.visits if path[:1] == (child,)]
        visits = {path[1:]: self.visits[path] for path in kept} or {(): 0}
        return Tree(visits, {path[1:]: self.totals[path] for path in kept} or {(): 0.0})


def normalised_return(rewards: Sequence[float], discount: float = 1.0) -> float:
    """Discounted mean: sum of discount^(i-1) r_i over sum of discount^(i-1); 0 for no reward."""
    weights = [discount**step for step in range(len(rewards))]
    return sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights) if rewards else 0.0


def tree_search(
    problem: TreeProblem,
    *,
    depth: int,
    simulations: int,
    exploration: float,
    discount: float = 1.0,
    scale: str = "none",
    early_stop: bool = False,
    tree: Tree | None = None,
    prepare: Callable[[Sequence[Path]], None] | None = None,
) -> Tree:
    """Simulate; see the module for the rules.

    A simulation goes down by UCB1 (equal values: the lowest number), stops at the first child that was never visited
    (the lowest number), rolls out to `depth` by `problem.rollout`, and adds its return to all nodes from there to the
    root. The return counts all steps from the root on.

    Args:
        depth: edges of a path at most, at least 1.
        simulations: at least 1.
        exploration: weight of sqrt(ln N_parent / N_child).
        discount: in (0, 1].
        scale: "minmax" maps the values of the tree to [0, 1] before UCB1; "none" takes them as they are.
        early_stop: stop once the leading child cannot be overtaken in visits.
        tree: goes on from it; it is changed.
        prepare: told of paths whose rewards are certain to be asked for, so that they may be found side by side: the
            children of the root that were never visited, each of which has a simulation of its own.

    Raises:
        UsageError: options outside their range.
    """
    _check(depth, simulations, exploration, discount, scale)
    tree = Tree() if tree is None else tree
    rewards: dict[Path, float] = {}
    counts: dict[Path, int] = {}

    def children(path: Path) -> int:
        if len(path) >= depth:
            return 0
        if path not in counts:
            counts[path] = problem.children(path)
        return counts[path]

    def reward(path: Path) -> float:
        if path not in rewards:
            rewards[path] = problem.reward(path)
        return rewards[path]

    # An early stop may come before they all had theirs, where visits were kept.
    if prepare is not None and not (early_stop and tree.visits[()]):
        new = [(number,) for number in range(children(())) if not tree.visits.get((number,))]
        prepare(new[:simulations])
    for done in range(simulations):
        leaf = _select(tree, children, exploration, scale)
        path = leaf
        while count := children(path):
            path = (*path, problem.rollout(path, count))
        value = normalised_return([reward(path[:length]) for length in range(1, len(path) + 1)], discount)
        for length in range(len(leaf) + 1):
            node = leaf[:length]
            tree.visits[node] = tree.visits.get(node, 0) + 1
            tree.totals[node] = tree.totals.get(node, 0.0) + value
        tree.trace.append(Simulation(leaf, path, value))
        if early_stop and _decided(tree, simulations - done - 1):
            tree.stopped_early = True
            break
    return tree


def _select(tree: Tree, children: Callable[[Path], int], exploration: float, scale: str) -> Path:
    node: Path = ()
    low, high = 0.0, 1.0
    if scale == "minmax":
        values = [tree.value(path) for path in tree.visits if tree.visits[path]]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)

    def upper(child: Path) -> float:
        value = (tree.value(child) - low) / (high - low) if high > low else 0.5
        return value + exploration * math.sqrt(math.log(tree.visits[child[:-1]]) / tree.visits[child])

    while count := children(node):
        below = [(*node, number) for number in range(count)]
        new = next((child for child in below if not tree.visits.get(child)), None)
        if new is not None:
            return new
        node = max(below, key=upper)  # max keeps the first of equal ones
    return node


def _decided(tree: Tree, left: int) -> bool:
    found = sorted((tree.visits[path] for path in tree.visits if len(path) == 1), reverse=True)
    return len(found) > 1 and found[0] - found[1] > left


def _check(depth: int, simulations: int, exploration: float, discount: float, scale: str) -> None:
    problems = []
    if depth < 1:
        problems.append(f"depth is {depth}; it must be 1 or more")
    if simulations < 1:
        problems.append(f"simulations is {simulations}; it must be 1 or more")
    if not exploration >= 0:
        problems.append(f"exploration is {exploration}; it must be 0 or more")
    if not 0 < discount <= 1:
        problems.append(f"discount is {discount}; it must be above 0 and at most 1")
    if scale not in ("none", "minmax"):
        problems.append(f"scale is {scale!r}; choose none or minmax")
    if problems:
        raise UsageError(problems)
