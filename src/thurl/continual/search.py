"""The search: at every step look ahead by tree search, commit one task, train on, and look again (CLDyB, figure 1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from thurl.continual.candidates import Candidates
from thurl.continual.evaluator import Cost, Evaluator, Tasks
from thurl.continual.mdp import SearchSettings, joint_reward
from thurl.continual.metrics import average_accuracy
from thurl.continual.sampling import keyed_generator
from thurl.continual.tree import Path, Tree, normalised_return, tree_search
from thurl.errors import UsageError


__all__ = ["Built", "Tell", "built", "most_trainings", "random_sequence", "search_sequence", "with_targets"]

Tell = Callable[[str], None]
"""Takes a line about what was done."""


@dataclass
class Built:
    """A sequence and what it took to build it.

    Args:
        builder: how it was built.
        tasks: numbers of the classes.
        rewards: after each task.
        accuracies: matrix of each learner on the split of the search, by name.
        cost: trainings and their seconds.
        wall: seconds from beginning to end, with what was not training.
        steps: what was chosen from at each task, JSON values.
    """

    builder: str
    tasks: Tasks
    rewards: tuple[float, ...]
    accuracies: dict[str, list[tuple[float, ...]]]
    cost: Cost
    wall: float
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def objective(self) -> float:
        """Mean reward over the tasks: what every builder maximises."""
        return normalised_return(self.rewards)


def search_sequence(evaluator: Evaluator, settings: SearchSettings, *, tell: Tell | None = None) -> Built:
    """A sequence that is hard (or easy, or of a given difficulty) for the evaluator's learners, on average.

    One learner is the paper's individual mode, several its joint mode. Nothing is drawn from a shared generator: the
    same settings give the same sequence, and a search that was killed goes on where its store ends.

    Args:
        evaluator: learners, seed, and the split that gives the reward.
        settings: see `SearchSettings`; with a `target_quantile` use `with_targets` first.
        tell: told about every committed task.

    Raises:
        UsageError: too few classes, or a quantile without targets.
        LearnerError: a learner failed.
    """
    settings.check_pool(evaluator.data.groups)
    _check_targets(settings)
    began = time.perf_counter()
    candidates = Candidates(evaluator, settings)
    tasks: Tasks = ()
    steps: list[dict[str, Any]] = []
    tree: Tree | None = None
    with evaluator.counted() as cost:
        for step in range(settings.tasks):
            problem = _Ahead(evaluator, settings, candidates, tasks)
            tree = tree_search(
                problem,
                depth=min(settings.depth, settings.tasks - step),
                simulations=settings.simulations,
                exploration=settings.exploration,
                discount=settings.discount,
                scale=settings.scale,
                early_stop=settings.early_stop,
                tree=tree if settings.keep_subtree else None,
                prepare=problem.prepare,
            )
            child = tree.best(settings.commit)
            steps.append(_record(problem, tree, child, len(candidates.sampled(tasks)), cost))
            tasks = (*tasks, problem.tasks((child,))[-1])
            if tell is not None:
                tell(
                    f"task {step + 1} of {settings.tasks}: reward {problem.reward((child,)):.3f}, "
                    f"{cost.trainings} trainings in {cost.seconds:.1f} s so far"
                )
            tree = tree.subtree(child)
        return built("search", evaluator, settings, tasks, cost, began, steps)


def built(
    builder: str,
    evaluator: Evaluator,
    settings: SearchSettings,
    tasks: Tasks,
    cost: Cost,
    began: float,
    steps: Sequence[dict[str, Any]] = (),
) -> Built:
    """A sequence with its rewards; trained where it is not known."""
    rows = {learner.name: evaluator.accuracies(tasks, m) for m, learner in enumerate(evaluator.learners)}
    rewards = tuple(
        joint_reward([matrix[:length] for matrix in rows.values()], settings.reward)
        for length in range(1, len(tasks) + 1)
    )
    return Built(builder, tasks, rewards, rows, cost, time.perf_counter() - began, list(steps))


def random_sequence(candidates: Candidates, generator: np.random.Generator) -> Tasks:
    """Tasks of uniformly drawn classes."""
    tasks: Tasks = ()
    for _ in range(candidates.settings.tasks):
        task = candidates.random(tasks, generator)
        assert task is not None  # check_pool counted the classes
        tasks = (*tasks, task)
    return tasks


def most_trainings(settings: SearchSettings, learners: int) -> int:
    """Trainings a search needs at most; repeated paths make it fewer."""
    ahead = sum(min(settings.depth, settings.tasks - step) for step in range(settings.tasks))
    return (settings.simulations * ahead + settings.tasks) * learners


def with_targets(evaluator: Evaluator, settings: SearchSettings) -> SearchSettings:
    """Settings whose reward is to come close to a quantile of the AA of reference sequences, after every task.

    Half of the references are random, half are drawn from the greedy candidates, so that the quantiles reach from easy
    to hard. Without a `target_quantile` the settings come back as they are.
    """
    if settings.target_quantile is None:
        return settings
    settings.check_pool(evaluator.data.groups)
    candidates = Candidates(evaluator, replace(settings, candidates="greedy"))
    generators = [keyed_generator(settings.seed, "reference", number) for number in range(settings.references)]
    sequences = [random_sequence(candidates, generator) for generator in generators[::2]]
    drawn: list[Tasks] = [()] * len(generators[1::2])
    for _ in range(settings.tasks):
        for number, generator in enumerate(generators[1::2]):
            found = candidates.sampled(drawn[number])
            drawn[number] = (*drawn[number], found[generator.integers(len(found))])
        evaluator.evaluate(drawn)
    sequences += drawn
    evaluator.evaluate(sequences)
    learners = range(len(evaluator.learners))
    reached = np.array(
        [np.mean([average_accuracy(evaluator.accuracies(tasks, m)) for m in learners], axis=0) for tasks in sequences]
    )
    targets = tuple(float(value) for value in np.quantile(reached, settings.target_quantile, axis=0))
    return replace(settings, candidates="mixed", reward=replace(settings.reward, targets=targets))


class _Ahead:
    """What may follow the tasks committed to, as a problem of `tree_search`."""

    def __init__(self, evaluator: Evaluator, settings: SearchSettings, candidates: Candidates, committed: Tasks):
        self.evaluator, self.settings = evaluator, settings
        self.candidates, self.committed = candidates, committed
        self._generator = candidates.generator(committed, "rollout")

    def tasks(self, path: Path) -> Tasks:
        tasks = self.committed
        for child in path:
            tasks = (*tasks, self.candidates.clustered(tasks)[child])
        return tasks

    def prepare(self, paths: Sequence[Path]) -> None:
        self.evaluator.evaluate([self.tasks(path) for path in paths])

    def children(self, path: Path) -> int:
        tasks = self.tasks(path)
        if tasks:
            # In one go, so that the learners train side by side where there are several processes.
            self.evaluator.evaluate([tasks])
        return len(self.candidates.clustered(tasks))

    def reward(self, path: Path) -> float:
        tasks = self.tasks(path)
        self.evaluator.evaluate([tasks])
        rows = [self.evaluator.accuracies(tasks, m) for m in range(len(self.evaluator.learners))]
        return joint_reward(rows, self.settings.reward)

    def rollout(self, path: Path, count: int) -> int:
        return int(self._generator.integers(count))


def _record(problem: _Ahead, tree: Tree, child: int, sampled: int, cost: Cost) -> dict[str, Any]:
    """A step for the log: the tree with the classes of every node. `path_trainings` is what its simulations and the
    committed task would have trained if no state below the root had been kept."""
    names = problem.evaluator.data.classes
    nodes = []
    for path in sorted(tree.visits):
        if path:
            task = problem.tasks(path)[-1]
            nodes.append(
                {
                    "path": list(path),
                    "classes": [names[index] for index in task],
                    "visits": tree.visits[path],
                    "value": tree.value(path),
                }
            )
    return {
        "candidates": sampled,
        "children": len(problem.candidates.clustered(problem.committed)),
        "committed": child,
        "simulations": len(tree.trace),
        "trainings": cost.trainings,
        "path_trainings": len(problem.evaluator.learners) * (1 + sum(len(item.path) for item in tree.trace)),
        "nodes": nodes,
    }


def _check_targets(settings: SearchSettings) -> None:
    if settings.target_quantile is not None and len(settings.reward.targets) < settings.tasks:
        raise UsageError("target_quantile needs the accuracies it is a quantile of; call `with_targets` first")
