"""Data that a recipe writes before it reads it: once, by one process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from thurl.recipe.visualquality_r1_data import fingerprint


__all__ = ["write_once"]


def write_once(place: Path, settings: Mapping[str, Any], write: Callable[[], Any]) -> None:
    """Let one process fill a folder, unless that has been done with the same settings; all wait for it.

    Args:
        place: the folder; what other settings left there is removed.
        settings: JSON values, all that decides what is written.
        write: fills the folder; is called with the folder gone.
    """
    done, key, state = place / "complete.json", fingerprint(dict(settings)), PartialState()
    if state.is_main_process and not (done.is_file() and done.read_text() == key):
        if place.exists():
            shutil.rmtree(place)
        write()
        done.write_text(key)
    state.wait_for_everyone()
