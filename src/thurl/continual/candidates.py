"""The next tasks a search may choose from: sampled, clustered, one per cluster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from thurl.continual.class_data import ClassData
from thurl.continual.clustering import cluster_labels, pick_members, task_embeddings
from thurl.continual.evaluator import Evaluator, Tasks
from thurl.continual.learner import current_features
from thurl.continual.mdp import SearchSettings
from thurl.continual.metrics import average_forgetting, average_learning_accuracy
from thurl.continual.ridge import class_means, cosine_logits
from thurl.continual.sampling import free_classes, greedy_tasks, keyed_generator, mean_similarity, random_task
from thurl.training.threads import one_thread


__all__ = ["Candidates", "ClosedFormProxy"]

Task = tuple[int, ...]
Array = NDArray[np.float64]


class ClosedFormProxy:
    """SimpleCIL on every sequence at once: one matrix of cosines answers for all, without training.

    Args:
        data: with features.
    """

    def __init__(self, data: ClassData, split: str = "val") -> None:
        everything = range(len(data.classes))
        train, rows = data.rows(everything, "train"), data.rows(everything, split)
        with one_thread():
            means = class_means(data.frozen(train), data.labels[train], torch.arange(len(data.classes)))
            self._logits = cosine_logits(data.frozen(rows), means).numpy()
        labels = data.labels[rows].numpy()
        self._rows = [np.flatnonzero(labels == index) for index in everything]

    def accuracy(self, task: Sequence[int], seen: Sequence[int]) -> float:
        """Share of the task's held-out samples that go to their class, among the classes `seen`, in their order."""
        rows = np.concatenate([self._rows[index] for index in task])
        truth = np.concatenate([np.full(len(self._rows[index]), index) for index in task])
        found = np.asarray(seen)[self._logits[np.ix_(rows, np.asarray(seen))].argmax(axis=1)]
        return float((found == truth).mean())

    def rows(self, tasks: Sequence[Sequence[int]]) -> list[list[float]]:
        """The accuracy matrix of SimpleCIL on a sequence."""
        matrix, seen = [], []
        for step, task in enumerate(tasks):
            seen += list(task)
            matrix.append([self.accuracy(tasks[i], seen) for i in range(step + 1)])
        return matrix

    def hardness(self, tasks: Sequence[Sequence[int]]) -> float:
        """1 - ALA + AFM after the last task."""
        rows = self.rows(tasks)
        return float(1 - average_learning_accuracy(rows)[-1] + average_forgetting(rows)[-1])

    def responses(self, tasks: Sequence[Sequence[int]], task: Sequence[int]) -> tuple[float, float]:
        """Accuracy inside the task alone, and the share lost to classes seen before."""
        inside = self.accuracy(task, task)
        seen = [index for earlier in (*tasks, task) for index in earlier]
        return inside, inside - self.accuracy(task, seen)


