"""The trainer of A-FINE's stages: `MethodTrainer` with the official schedule and turns that depend on the epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from thurl.errors import UsageError
from thurl.iqa.afine.stages import AFineStageModel
from thurl.iqa.afine.triplet_pictures import collate_pictures
from thurl.training.method_trainer import MethodTrainer
from thurl.training.restarts import restart_multiplier


__all__ = ["AFineTrainer", "RestartSchedule"]


@dataclass(frozen=True)
class RestartSchedule:
    """Arguments of `thurl.training.restarts.cosine_with_restarts`; the defaults are the released code's."""

    periods: tuple[int, ...] = (10_000,) * 4
    restart_weights: tuple[float, ...] = (1.0, 0.5, 0.5, 0.5)
    eta_min: float = 1e-8


class AFineTrainer(MethodTrainer):
    """Trains one stage of an `AFineStageModel` on `TripletPictures`.

    AdamW decays all trained parameters, as officially; transformers would leave out biases and norms.

    Args:
        model: with a stage begun.
        args: as in transformers; `remove_unused_columns` is turned off, since rows are no columns here.
        schedule: cosine with restarts; `None`: that of `args.lr_scheduler_type`.
        **kwargs: of `MethodTrainer`.

    Raises:
        UsageError: no stage has begun.
    """

    def __init__(
        self, model: AFineStageModel, args: Any, *, schedule: RestartSchedule | None = None, **kwargs: Any
    ) -> None:
        if model.stage is None:
            raise UsageError("no training stage has begun; call `model.begin_stage` first")
        args.remove_unused_columns = False
        self.schedule = schedule
        super().__init__(model, args, data_collator=collate_pictures, **kwargs)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if getattr(self, "lr_scheduler", None) is None:
            factor = restart_multiplier(self.args.learning_rate, **asdict(self.schedule))
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def begin_epoch(self, epoch: int) -> None:
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(epoch)

    def resume_settings(self) -> dict[str, Any]:
        schedule = (
            None
            if self.schedule is None
            else {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.schedule).items()}
        )
        return {
            **super().resume_settings(),
            "stage": self.model.stage,
            "triplets": len(self.train_dataset),
            "schedule": schedule,
        }
