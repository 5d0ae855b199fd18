"""iCaRL: a few well chosen samples of each class, to train on again and to classify by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from thurl.continual.class_data import ClassData, TaskData
from thurl.continual.exemplars import exemplar_means, herding
from thurl.continual.gradient.losses import Distilling
from thurl.continual.learner import State
from thurl.continual.ridge import cosine_logits
from thurl.errors import UsageError


__all__ = ["ICaRL"]


class ICaRL(Distilling):
    """Cross-entropy and distillation on the new samples and all exemplars; the nearest mean of exemplars decides.

    After "iCaRL: Incremental Classifier and Representation Learning" (arXiv 1611.07725), with the loss that became
    common and that PyCIL has: one cross-entropy over all classes, and distillation at temperature 2, where the
    paper has a sigmoid per class. The budget is per class and stays; the paper divides a fixed total. The head is for
    training alone: logits are cosines, in [-1, 1], to the mean of each class's exemplars under the encoder as it is.

    Args:
        per_class: exemplars of each class, chosen by herding when it was learned; a smaller class is kept whole. 20
            are the paper's 2000 for 100 classes.
    """

    name = "icarl"

    def __init__(self, encoder: nn.Module, *, per_class: int = 20, **settings: Any) -> None:
        super().__init__(encoder, **settings)
        if per_class < 1:
            raise UsageError(f"icarl: per_class is {per_class}; it must be 1 or more")
        self.settings["per_class"] = per_class

    def init(self, data: ClassData, seed: int) -> State:
        empty = super().init(data, seed)
        means = torch.zeros(0, empty["head.weight"].shape[1], dtype=torch.float64)
        return {**empty, "exemplars": torch.zeros(0, dtype=torch.int64), "means": means}

    def rows(self, state: State, task: TaskData) -> torch.Tensor:
        return torch.cat([task.rows, state["exemplars"]])

    def remember(
        self, before: State, learned: State, task: TaskData, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        chosen = [before["exemplars"]]
        for index in task.classes:
            rows = task.data.rows([index], "train")
            features = self.encoded(learned, task.data, rows)
            chosen.append(rows[herding(features, self.settings["per_class"])])
        exemplars = torch.cat(chosen)
        features = self.encoded(learned, task.data, exemplars)
        means = exemplar_means(features, task.data.labels[exemplars], learned["classes"])
        return {"exemplars": exemplars, "means": means}

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return cosine_logits(self.features(state, data, rows), state["means"])
