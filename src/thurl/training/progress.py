"""What a long training run prints: one short line per log entry, instead of the trainer's dictionary."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback


__all__ = ["ProgressLines", "SaveBeside", "quiet_libraries", "quiet_trainer"]

logger = logging.getLogger(__name__)


class ProgressLines(TrainerCallback):
    """Logs `step 20/80 | reward 1.62 | ... | 1.3 s/step, 78 s left` for the entries named in `fields`.

    Args:
        fields: log key -> (short name, format), in printing order; keys that an entry lacks are left out.
        prefix: put in front of every line, for runs that train more than once.
    """

    def __init__(self, fields: Mapping[str, tuple[str, str]], prefix: str = "") -> None:
        self.fields, self.prefix = dict(fields), prefix
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started, self._first_step = time.perf_counter(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        parts = [
            f"{name} {format(float(logs[key]), spec)}" for key, (name, spec) in self.fields.items() if key in logs
        ]
        done = state.global_step - self._first_step
        if not parts or done < 1:
            return
        pace = (time.perf_counter() - self._started) / done
        left = pace * (state.max_steps - state.global_step)
        logger.info(
            "%sstep %*d/%d | %s | %.2f s/step, %.0f s left",
            self.prefix,
            len(str(state.max_steps)),
            state.global_step,
            state.max_steps,
            " | ".join(parts),
            pace,
            left,
        )


class SaveBeside(TrainerCallback):
    """Calls `write(folder)` for every checkpoint, so that a checkpoint folder can be used like the final one."""

    def __init__(self, write: Any) -> None:
        self.write = write

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from pathlib import Path

        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self.write(folder)


def quiet_libraries() -> None:
    """No bars for loading and saving weights of a small model; a person reads the lines of the run instead."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # DeepSpeed 0.19 calls what torch 2.13 has renamed, and torch says so for every call.
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        warnings.filterwarnings("ignore", message=f"`torch.distributed.{name}` is deprecated", category=FutureWarning)


def quiet_trainer(trainer: Any) -> None:
    """Remove the trainer's own console output; `ProgressLines` prints instead."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
