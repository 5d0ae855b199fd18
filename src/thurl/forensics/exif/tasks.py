"""The eleven pretext tasks of BLADES and their fifty text prompts (arXiv 2507.22824; GitHub `MZMMSEC/AIGFD_BLO`).

The one-class method (arXiv 2501.02207) uses five of them: the four ordinal settings and the coarse face task.

| task | kind | label of one picture | columns of the logits |
|---|---|---|---|
| iso, aperture, exposure_time, focal_length | ordinal | the setting, NaN if absent | low, medium, high |
| make, metering_mode, exposure_mode, white_balance, exposure_program | category | class, -1 if absent | classes |
| coarse_face | class | 0 photographic, 1 manipulated, -1 if absent | both |
| fine_face | regions | 0 or 1 per region, NaN if absent | mouth, eye, nose |

The strings and token ids in `prompts.json` are constants of the released weights, so they are kept letter by letter,
uneven wording included. Their order is the order of the logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType


__all__ = [
    "CATEGORICAL_TASKS",
    "CONTEXT_LENGTH",
    "FACE_TASKS",
    "LEVELS",
    "OFFICIAL_COLUMNS",
    "ORDINAL_TASKS",
    "TASKS",
    "Prompt",
    "class_names",
    "columns_of",
    "prompts",
]

ORDINAL_TASKS = ("iso", "aperture", "exposure_time", "focal_length")
CATEGORICAL_TASKS = ("make", "metering_mode", "exposure_mode", "white_balance", "exposure_program")
FACE_TASKS = ("coarse_face", "fine_face")
TASKS = ORDINAL_TASKS + CATEGORICAL_TASKS + FACE_TASKS
"""Order of the losses, of the task weights and of the columns in the official code."""

LEVELS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {3: ("low", "medium", "high"), 5: ("ultra-low", "low", "medium", "high", "ultra-high")}
)

_CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "make": (
            "Nikon", "Apple", "FUJIFILM", "Canon", "Samsung", "Sony", "Panasonic", "Nokia", "Pentax", "others",
        ),
        "metering_mode": (
            "average", "centerweighted", "others", "partial", "spot", "multi-spot", "multi-segment", "evaluative",
        ),
        "exposure_mode": (
            "auto", "auto-bracketing", "program", "manual", "aperture-priority", "easy-shooting", "shutter-priority",
        ),
        "white_balance": ("auto", "manual"),
        "exposure_program": (
            "landscape mode", "manual control", "normal program", "portrait mode", "shutter priority",
            "aperture priority",
        ),
        "coarse_face": ("photographic", "manipulated"),
        "fine_face": ("mouth", "eye", "nose"),
    }
)  # fmt: skip

OFFICIAL_COLUMNS: Mapping[str, int] = MappingProxyType(
    {task: 3 if task in ORDINAL_TASKS else len(_CLASSES[task]) for task in TASKS}
)
"""Columns per task of the released model, 50 together."""

CONTEXT_LENGTH = 77
"""Tokens of CLIP's text tower; shorter prompts are padded with 0 on the right."""


@dataclass(frozen=True)
class Prompt:
    """One text of the joint embedding.

    Attributes:
        task: which task its column belongs to.
        text: as the official code has it.
        ids: token ids of CLIP's tokenizer with start (49406) and end (49407), without padding.
    """

    task: str
    text: str
    ids: tuple[int, ...]


@cache
def prompts() -> tuple[Prompt, ...]:
    """The fifty prompts in the order of the columns."""
    text = resources.files(__package__).joinpath("prompts.json").read_text(encoding="utf-8")
    return tuple(Prompt(row["task"], row["text"], tuple(row["ids"])) for row in json.loads(text))


def columns_of(widths: Mapping[str, int] = OFFICIAL_COLUMNS) -> dict[str, slice]:
    """Where each task's logits lie.

    Args:
        widths: columns per task, in the order in which they lie.

    Returns:
        task to slice of the last axis, in the same order.
    """
    found, start = {}, 0
    for task, width in widths.items():
        found[task] = slice(start, start + width)
        start += width
    return found


def class_names(task: str, width: int | None = None) -> tuple[str, ...]:
    """Names of a task's columns: levels, classes or regions.

    Args:
        task: one of `TASKS`.
        width: how many columns the model has for it; the released number when `None`. The first `width` regions of
            the fine face task; 3 or 5 levels of an ordinal task.

    Raises:
        ValueError: no such task, or a width it has no names for.
    """
    if task in ORDINAL_TASKS:
        width = 3 if width is None else width
        if width not in LEVELS:
            raise ValueError(f"{task} with {width} levels: names exist for {' and '.join(map(str, LEVELS))} levels")
        return LEVELS[width]
    if task not in _CLASSES:
        raise ValueError(f"task {task!r} is none of {', '.join(TASKS)}")
    names = _CLASSES[task]
    width = len(names) if width is None else width
    if not (width == len(names) or (task == "fine_face" and 1 <= width < len(names))):
        raise ValueError(f"{task} with {width} columns: it has the {len(names)} classes {', '.join(names)}")
    return names[:width]
