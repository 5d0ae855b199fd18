"""The decision process: a state is the learners after some tasks and the classes left, an action is the next task, the
reward is how hard the benchmark has become.

CLDyB (arXiv 2503.04655); its equation 4 combines learning and forgetting with weights that are not known. Other
rewards are options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from thurl.continual.metrics import Rows, average_accuracy, difficulty
from thurl.errors import UsageError


__all__ = ["AGGREGATES", "REWARDS", "RewardSettings", "SearchSettings", "joint_reward"]

REWARDS = ("difficulty", "neg_aa", "neg_aa_gain")
AGGREGATES = ("mean", "min", "max", "cvar")


@dataclass(frozen=True)
class RewardSettings:
    """What counts as hard; every reward lies in [0, 1].

    Args:
        kind: `difficulty` ((1 - ALA) and AFM, see `thurl.continual.metrics.difficulty`), `neg_aa` (1 - AA) or
            `neg_aa_gain` (half of 1 + the drop of AA by the last task; AA is 1 before the first).
        learning_weight, forgetting_weight: of `difficulty`.
        aggregate: over the learners: `mean`; `min` and `max`; `cvar`, the mean of the lowest `cvar_share` of them, for
            a benchmark that is hard for every learner.
        cvar_share: in (0, 1].
        easiest: search for the easiest sequence: 1 - reward.
        targets: AA to come close to after each task instead, 1 - |AA - target|; () for none.

    Raises:
        UsageError: values outside their range, all together.
    """

    kind: str = "difficulty"
    learning_weight: float = 1.0
    forgetting_weight: float = 1.0
    aggregate: str = "mean"
    cvar_share: float = 0.5
    easiest: bool = False
    targets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in REWARDS:
            problems.append(f"reward is {self.kind!r}; choose from {', '.join(REWARDS)}")
        if self.aggregate not in AGGREGATES:
            problems.append(f"aggregate is {self.aggregate!r}; choose from {', '.join(AGGREGATES)}")
        weights = (self.learning_weight, self.forgetting_weight)
        if not min(weights) >= 0 or not sum(weights) > 0:
            problems.append(f"weights of learning and forgetting are {weights}; both 0 or more and one above 0")
        if not 0 < self.cvar_share <= 1:
            problems.append(f"cvar_share is {self.cvar_share}; it must be above 0 and at most 1")
        if self.easiest and self.targets:
            problems.append("easiest and a target exclude each other; choose one")
        if problems:
            raise UsageError(problems)


@dataclass(frozen=True)
class SearchSettings:
    """A search. The paper's numbers are not known: defaults are ours.

    Args:
        tasks: T, in a sequence.
        classes_per_task: K.
        starts: n, first classes of greedy candidates.
        clusters: G, children of a node.
        simulations: S, per committed task.
        depth: d, tasks looked ahead.
        exploration: weight of the exploration term. Values of siblings are close: large ones visit all alike.
        discount: of later rewards, in (0, 1].
        reward: see `RewardSettings`.
        candidates: `greedy` (the paper's), `random` (uniform tasks) or `mixed` (half of each).
        pick: member of a cluster: `uniform` (the paper's), or `hardest` for SimpleCIL, which costs no training.
        responses: cluster by SimpleCIL's answers, too.
        dedupe_frozen: learners with a frozen encoder share one vote in the similarity of classes.
        scale: `minmax` scales values over the tree before exploration is added; `none`.
        commit: the child with most `visits`, or the highest `value`.
        keep_subtree: go on with what was seen below the committed child.
        early_stop: end the simulations of a task once its leader cannot be overtaken.
        target_quantile: look for this quantile of the AA of `references` sequences instead of the hardest.
        references: sequences that the quantile is taken of, half of them random, half of greedy candidates.
        seed: of everything that is drawn.

    Raises:
        UsageError: values outside their range, all together.
    """

    tasks: int = 10
    classes_per_task: int = 20
    starts: int = 30
    clusters: int = 6
    simulations: int = 24
    depth: int = 2
    exploration: float = 0.05
    discount: float = 1.0
    reward: RewardSettings = field(default_factory=RewardSettings)
    candidates: str = "greedy"
    pick: str = "uniform"
    responses: bool = True
    dedupe_frozen: bool = True
    scale: str = "none"
    commit: str = "visits"
    keep_subtree: bool = False
    early_stop: bool = False
    target_quantile: float | None = None
    references: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"tasks": 1, "classes_per_task": 1, "starts": 1, "clusters": 1, "simulations": 1, "depth": 1,
                 "references": 2, "seed": 0}  # fmt: skip
        problems = [
            f"{name} is {getattr(self, name)}; it must be {low} or more"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        choices = {
            "candidates": ("greedy", "random", "mixed"),
            "pick": ("uniform", "hardest"),
            "scale": ("none", "minmax"),
            "commit": ("visits", "value"),
        }
        problems += [
            f"{name} is {getattr(self, name)!r}; choose from {', '.join(valid)}"
            for name, valid in choices.items()
            if getattr(self, name) not in valid
        ]
        if not self.exploration >= 0:
            problems.append(f"exploration is {self.exploration}; it must be 0 or more")
        if not 0 < self.discount <= 1:
            problems.append(f"discount is {self.discount}; it must be above 0 and at most 1")
        if self.target_quantile is not None:
            if not 0 <= self.target_quantile <= 1:
                problems.append(f"target_quantile is {self.target_quantile}; it must lie in [0, 1]")
            if self.pick == "hardest" or self.reward.easiest:
                problems.append("target_quantile wants neither the hardest nor the easiest; take pick: uniform")
        if problems:
            raise UsageError(problems)

    def check_pool(self, groups: Sequence[int]) -> None:
        """Whether a sequence can be built at all. With classes enough no path is a dead end.

        Raises:
            UsageError: fewer classes, after aliases, than the sequence uses.
        """
        needed, there = self.tasks * self.classes_per_task, len(set(groups))
        if needed > there:
            raise UsageError(
                f"{self.tasks} tasks of {self.classes_per_task} classes need {needed}; the pool has {len(groups)}, "
                f"{there} without aliases. Take fewer or smaller tasks, or more classes"
            )


def joint_reward(rows: Sequence[Rows], settings: RewardSettings) -> float:
    """Reward of the last task, in [0, 1].

    Args:
        rows: the accuracy matrix of each learner.
    """
    values = np.sort([_reward(matrix, settings) for matrix in rows])
    if settings.aggregate == "cvar":
        return float(values[: max(1, round(settings.cvar_share * len(values)))].mean())
    return float({"mean": values.mean(), "min": values[0], "max": values[-1]}[settings.aggregate])


def _reward(rows: Rows, settings: RewardSettings) -> float:
    if settings.targets:
        return 1 - abs(float(average_accuracy(rows)[-1]) - settings.targets[len(rows) - 1])
    if settings.kind == "difficulty":
        weights = {"learning_weight": settings.learning_weight, "forgetting_weight": settings.forgetting_weight}
        value = float(difficulty(rows, **weights)[-1])
    else:
        accuracy = [1.0, *average_accuracy(rows)]
        drop = accuracy[-2] - accuracy[-1]
        value = 1 - accuracy[-1] if settings.kind == "neg_aa" else (1 + drop) / 2
    return 1 - value if settings.easiest else value