class Candidates:
    """Candidate tasks after each sequence; they depend on the seed and the sequence alone.

    Args:
        evaluator: its learners' encoders, as they are after a sequence, say which classes are alike.
        settings: of the search.
    """

    def __init__(self, evaluator: Evaluator, settings: SearchSettings) -> None:
        self.evaluator = evaluator
        self.settings = settings
        self._proxy: ClosedFormProxy | None = None
        self._sampled: dict[Tasks, list[Task]] = {}
        self._embeddings: dict[Tasks, Array] = {}
        self._clustered: dict[Tasks, list[Task]] = {}

    @property
    def proxy(self) -> ClosedFormProxy:
        """Made when first asked for, since it needs features."""
        if self._proxy is None:
            self._proxy = ClosedFormProxy(self.evaluator.data, self.evaluator.split)
        return self._proxy

    def generator(self, tasks: Tasks, purpose: str) -> np.random.Generator:
        """Keyed by seed, names of the classes in the sequence, and purpose."""
        names = [[self.evaluator.data.classes[index] for index in task] for task in tasks]
        return keyed_generator(self.settings.seed, names, purpose)

    def sampled(self, tasks: Tasks) -> list[Task]:
        """Before clustering."""
        if tasks not in self._sampled:
            self._sampled[tasks] = self.evaluator.ranks.agree(lambda: self._sample(tasks))
        return self._sampled[tasks]

    def clustered(self, tasks: Tasks) -> list[Task]:
        """What a node of the tree has as children, in a fixed order; empty where too few classes are left."""
        if tasks not in self._clustered:
            self.sampled(tasks)
            self._clustered[tasks] = self.evaluator.ranks.agree(lambda: self._cluster(tasks))
        return self._clustered[tasks]

    def hardest(self, tasks: Tasks) -> Task:
        """Of the sampled ones for SimpleCIL, see `hardness`."""
        found = self.sampled(tasks)
        return self.evaluator.ranks.agree(lambda: found[int(self.hardness(tasks, found).argmax())])

    def random(self, tasks: Tasks, generator: np.random.Generator) -> Task | None:
        """A uniform task of free classes."""
        groups = self.evaluator.data.groups
        return random_task(free_classes(groups, tasks), self.settings.classes_per_task, generator, groups)

    def hardness(self, tasks: Tasks, found: Sequence[Task]) -> Array:
        """Of each task after the sequence for SimpleCIL; the easiest is the hardest where the search is for that."""
        values = np.array([self.proxy.hardness([*tasks, task]) for task in found])
        return -values if self.settings.reward.easiest else values

    def _cluster(self, tasks: Tasks) -> list[Task]:
        found = self._sampled[tasks]
        if not found:
            return []
        embeddings = self._embeddings.pop(tasks)
        if self.settings.responses:
            responses = np.array([self.proxy.responses(tasks, task) for task in found])
            embeddings = np.concatenate([embeddings, task_embeddings(found, (), responses)], axis=1)
        labels = cluster_labels(embeddings, self.settings.clusters)
        hardness = self.hardness(tasks, found) if self.settings.pick == "hardest" else None
        return [found[row] for row in pick_members(labels, self.generator(tasks, "pick"), hardness)]

    def _sample(self, tasks: Tasks) -> list[Task]:
        settings, groups = self.settings, self.evaluator.data.groups
        free = free_classes(groups, tasks)
        prototypes = self._prototypes(tasks, free)
        generator = self.generator(tasks, "sample")
        greedy = {"greedy": settings.starts, "random": 0, "mixed": (settings.starts + 1) // 2}[settings.candidates]
        found: list[Task] = []
        if greedy and free:
            similarity = mean_similarity(prototypes)
            found += greedy_tasks(similarity, free, settings.classes_per_task, greedy, generator, groups)
        for _ in range(settings.starts - greedy):
            task = self.random(tasks, generator)
            if task is not None and frozenset(task) not in map(frozenset, found):
                found.append(task)
        if found:
            self._embeddings[tasks] = task_embeddings(found, prototypes)
        return found

    def _prototypes(self, tasks: Tasks, free: Sequence[int]) -> list[Array]:
        """Class prototypes under each encoder, [C, D]; 0 for classes that are not free."""
        evaluator, data = self.evaluator, self.evaluator.data
        rows = data.rows(free, "train") if free else torch.zeros(0, dtype=torch.int64)
        wanted = torch.tensor(list(free), dtype=torch.int64)
        matrices: list[Array] = []
        frozen = False
        for index, learner in enumerate(evaluator.learners):
            if learner.frozen_encoder and frozen and self.settings.dedupe_frozen:
                continue
            frozen = frozen or learner.frozen_encoder
            state = evaluator.state(tasks, index)
            with one_thread():
                features = current_features(learner, state, data, rows)
            matrix = np.zeros((len(data.classes), features.shape[1]))
            if free:
                matrix[list(free)] = class_means(features, data.labels[rows], wanted).numpy()
            matrices.append(matrix)
        return matrices
