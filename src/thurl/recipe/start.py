"""The model a tiny recipe starts from: built once, by one process, and used again while its settings stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState

from thurl.errors import ThurlError


__all__ = ["built_once", "run_alone"]


def built_once(place: Path, key: str, build: Callable[[], None], alone: Sequence[str]) -> str:
    """Let one process build what belongs in `place`, and all wait for it.

    Args:
        place: folder that `build` fills.
        key: digest of all that decides what is built; a finished start with the same one is used again.
        build: does it; called where the run has a single process.
        alone: arguments of `python -m` that do the same in a process of its own, where the run has several: inside
            a process group a trainer would wait for the others.

    Returns:
        `place` as text.

    Raises:
        ThurlError: it was not finished.
    """
    done, state = place / "complete.json", PartialState()
    if state.is_main_process and not (done.is_file() and done.read_text() == key):
        if state.num_processes == 1:
            build()
            done.write_text(key)
        else:
            run_alone(alone)
    state.wait_for_everyone()
    if not (done.is_file() and done.read_text() == key):
        raise ThurlError(f"The starting model in {place} was not finished; the first process says why.")
    return str(place)


def run_alone(arguments: Sequence[str]) -> None:
    """`python -m ...` without the launcher's variables."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in launcher and not name.startswith(("ACCELERATE_", "TORCHELASTIC_"))
    }
    subprocess.run([sys.executable, "-m", *arguments], env=environment, check=False)
