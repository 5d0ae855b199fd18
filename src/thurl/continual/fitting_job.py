"""The shared trainer as a job of one process, for `thurl.continual.fitting.fit`; apart from it since transformers'
trainer takes seconds to import, which a process of frozen learners need not spend."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from thurl.continual.fitting import Batches, FitSettings, rate_factor
from thurl.training.method_trainer import MethodTrainer
from thurl.training.progress import quiet_trainer
from thurl.training.single_process import single_process
from thurl.training.state_files import random_states, set_random_states


__all__ = ["run_job"]


def run_job(
    model: nn.Module,
    batches: Batches,
    groups: Sequence[Mapping[str, Any]],
    settings: FitSettings,
    seed: int,
    callbacks: Sequence[TrainerCallback],
) -> float:
    """See `thurl.continual.fitting.fit`."""
    before, verbosity = random_states(), transformers_logging.get_verbosity()
    # transformers seeds every GPU that is visible.
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
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
            trainer = _Job(model, arguments, callbacks=callbacks, batches=batches, groups=groups, settings=settings)
            return float(trainer.train().training_loss)
    finally:
        transformers_logging.set_verbosity(verbosity)
        set_random_states(before)
        torch.cuda.set_rng_state_all(gpus)


class _Arguments(TrainingArguments):
    """Of a trainer inside `single_process`: its device, and no output folder."""

    @functools.cached_property
    def _setup_devices(self) -> torch.device:
        self.distributed_state = PartialState()
        self._n_gpu = int(self.distributed_state.device.type == "cuda")  # others belong to other processes
        return self.distributed_state.device

    @property
    def should_save(self) -> bool:
        return False


class _Job(MethodTrainer):
    """The shared trainer without what only a long run needs: a norm of the gradients for its log, an answer to
    SIGTERM (a killed search goes on from what was kept), accelerate's loader."""

    stops_at_nan = False  # the learner says which task it was

    def __init__(
        self,
        model: nn.Module,
        arguments: _Arguments,
        *,
        callbacks: Sequence[TrainerCallback],
        batches: Batches,
        groups: Sequence[Mapping[str, Any]],
        settings: FitSettings,
    ) -> None:
        super().__init__(model, arguments, train_dataset=batches, callbacks=list(callbacks))
        quiet_trainer(self)
        self._batches, self._groups, self._settings = batches, groups, settings

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # One process in full precision has nothing to prepare, wrap or let go. accelerate looks for packages on the
        # disk at every step, imports DeepSpeed, which prints, and collects the garbage of the whole process: most of
        # the time of a small network.
        accelerator: Any = self.accelerator
        accelerator.prepare = accelerator.free_memory = lambda *objects: objects
        accelerator.unwrap_model = lambda model, **options: model
        accelerator.backward = lambda loss, **options: loss.backward()

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
        yield


class _Loader:
    def __init__(self, batches: Batches) -> None:
        self.dataset = batches

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self.dataset[step] for step in range(len(self.dataset)))
