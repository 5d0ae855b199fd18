"""The log of a run as a file that every program reads: one JSON object per entry, whatever `report_to` says."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from thurl.training.results import plain, write_atomically


__all__ = ["LOG_FILE", "LogFile"]

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
"""Name of the file in `output_dir`."""


class LogFile(TrainerCallback):
    """Writes every log entry, with its `step`, as a line of `log.jsonl` in `output_dir`; undefined numbers are null.

    A training begins the file anew, after what was logged before it by the same trainer; a resumed one with the
    entries that its checkpoint holds, so that it ends with the file of an uninterrupted run. A file that cannot be
    written stops no training; it is said once.
    """

    def __init__(self) -> None:
        self._before: list[dict[str, Any]] = []
        self._trains = self._failed = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trains = True
        self._write(args, [*self._before, *state.log_history], anew=True)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._trains:
            self._before.append(state.log_history[-1])
        self._write(args, state.log_history[-1:])

    def _write(self, args: Any, entries: Sequence[Mapping[str, Any]], *, anew: bool = False) -> None:
        if not args.should_save or self._failed:
            return
        path = Path(args.output_dir) / LOG_FILE
        lines = "".join(json.dumps(plain(entry), allow_nan=False) + "\n" for entry in entries)
        try:
            if anew:
                write_atomically(path, lines)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(lines)
        except OSError as error:
            self._failed = True
            logger.warning("%s cannot be written, the training goes on without it: %s", path, error)
