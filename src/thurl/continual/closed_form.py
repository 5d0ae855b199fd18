"""Learners without gradient steps, on the features of a frozen encoder: they learn a task in milliseconds.

SimpleCIL (arXiv 2303.07338), RanPAC (arXiv 2307.02251) without its first phase, which is in
`thurl.continual.gradient.first_task`, a linear discriminant with one covariance. Each learns the same whatever the
order of the tasks, up to the order of columns. Unlike LAMDA-PILOT none is told the number of classes, and RanPAC's
ridge is chosen on a fixed, stratified part.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from thurl.continual.class_data import ClassData, TaskData
from thurl.continual.learner import State
from thurl.continual.ridge import (
    class_means,
    cosine_logits,
    one_hot,
    random_features,
    random_projection,
    ridge_weights,
    select_ridge,
    shared_covariance_logits,
)
from thurl.errors import UsageError


__all__ = ["LDA", "MEMORY", "RanPAC", "SimpleCIL"]

MEMORY = 2 * 2**30
"""Bytes of Gram matrices a RanPAC learner keeps in memory; those it lost are computed again."""


class _Frozen:
    frozen_encoder = True
    name = ""

    def features(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return data.frozen(rows)

    def init(self, data: ClassData, seed: int) -> State:
        dimension = data.frozen(torch.zeros(0, dtype=torch.int64)).shape[1]
        return {"classes": torch.zeros(0, dtype=torch.int64), "means": torch.zeros(0, dimension, dtype=torch.float64)}

    def _arrived(self, state: State, task: TaskData) -> dict[str, torch.Tensor]:
        new = torch.tensor(task.classes, dtype=torch.int64)
        means = class_means(task.data.frozen(task.rows), task.labels, new)
        return {"classes": torch.cat([state["classes"], new]), "means": torch.cat([state["means"], means])}


class SimpleCIL(_Frozen):
    """The mean feature of each class; a sample belongs to the nearest by cosine. Nothing is trained."""

    name = "simplecil"

    def config(self) -> dict[str, Any]:
        return {"name": self.name}

    def learn(self, state: State, task: TaskData, seed: int) -> State:
        return self._arrived(state, task)

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return cosine_logits(data.frozen(rows), state["means"])


class LDA(_Frozen):
    """Linear discriminant with one covariance for all classes, added up class by class.

    Args:
        ridge: added to the diagonal of the covariance.
    """

    name = "lda"

    def __init__(self, ridge: float = 1e-2) -> None:
        if not ridge > 0:
            raise UsageError(f"lda: ridge is {ridge}; it must be above 0")
        self.ridge = ridge

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "ridge": self.ridge}

    def init(self, data: ClassData, seed: int) -> State:
        empty = super().init(data, seed)
        size = empty["means"].shape[1]
        scatter = torch.zeros(size, size, dtype=torch.float64)
        return {**empty, "scatter": scatter, "count": torch.zeros((), dtype=torch.int64)}

    def learn(self, state: State, task: TaskData, seed: int) -> State:
        new = self._arrived(state, task)
        features = task.data.frozen(task.rows)
        own = one_hot(task.labels, new["classes"]) @ new["means"]
        apart = features - own
        return {**new, "scatter": state["scatter"] + apart.T @ apart, "count": state["count"] + len(features)}

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return shared_covariance_logits(
            data.frozen(rows), state["means"], state["scatter"], int(state["count"]), self.ridge
        )


class RanPAC:
    """Ridge regression on random features, with the Gram matrix of all tasks.

    The Gram matrix is a sum over tasks. A state therefore names the samples it has seen instead of holding `width`
    squared numbers, and the matrix of each task is computed once and kept for every sequence that contains the task.

    Args:
        width: random features.
        ridge: fixed, or None: chosen per task from `thurl.continual.ridge.RIDGE_GRID` on a fifth of its samples.
    """

    name = "ranpac"
    frozen_encoder = True

    def __init__(self, width: int = 10000, ridge: float | None = None) -> None:
        problems = []
        if width < 1:
            problems.append(f"ranpac: width is {width}; it must be 1 or more")
        if ridge is not None and not ridge > 0:
            problems.append(f"ranpac: ridge is {ridge}; it must be above 0, or nothing for a choice per task")
        if problems:
            raise UsageError(problems)
        self.width = width
        self.ridge = ridge
        self._grams: OrderedDict[tuple[int, bytes, bytes], torch.Tensor] = OrderedDict()
        self._data: ClassData | None = None  # whose samples the matrices are of

    def __getstate__(self) -> dict[str, Any]:
        # Another process computes the matrices itself: sending them takes longer.
        return {**self.__dict__, "_grams": OrderedDict(), "_data": None}

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "width": self.width, "ridge": self.ridge}

    def init(self, data: ClassData, seed: int) -> State:
        nothing = torch.zeros(0, dtype=torch.int64)
        return {
            "classes": nothing,
            "rows": nothing.clone(),
            "sizes": nothing.clone(),
            "seed": torch.tensor(seed, dtype=torch.int64),
            "targets": torch.zeros(self.width, 0, dtype=torch.float64),
            "weights": torch.zeros(self.width, 0, dtype=torch.float64),
        }

    def learn(self, state: State, task: TaskData, seed: int) -> State:
        rows, new = task.rows, torch.tensor(task.classes, dtype=torch.int64)
        hidden, member = self._hidden(state, task.data, rows), one_hot(task.labels, new)
        ridge = self.ridge
        if ridge is None:
            order = _stratified(task.labels, seed)
            ridge = select_ridge(hidden[order], member[order])
        seen = torch.cat([state["rows"], rows])
        sizes = torch.cat([state["sizes"], torch.tensor([len(rows)])])
        targets = torch.cat([state["targets"], hidden.T @ member], dim=1)
        gram = torch.zeros(self.width, self.width, dtype=torch.float64)
        for part in seen.split(sizes.tolist()):
            gram += self._gram(state, task.data, part)
        return {
            "classes": torch.cat([state["classes"], new]),
            "rows": seen,
            "sizes": sizes,
            "seed": state["seed"],
            "targets": targets,
            "weights": ridge_weights(gram, targets, ridge),
        }

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return self._hidden(state, data, rows) @ state["weights"]

    def features(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return data.frozen(rows)

    def features_key(self, state: State) -> bytes:
        """Differs for states whose features differ; here they are always the same."""
        return b""

    def _hidden(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        features = self.features(state, data, rows)
        return random_features(features, random_projection(int(state["seed"]), features.shape[1], self.width))

    def _gram(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        if self._data is not data:
            self._grams.clear()
            self._data = data
        key = (int(state["seed"]), rows.numpy().tobytes(), self.features_key(state))
        if key not in self._grams:
            hidden = self._hidden(state, data, rows)
            self._grams[key] = hidden.T @ hidden
            while len(self._grams) > max(1, MEMORY // (8 * self.width**2)):
                self._grams.popitem(last=False)
        self._grams.move_to_end(key)
        return self._grams[key]


def _stratified(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Order of the rows whose last fifth holds a fifth of every class, int64 [n]."""
    generator = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in labels.unique().tolist():
        rows = np.flatnonzero(labels.numpy() == label)
        place[generator.permutation(rows)] = (np.arange(len(rows)) + generator.random()) / len(rows)
    return torch.from_numpy(np.argsort(place, kind="stable"))
