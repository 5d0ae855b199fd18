"""Trains a module on batches through the shared trainer, as a job that one process does by itself.

`thurl.training.method_trainer.MethodTrainer` takes the steps. A job writes no file, prints nothing, leaves every
global random generator as it was and never waits for another process, also under `accelerate launch`
(`thurl.training.single_process`): the result depends on the model, the batches, the settings and the seed alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from thurl.errors import UsageError
from thurl.training.method_trainer import MethodTrainer
from thurl.training.progress import quiet_trainer
from thurl.training.single_process import single_process
from thurl.training.state_files import random_states, set_random_states


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
    before, verbosity = random_states(), transformers_logging.get_verbosity()
    try:
        with single_process():
            arguments = _Arguments(
                output_dir="",
                max_steps=len(batches),
                per_device_train_batch_size=1,
                seed=seed % 2**32,
                max_grad_norm=0.0,
                logging_strategy="no",
                logging_nan_inf_filter=False,
                log_level="error",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            trainer = _Job(model, arguments, batches=batches, groups=groups, settings=settings)
            return float(trainer.train().training_loss)
    finally:
        transformers_logging.set_verbosity(verbosity)
        set_random_states(before)


class _Arguments(TrainingArguments):
    """Of a trainer inside `single_process`: its device, and no output folder."""

    @functools.cached_property
    def _setup_devices(self) -> torch.device:
        from accelerate import PartialState

        self.distributed_state = PartialState()
        self._n_gpu = int(self.distributed_state.device.type == "cuda")  # others belong to other processes
        return self.distributed_state.device

    @property
    def should_save(self) -> bool:
        return False


class _Job(MethodTrainer):
    """The shared trainer without what only a long run needs: a norm of the gradients for its log, an answer to
    SIGTERM (a killed search goes on from what was kept), accelerate's loader."""

    def __init__(
        self,
        model: nn.Module,
        arguments: _Arguments,
        *,
        batches: Batches,
        groups: Sequence[Mapping[str, Any]],
        settings: FitSettings,
    ) -> None:
        super().__init__(model, arguments, train_dataset=batches)
        quiet_trainer(self)
        # One process in full precision has nothing to prepare, and accelerate looks for packages on the disk at every
        # step and collects the garbage of the whole process before the first: most of the time of a small network.
        accelerator: Any = self.accelerator
        accelerator.prepare = accelerator.free_memory = lambda *objects: objects
        accelerator.backward = lambda loss, **kwargs: loss.backward()
        self._batches, self._groups, self._settings = batches, groups, settings

    def get_train_dataloader(self) -> Any:
        return _Loader(self._batches)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        settings = self._settings
        groups = [
            {**group, "params": [value for value in group["params"] if value.requires_grad]} for group in self._groups
        ]
        if settings.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
        else:
            self.optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        def factor(step: int) -> float:
            return rate_factor(self._settings, step, num_training_steps)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        return self.lr_scheduler

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return None

    @contextmanager
    def _listen(self) -> Iterator[None]:
        with nullcontext():
            yield


class _Loader:
    def __init__(self, batches: Batches) -> None:
        self.dataset = batches

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self.dataset[step] for step in range(len(self.dataset)))
