"""Learners that tune the encoder on the first task alone and compute closed forms on its features from then on."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from thurl.continual.class_data import ClassData, TaskData
from thurl.continual.closed_form import RanPAC
from thurl.continual.gradient.base import GradientLearner
from thurl.continual.learner import State
from thurl.continual.ridge import class_means, cosine_logits
from thurl.errors import UsageError


__all__ = ["APER", "FirstTaskLearner", "TunedRanPAC"]

_FIRST_TASK: dict[str, dict[str, Any]] = {
    "adapter": {"learning_rate": 0.01, "epochs": 20, "batch_size": 48, "weight_decay": 5e-4, "schedule": "cosine"},
    "full": {"learning_rate": 0.01, "epochs": 6, "batch_size": 128, "weight_decay": 0.05, "schedule": "cosine"},
}
_FIRST_TASK["lora"] = _FIRST_TASK["adapter"]
"""LAMDA-PILOT's settings, where the caller gives no others; those of LoRA are ours."""


class FirstTaskLearner(GradientLearner, ABC):
    """Cross-entropy on the first task; its head is thrown away, the one in the state stays empty.

    Args:
        tune: `adapter`, `lora` or `full`.
    """

    def __init__(self, encoder: nn.Module, *, tune: str = "adapter", **settings: Any) -> None:
        if tune not in _FIRST_TASK:
            raise UsageError(f"{self.name}: tune is {tune!r}; choose from {', '.join(sorted(_FIRST_TASK))}")
        super().__init__(encoder, tune=tune, **{**_FIRST_TASK[tune], **settings})

    def learn(self, state: State, task: TaskData, seed: int) -> State:
        if not len(state["classes"]):
            learned = super().learn(state, task, seed)
            state = {**state, **{name: learned[name] for name in self._begin}}
        return {**state, **self.grow(state, task, seed)}

    @abstractmethod
    def grow(self, state: State, task: TaskData, seed: int) -> Mapping[str, torch.Tensor]:
        """Tensors that change with the task, `classes` among them; the encoder is that of the first task."""


class APER(FirstTaskLearner):
    """Mean features as SimpleCIL has them, of the encoder as it was and as it is after the first task, side by side.

    "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity are All You Need"
    (arXiv 2303.07338), where it is called ADAM.
    """

    name = "aper"

    def init(self, data: ClassData, seed: int) -> State:
        empty = super().init(data, seed)
        return {**empty, "means": torch.zeros(0, 2 * empty["head.weight"].shape[1], dtype=torch.float64)}

    def grow(self, state: State, task: TaskData, seed: int) -> Mapping[str, torch.Tensor]:
        new = torch.tensor(task.classes, dtype=torch.int64)
        means = class_means(self.features(state, task.data, task.rows), task.labels, new)
        return {"classes": torch.cat([state["classes"], new]), "means": torch.cat([state["means"], means])}

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return cosine_logits(self.features(state, data, rows), state["means"])

    def features(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        """Float64 [n, 2 D]: before the first task, after it."""
        return torch.cat([self._pretrained(data, rows), super().features(state, data, rows).double()], dim=1)

    def _pretrained(self, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        if data.features is not None and data.encoder == self._fingerprint:
            return data.frozen(rows)
        return self.encoded(self._begin, data, rows).double()


class TunedRanPAC(FirstTaskLearner):
    """RanPAC with its first phase: the encoder is tuned on the first task, then all is as in
    `thurl.continual.closed_form.RanPAC`, on the features of the tuned encoder.

    Args:
        width, ridge: see there.
    """

    name = "ranpac"

    def __init__(self, encoder: nn.Module, *, width: int = 10000, ridge: float | None = None, **settings: Any) -> None:
        self.regression = _OnTuned(self, width, ridge)
        super().__init__(encoder, **settings)
        self.settings |= {"width": width, "ridge": ridge}

    def init(self, data: ClassData, seed: int) -> State:
        return {**super().init(data, seed), **self.regression.init(data, seed)}

    def grow(self, state: State, task: TaskData, seed: int) -> Mapping[str, torch.Tensor]:
        return self.regression.learn(state, task, seed)

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return self.regression.logits(state, data, rows)


class _OnTuned(RanPAC):
    """RanPAC on the features of the learner's encoder as it is in the state."""

    def __init__(self, learner: TunedRanPAC, width: int, ridge: float | None) -> None:
        super().__init__(width, ridge)
        self.learner = learner

    def features(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return self.learner.features(state, data, rows).double()

    def features_key(self, state: State) -> bytes:
        digest = hashlib.sha256()
        for name in sorted(state):
            if name.startswith("encoder."):
                digest.update(name.encode() + state[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.digest()
