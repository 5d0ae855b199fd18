"""SLCA: a slow encoder, and a head that is aligned on features drawn from what is known of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from thurl.continual.class_data import ClassData, TaskData
from thurl.continual.fitting import FitSettings, fit
from thurl.continual.gradient.base import GradientLearner, Step
from thurl.continual.gradient.model import cross_entropy, head_of
from thurl.continual.learner import State
from thurl.errors import UsageError
from thurl.training.method_output import MethodOutput


__all__ = ["SLCALike"]


class SLCALike(GradientLearner):
    """A slow encoder and a loss over the new classes alone; then, optionally, an alignment of the head.

    After "SLCA: Slow Learner with Classifier Alignment" (arXiv 2303.05118) as LAMDA-PILOT has it: features of every
    class seen are drawn from a normal distribution, and the head alone is trained on them with normalised logits. A
    class's task is known from its own record, not from equal task sizes. There 20 epochs of batches of 64, weight
    decay 5e-4 and a tenth of the rate from epoch 18 on: `epochs=20,batch_size=64,weight_decay=0.0005,schedule=step`.

    Args:
        alignment: epochs of it from the second task on; 0 leaves it out.
        samples: features drawn per class.
    """

    name = "slca"

    def __init__(
        self,
        encoder: nn.Module,
        *,
        learning_rate: float = 0.01,
        encoder_rate: float | None = None,
        alignment: int = 3,
        samples: int = 256,
        **settings: Any,
    ) -> None:
        slow = learning_rate / 100 if encoder_rate is None else encoder_rate
        super().__init__(encoder, learning_rate=learning_rate, encoder_rate=slow, **settings)
        if alignment < 0 or samples < 1:
            raise UsageError(f"slca: alignment is {alignment}, samples {samples}; they must be 0 and 1 or more")
        self.settings |= {"alignment": alignment, "samples": samples}

    def init(self, data: ClassData, seed: int) -> State:
        empty = super().init(data, seed)
        size = empty["head.weight"].shape[1]
        past = {"means": torch.zeros(0, size), "covariances": torch.zeros(0, size, size)}
        return {**empty, **past, "arrival": torch.zeros(0, dtype=torch.int64)}

    def terms(self, step: Step) -> Mapping[str, torch.Tensor]:
        return cross_entropy(step, local=True)

    def remember(
        self, before: State, learned: State, task: TaskData, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        means, covariances = [before["means"]], [before["covariances"]]
        for index in task.classes:
            found = self.outputs(learned, task.data, task.data.rows([index], "train"))[0]
            middle = found.mean(dim=0)
            apart = found - middle
            means.append(middle[None])
            covariances.append((apart.T @ apart / max(1, len(found) - 1))[None])
        number = int(before["arrival"].max()) + 1 if len(before["arrival"]) else 0
        arrival = torch.cat([before["arrival"], torch.full((len(task.classes),), number)])
        past = {"means": torch.cat(means), "covariances": torch.cat(covariances), "arrival": arrival}
        if number and self.settings["alignment"]:
            past |= self._align(learned, past, generator)
        return past

    def _align(self, learned: State, past: State, generator: torch.Generator) -> Mapping[str, torch.Tensor]:
        arrival = past["arrival"]
        model = _Aligned(head_of(learned["head.weight"], learned["head.bias"]), arrival)
        batches = _DrawnFeatures(past, self.settings["alignment"], self.settings["samples"], generator)
        groups = [{"params": list(model.head.parameters()), "lr": self.settings["learning_rate"]}]
        with torch.enable_grad():
            fit(model, batches, groups, FitSettings(momentum=self.settings["momentum"]), seed=0)
        return {
            "head.weight": model.head.weight.detach().cpu().clone(),
            "head.bias": model.head.bias.detach().cpu().clone(),
        }


class _Aligned(nn.Module):
    """The head on drawn features, with logits divided by their mean length over the tasks."""

    member: torch.Tensor

    def __init__(self, head: nn.Linear, arrival: torch.Tensor) -> None:
        super().__init__()
        self.head = head
        tasks = int(arrival.max()) + 1
        self.register_buffer("member", (arrival[None, :] == torch.arange(tasks)[:, None]).float())  # (tasks, n_seen)

    def forward(self, features: torch.Tensor, target: torch.Tensor) -> MethodOutput:
        logits = self.head(features)
        length = (logits.square() @ self.member.T).clamp_min(1e-14).sqrt().mean(dim=1, keepdim=True) + 1e-7
        loss = nn.functional.cross_entropy(logits / length / 0.1, target)
        return MethodOutput(loss=loss, terms={"alignment": loss})


class _DrawnFeatures:
    """Features of every class, drawn anew every epoch; a step for each class, of all classes mixed.

    Args:
        past: `means` [n, D], `covariances` [n, D, D] and `arrival` [n] of the classes.
        epochs: of the alignment.
        samples: per class and epoch, and the size of a batch.
        generator: of the features and their order.
    """

    def __init__(self, past: State, epochs: int, samples: int, generator: torch.Generator) -> None:
        arrival, means = past["arrival"], past["means"]
        shrink = 0.9 + 0.1 * (arrival + 1) / (int(arrival.max()) + 1)
        self.means = means * shrink[:, None]
        jitter = 1e-4 * torch.eye(means.shape[1])
        self.factors = torch.linalg.cholesky(past["covariances"] + jitter)
        self.epochs, self.samples, self.generator = epochs, samples, generator
        self._drawn = torch.zeros(0)
        self._order: Sequence[torch.Tensor] = ()

    def __len__(self) -> int:
        return self.epochs * len(self.means)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        classes, size = self.means.shape
        if step % classes == 0:
            noise = torch.randn(classes, self.samples, size, generator=self.generator)
            self._drawn = (self.means[:, None] + noise @ self.factors.mT).flatten(0, 1)
            self._order = torch.randperm(classes * self.samples, generator=self.generator).split(self.samples)
        rows = self._order[step % classes]
        return {"features": self._drawn[rows], "target": rows // self.samples}
