"""Losses that several learners share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from thurl.continual.class_data import TaskData
from thurl.continual.gradient.base import GradientLearner, Step
from thurl.continual.gradient.model import ByRow, cross_entropy
from thurl.continual.learner import State
from thurl.continual.retention import distillation_loss
from thurl.errors import UsageError


__all__ = ["Distilling", "Local"]


class Local(GradientLearner):
    """Cross-entropy over the classes of the task alone, or over all classes seen; for learners that keep no samples.

    Over all classes, the old ones only ever hear that they are wrong, and no penalty on weights or answers makes up
    for that. LwF's paper has the loss over the outputs of the new task, and PyCIL has it so for LwF and EWC.

    Args:
        local: over the classes of the task alone.
    """

    def __init__(self, encoder: nn.Module, *, local: bool = True, **settings: Any) -> None:
        super().__init__(encoder, **settings)
        self.settings["local"] = local

    def terms(self, step: Step) -> Mapping[str, torch.Tensor]:
        return cross_entropy(step, local=self.settings["local"])


class Distilling(GradientLearner):
    """Adds a distillation from the model before the task, over the old classes, to the loss; for subclasses.

    The old answers are computed once per sample and not with every step: samples are not augmented, so they are the
    same.

    Args:
        strength: weight of the distillation; 0 leaves it out.
        temperature: of both answers.
    """

    def __init__(
        self, encoder: nn.Module, *, strength: float = 1.0, temperature: float = 2.0, **settings: Any
    ) -> None:
        super().__init__(encoder, **settings)
        problems = []
        if not strength >= 0:
            problems.append(f"{self.name}: strength is {strength}; it must be 0 or more")
        if not temperature > 0:
            problems.append(f"{self.name}: temperature is {temperature}; it must be above 0")
        if problems:
            raise UsageError(problems)
        self.settings |= {"strength": strength, "temperature": temperature}

    def prepare(self, state: State, task: TaskData, rows: torch.Tensor) -> Any:
        if not len(state["classes"]) or not self.settings["strength"]:
            return None
        return ByRow(rows, self.outputs(state, task.data, rows)[1])

    def terms(self, step: Step) -> Mapping[str, torch.Tensor]:
        found = dict(super().terms(step))
        if step.prepared is not None:
            found["distillation"] = self.settings["strength"] * distillation_loss(
                step.logits, step.prepared.at(step), self.settings["temperature"]
            )
        return found
