"""TRL's trainers with exact resume (`thurl.training.exact_resume`): what each must keep beside the common state.

Private names of TRL 1.16 used here, checked by tests/training/test_resumable_trl.py: `_metrics`,
`_total_train_tokens` (SFT); `_step`, `_buffered_inputs`, `_logs`, `_get_train_sampler`,
`RepeatSampler.generator` (GRPO).
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from accelerate.utils import send_to_device

from thurl.training.completions import completion_table, conversation_text, write_completion_lines
from thurl.training.exact_resume import ExactResumeTrainer


__all__ = ["ResumableGRPO", "ResumableSFT"]

logger = logging.getLogger(__name__)


class ResumableSFT(ExactResumeTrainer):
    """Mixin before `trl.SFTTrainer`."""

    def resume_settings(self) -> dict[str, Any]:
        return {**super().resume_settings(), "rows": len(self.train_dataset)}

    def resume_state(self) -> dict[str, Any]:
        return {"metrics": _metrics(self), "tokens": self._total_train_tokens}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        _put_back(self, state["metrics"])
        self._total_train_tokens = state["tokens"]


class ResumableGRPO(ExactResumeTrainer):
    """Mixin before `trl.GRPOTrainer`.

    With `log_completions`, the table of completions holds text and is also written as lines of JSON
    (`thurl.training.completions`).

    Completions are used for several optimizer steps, and a checkpoint may lie between them, so they are saved. TRL's
    sampler draws one epoch after the other from one random stream, which a resumed run would begin anew: here each
    epoch has a stream of its own.
    """

    _repeats: Any = None

    def resume_settings(self) -> dict[str, Any]:
        names = ("steps_per_generation", "num_iterations", "num_generations")
        return {
            **super().resume_settings(),
            **{name: getattr(self.args, name) for name in names},
            "rows": len(self.train_dataset),
        }

    def resume_state(self) -> dict[str, Any]:
        # Completions that every step has used are not needed any more: the next step draws new ones.
        between = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        return {
            "step": self._step,
            "completions": None if between else self._buffered_inputs,
            "metrics": _metrics(self),
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        if getattr(self.args, "sync_ref_model", False):
            logger.warning("`sync_ref_model`: the reference model starts anew, the run does not go on exactly")
        self._step = state["step"]
        self._buffered_inputs = send_to_device(state["completions"], self.accelerator.device)
        _put_back(self, state["metrics"])

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._repeats = super()._get_train_sampler(*args, **kwargs)
        return self._repeats

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.log_completions:
            for name in ("prompt", "completion"):
                kept = self._logs[name]
                self._logs[name] = deque(map(conversation_text, kept), kept.maxlen)
        super().log(logs, *args, **kwargs)
        table = completion_table(self.args.output_dir, self.state.global_step)
        if self.log_completions and self.is_world_process_zero() and table.is_file():
            write_completion_lines(table, self.reward_func_names)

    def begin_epoch(self, epoch: int) -> None:
        generator = getattr(self._repeats, "generator", None)
        if generator is not None:
            generator.manual_seed(self.args.seed + int(epoch))


def _metrics(trainer: Any) -> dict[str, dict[str, Any]]:
    return {mode: dict(values) for mode, values in trainer._metrics.items()}


def _put_back(trainer: Any, metrics: dict[str, dict[str, Any]]) -> None:
    for mode, values in metrics.items():
        trainer._metrics[mode].clear()
        trainer._metrics[mode].update(values)
