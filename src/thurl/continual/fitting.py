"""Trains a module on batches through the shared trainer, as a job that one process does by itself.

`thurl.training.method_trainer.MethodTrainer` takes the steps. A job writes no file, prints nothing, leaves every
global random generator as it was and never waits for another process, also under `accelerate launch`
(`thurl.training.single_process`): the result depends on the model, the batches, the settings and the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from thurl.errors import UsageError


__all__ = ["Batches", "FitSettings", "fit", "random_rows", "rate_factor"]

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "cosine", "step")


class Batches(Protocol):
    """What is trained on: one entry per step, in order, read when its step comes."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Mapping[str, Any]:
        """Arguments of the model's `forward`; tensors are moved to the device."""
        ...


@dataclass(frozen=True)
class FitSettings:
    """How the parameters move.

    Args:
        optimizer: `sgd` or `adamw`.
        momentum: of SGD.
        weight_decay: of either, for groups without one of their own.
        schedule: `constant`; `cosine`, to 0 at the end; `step`, a tenth from `drop_at` on.
        drop_at: for `step`, the share of the steps in (0, 1) after which the rate drops.

    Raises:
        UsageError: values outside their range, all together.
    """

    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    drop_at: float = 0.9

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}; choose from {', '.join(valid)}"
            for name, valid in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES))
            if getattr(self, name) not in valid
        ]
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum is {self.momentum}; it must be 0 or more and below 1")
        if not self.weight_decay >= 0:
            problems.append(f"weight_decay is {self.weight_decay}; it must be 0 or more")
        if not 0 < self.drop_at < 1:
            problems.append(f"drop_at is {self.drop_at}; it must be above 0 and below 1")
        if problems:
            raise UsageError(problems)


def rate_factor(settings: FitSettings, step: int, steps: int) -> float:
    """What the learning rates are multiplied by at `step` of 0..`steps` - 1, in [0, 1]."""
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    if settings.schedule == "step" and step >= settings.drop_at * steps:
        return 0.1
    return 1.0


def random_rows(count: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Positions 0..`count` - 1 in a new order every epoch, int64 [<= batch_size] per step."""
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(batch_size)


def fit(
    model: nn.Module,
    batches: Batches,
    groups: Sequence[Mapping[str, Any]],
    settings: FitSettings,
    *,
    seed: int,
) -> float:
    """Train `model` in place, one optimizer step per batch; it is left on the device of the process.

    Args:
        model: its `forward` returns a `thurl.training.method_output.MethodOutput`.
        batches: see `Batches`; their order is the caller's.
        groups: of the optimizer: `params`, `lr` and, if it differs from the settings, `weight_decay`. Parameters in no
            group stay; groups and parameters without gradients are left alone, too.
        settings: see `FitSettings`.
        seed: of dropout and whatever else the model draws.

    Returns:
        mean loss over the steps; NaN or infinite where the training diverged.
    """
    from thurl.continual.fitting_job import run_job

    return run_job(model, batches, groups, settings, seed)
