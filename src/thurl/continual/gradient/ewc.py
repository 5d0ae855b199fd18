"""Elastic weight consolidation: weights that mattered for earlier tasks are held where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from thurl.continual.class_data import TaskData
from thurl.continual.encoding import pooled
from thurl.continual.gradient.base import Step
from thurl.continual.gradient.losses import Local
from thurl.continual.gradient.model import INFERENCE
from thurl.continual.learner import State
from thurl.continual.retention import bounded_weight, decayed_fisher, diagonal_fisher, elastic_penalty
from thurl.errors import UsageError
from thurl.training.single_process import process_device


__all__ = ["EWC"]

_FISHER = "fisher."


class EWC(Local):
    """Cross-entropy, and a quadratic penalty on what moves away from the weights after the last task.

    Online EWC (arXiv 1805.06370): the penalty weighs by the diagonal empirical Fisher, F = decay * F before + F of the
    task, and the anchors are the weights of the state. Old head rows are held too. The weight is bounded where a step
    could not follow it (`thurl.continual.retention.bounded_weight`), so that a large strength holds and does not
    diverge; PyCIL cuts the Fisher at 1e-4 for that, and squares the gradients of whole batches. With strength 0 and
    `local=false` it is fine-tuning. The defaults of both options are ours: a strength of 10 was the best of 10 to
    10000 on two draws of digits, and the decay made no difference there.

    Args:
        strength: lambda of the paper, for a loss that is a mean over samples.
        decay: of the Fisher of earlier tasks, in [0, 1].
    """

    name = "ewc"

    def __init__(self, encoder: nn.Module, *, strength: float = 10.0, decay: float = 0.9, **settings: Any) -> None:
        super().__init__(encoder, **settings)
        problems = []
        if not strength >= 0:
            problems.append(f"ewc: strength is {strength}; it must be 0 or more")
        if not 0 <= decay <= 1:
            problems.append(f"ewc: decay is {decay}; it must be in [0, 1]")
        if problems:
            raise UsageError(problems)
        self.settings |= {"strength": strength, "decay": decay}

    def prepare(self, state: State, task: TaskData, rows: torch.Tensor) -> Any:
        settings, device = self.settings, process_device()
        weights = {}
        for name, fisher in _fisher_of(state).items():
            rate = settings["encoder_rate" if name.startswith("encoder.") else "learning_rate"]
            weights[name] = bounded_weight(fisher, settings["strength"], rate).to(device)
        return weights, {name: state[name].to(device) for name in weights}

    def terms(self, step: Step) -> Mapping[str, torch.Tensor]:
        found = dict(super().terms(step))
        weights, anchors = step.prepared
        if weights:
            found["penalty"] = elastic_penalty(dict(step.model.named_parameters()), anchors, weights)
        return found

    def remember(
        self, before: State, learned: State, task: TaskData, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        trained = self.model(learned)
        model = _Classifier(trained.encoder, trained.head).eval()
        device = process_device()
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        columns = torch.full((len(task.data.classes),), -1, dtype=torch.int64)
        columns[learned["classes"]] = torch.arange(len(learned["classes"]))
        batches = (
            (task.data.read(rows).to(device), columns[task.data.labels[rows]].to(device))
            for rows in task.rows.split(INFERENCE)
        )
        new = diagonal_fisher(lambda at, inputs: functional_call(model, dict(at), (inputs,)), parameters, batches)
        new = {name: value.cpu() for name, value in new.items()}
        total = decayed_fisher(_fisher_of(before), new, self.settings["decay"])
        return {_FISHER + name: value for name, value in total.items()}


class _Classifier(nn.Module):
    """Logits of inputs, with the names that a state has."""

    def __init__(self, encoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(pooled(self.encoder, inputs))


def _fisher_of(state: State) -> dict[str, torch.Tensor]:
    return {name.removeprefix(_FISHER): value for name, value in state.items() if name.startswith(_FISHER)}
