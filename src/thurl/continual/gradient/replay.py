"""Experience replay: a few samples of every class are kept and trained on again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from thurl.continual.class_data import ClassData, TaskData
from thurl.continual.gradient.base import GradientLearner
from thurl.continual.learner import State
from thurl.errors import UsageError


__all__ = ["ExperienceReplay"]


class ExperienceReplay(GradientLearner):
    """Fine-tuning with as many kept samples in every step as new ones.

    Args:
        per_class: samples kept of each class, drawn at random when it was learned.
    """

    name = "er"

    def __init__(self, encoder: nn.Module, *, per_class: int = 10, **settings: Any) -> None:
        super().__init__(encoder, **settings)
        if per_class < 1:
            raise UsageError(f"er: per_class is {per_class}; it must be 1 or more")
        self.settings["per_class"] = per_class

    def init(self, data: ClassData, seed: int) -> State:
        return {**super().init(data, seed), "buffer": torch.zeros(0, dtype=torch.int64)}

    def steps(self, state: State, task: TaskData, generator: torch.Generator) -> list[torch.Tensor]:
        kept = state["buffer"]
        found = super().steps(state, task, generator)
        if not len(kept):
            return found
        return [torch.cat([rows, kept[torch.randint(len(kept), rows.shape, generator=generator)]]) for rows in found]

    def remember(
        self, before: State, learned: State, task: TaskData, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        chosen = [before["buffer"]]
        for index in task.classes:
            rows = task.data.rows([index], "train")
            chosen.append(rows[torch.randperm(len(rows), generator=generator)[: self.settings["per_class"]]])
        return {"buffer": torch.cat(chosen)}
