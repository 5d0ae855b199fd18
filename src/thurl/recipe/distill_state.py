"""Which stages of a distillation are finished: a file beside each state, with the settings that led to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thurl.recipe.distill import DistillRecipe
from thurl.training.results import plain, write_atomically


__all__ = ["finish", "finished_stage", "stage_key"]

logger = logging.getLogger(__name__)

_FILE = "finished.json"
_FREE = ("output_dir", "resume_from_checkpoint", "report_to", "disable_tqdm")
"""Fields of `training` that change no number."""


def stage_key(recipe: DistillRecipe, sections: Sequence[str]) -> dict[str, Any]:
    """The settings that a stage depends on, JSON values.

    Args:
        sections: of the recipe; the seed is always part of them.
    """
    whole = recipe.model_dump(mode="json")
    key = {name: whole[name] for name in sections}
    if "training" in key:
        key["training"] = {name: value for name, value in key["training"].items() if name not in _FREE}
    return {"seed": recipe.training.get("seed"), **plain(key)}


def finished_stage(place: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """What `finish` was given for these settings; None where the stage is not finished, or is of other settings."""
    path = place / _FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["key"] != key:
        logger.info("%s is of a run with other settings; it is done again", place)
        return None
    logger.info("%s is finished", place)
    return dict(found)


def finish(place: Path, key: dict[str, Any], more: dict[str, Any]) -> None:
    """Say that a stage is finished, once its state is in `place`."""
    write_atomically(place / _FILE, json.dumps({"key": key, **plain(more)}, allow_nan=False))
