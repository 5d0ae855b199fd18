"""Names of repositories on the Hub."""

from __future__ import annotations

import re
from pathlib import Path


__all__ = ["PLACEHOLDER", "hub_name", "is_hub_name", "name_problem"]

PLACEHOLDER = "USER/NAME"
"""Stands in cards for the repository; a push puts the name there."""

_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9_][\w.-]{0,95}")
_FILES = (".ddr", ".json", ".jsonl", ".safetensors", ".yaml", ".npz", ".pth", ".pt")


def is_hub_name(text: str) -> bool:
    """Whether `text` is `owner/name` and no folder or file of this machine, nor meant to be one."""
    owned = text.count("/") == 1 and _NAME.fullmatch(text) is not None and ".." not in text
    return owned and not text.endswith(_FILES) and not Path(text).exists()


def hub_name(text: str | None) -> str | None:
    """`text` where it is the name of a repository, None for a folder or nothing."""
    return text if text is not None and is_hub_name(text) else None


def name_problem(text: str) -> str | None:
    """Why nothing can be pushed to `text`, None where something can."""
    good = _NAME.fullmatch(text) is not None and ".." not in text and "--" not in text
    if good and not text.endswith((".git", "-", ".")):
        return None
    return "is no name of a repository; give `user/name`, letters, digits, `-`, `_` and `.`"
