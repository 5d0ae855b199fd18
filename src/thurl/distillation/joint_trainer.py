"""The trainer of the joint stage: lambda by schedule or by the controller, gradients clipped per decoder."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.data import Dataset

from thurl.distillation.controller import ControlState, RateControl, controlled, first_state
from thurl.distillation.joint import DistilledSet, decoded
from thurl.distillation.slices import clip_gradients
from thurl.errors import DataError, UsageError
from thurl.training.method_trainer import MethodTrainer


__all__ = ["JointTrainer", "LambdaSchedule"]

logger = logging.getLogger(__name__)


class LambdaSchedule:
    """Constant lambda in stages.

    Args:
        stages: (steps, lambda) in order; the last one goes on to the end of the run.
    """

    def __init__(self, stages: Sequence[tuple[int, float]]) -> None:
        if not stages or any(steps < 1 or not (math.isfinite(value) and value > 0) for steps, value in stages):
            raise UsageError(f"lambda stages {list(stages)}: each needs steps of 1 or more and a value above 0")
        self.stages = tuple(stages)

    def value(self, step: int) -> float:
        """Lambda of a step."""
        for steps, value in self.stages:
            if step < steps:
                return value
            step -= steps
        return self.stages[-1][1]


class _Steps(Dataset):
    """The numbers of the steps; pictures come from the objective."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}


class JointTrainer(MethodTrainer):
    """Trains a `DistilledSet` whose objective is set.

    `training.max_grad_norm` clips the gradients of each slice by itself, as if each were a run of its own (official:
    0.1). In the log: `rate/lambda`, and with the controller `rate/bits`, of all latents when it last looked.

    Args:
        model: with its objective.
        args: as in transformers; `max_steps` is the length of the run.
        rate: a schedule of lambda, or a controller with the target in bits of all latents together.
        start: first lambda of the controller.
        update_every: steps between two updates of the controller.
        **kwargs: of `MethodTrainer`.

    Raises:
        UsageError: settings under which a step would not be one step: several processes or rows, accumulation.

    Overrides a private method of transformers, guarded by a test of its signature: `_clip_grad_norm`.
    """

    def __init__(
        self,
        model: DistilledSet,
        args: Any,
        *,
        rate: LambdaSchedule | RateControl,
        start: float = 1.0,
        update_every: int = 5,
        **kwargs: Any,
    ) -> None:
        problems = []
        if args.world_size > 1:
            problems.append(f"{args.world_size} processes: the joint stage trains one small codec; start one process")
        if args.per_device_train_batch_size != 1 or args.gradient_accumulation_steps != 1:
            problems.append(
                f"per_device_train_batch_size={args.per_device_train_batch_size}, gradient_accumulation_steps="
                f"{args.gradient_accumulation_steps}: both must be 1; sizes of batches belong to the utility"
            )
        if args.max_steps != model.objective.steps:
            problems.append(f"max_steps={args.max_steps}: the objective has {model.objective.steps} steps")
        if problems:
            raise UsageError(problems)
        args.remove_unused_columns, args.train_sampling_strategy = False, "sequential"
        super().__init__(model, args, train_dataset=_Steps(args.max_steps), **kwargs)
        self.rate, self.update_every = rate, update_every
        self.controller = first_state(rate, start) if isinstance(rate, RateControl) else None
        self.bits: float | None = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.model.training:
            self._set_lambda(int(inputs["step"]))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _set_lambda(self, step: int) -> None:
        objective = self.model.objective
        if isinstance(self.rate, LambdaSchedule):
            objective.weight = self.rate.value(step)
            return
        assert self.controller is not None
        if step % self.update_every == 0:
            _, self.bits = decoded(self.model.codecs, objective.latents_at_once)
            self.controller = controlled(self.rate, self.controller, self.bits, step / objective.steps)
        objective.weight = self.controller.value

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.model.objective.utility.update()
        return loss

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        norms = torch.cat([clip_gradients(codec.parameters(), self.args.max_grad_norm) for codec in self.model.codecs])
        if not norms.isfinite().all():  # else the step would make the whole set NaN
            raise DataError(
                f"step {self.state.global_step}: the gradient of slice {int((~norms.isfinite()).nonzero()[0])} is not "
                "finite; lower the learning rate, or go on from an earlier checkpoint"
            )
        return norms.max()

    # -- logs and exact resume -------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs["rate/lambda"] = self.model.objective.weight
            if self.bits is not None:
                logs["rate/bits"] = self.bits
        super().log(logs, *args, **kwargs)

    def resume_settings(self) -> dict[str, Any]:
        objective = self.model.objective
        rate = list(map(list, self.rate.stages)) if isinstance(self.rate, LambdaSchedule) else asdict(self.rate)
        names = ("steps", "sigma", "temperature", "hard_share", "seed")
        own = {"rate": rate, "update_every": self.update_every, "utility": type(objective.utility).__name__}
        return {**super().resume_settings(), **own, "joint": {name: getattr(objective, name) for name in names}}

    def resume_state(self) -> dict[str, Any]:
        objective = self.model.objective
        own = {"utility": objective.utility.state_dict(), "bits": self.bits, "weight": objective.weight}
        return {
            **super().resume_state(),
            **own,
            "control": None if self.controller is None else asdict(self.controller),
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        self.model.objective.utility.load_state_dict(state["utility"])
        self.bits = state["bits"]
        # No step sets it when the run stopped behind its last one; what follows the stage starts from it.
        self.model.objective.weight = state["weight"]
        self.controller = None if state["control"] is None else ControlState(**state["control"])
