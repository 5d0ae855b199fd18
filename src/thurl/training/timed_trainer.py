"""Trainers that log where their time goes (`thurl.training.timing`).

`timing/*` in the log: seconds per optimizer step of each phase since the last log entry, mean over the processes, and
`timing/step`, their sum. The mean and not the maximum, because only means add up; a process that waits for another one
spends the time in the phase in which it waits. What a step does after its log entry (saving) is in the next entry.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from thurl.training.timing import OTHER, STEP, CudaClock, HostClock, PhaseTimer, phase, phase_rows


__all__ = ["TimedTrainer"]

logger = logging.getLogger(__name__)


class TimedTrainer(Trainer):
    """Mixin before a `transformers.Trainer`, outermost: `class MyTrainer(TimedTrainer, SomeTrainer)`.

    Phases: `data` (waiting for the loader), `update` (from the first micro-batch of an optimizer step to the end of
    it: forward, backward, optimizer), `save` (checkpoints), `evaluation` (with everything in it), `other`. A trainer
    with more of them names all in `phases`, and charges them with `thurl.training.timing.phase`.

    Overrides one method of transformers that is not documented as public, `_save_checkpoint`.
    """

    phases: tuple[str, ...] = ("data", "update", "save", "evaluation")
    timing: dict[str, Any] | None = None
    """After `train`: `steps`, `seconds` (per phase, in total) and `seconds_per_step`, mean over the processes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        clock = CudaClock() if self.args.device.type == "cuda" else HostClock()
        self.timer = PhaseTimer(self.phases, clock, whole=("save", "evaluation"))
        # The first, so that what other callbacks do at the end of a step is not part of the update.
        self.callback_handler.callbacks.insert(0, _Steps(self.timer))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.timing = None
        with self.timer.running():
            result = super().train(*args, **kwargs)
        if self.timer.steps:
            self.timing = self._run_timing()
            if self.args.process_index == 0 and self.args.logging_strategy != "no":
                logger.info("Where the time of %d steps went:", self.timing["steps"])
                for name, share, seconds in phase_rows(self.timing["seconds"], self.timing["steps"]):
                    logger.info("  %-16s %6s  %s", name, share, seconds)
        return result

    def _run_timing(self) -> dict[str, Any]:
        seconds, steps = self._mean(self.timer.totals()), self.timer.steps
        per_step = {name: value / steps for name, value in seconds.items()}
        return {"steps": steps, "seconds": seconds, "seconds_per_step": {**per_step, STEP: sum(per_step.values())}}

    def _mean(self, seconds: dict[str, float]) -> dict[str, float]:
        """Over the processes, all of which must call it; the names are the same on all."""
        if self.args.world_size == 1:
            return seconds
        local = torch.tensor([list(seconds.values())], dtype=torch.float32, device=self.args.device)
        return dict(zip(seconds, self.accelerator.gather(local).mean(dim=0).tolist(), strict=True))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # a log entry of training, on every process
            window = self.timer.window()
            if window:
                window = self._mean({name: window[name] for name in (*self.phases, OTHER)})
                logs.update({f"timing/{name}": value for name, value in window.items()})
                logs[f"timing/{STEP}"] = sum(window.values())
        super().log(logs, *args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        with phase("data"):
            return super().get_batch_samples(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with phase("save"):
            super()._save_checkpoint(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with phase("evaluation"):
            return super().evaluate(*args, **kwargs)


class _Steps(TrainerCallback):
    def __init__(self, timer: PhaseTimer) -> None:
        self.timer = timer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.timer.restart()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.timer.begin("update")

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.timer.end("update")
        self.timer.step()
