"""The nearest valid name for a wrong one, and how values look in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


__all__ = ["nearest", "shown"]


def nearest(name: object, valid: Iterable[object]) -> str:
    """`"; did you mean `x`?"` for the closest of `valid`, the empty string when nothing is close."""
    names = [str(item) for item in valid]
    lowered = {item.lower(): item for item in names}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean `{lowered[close[0]]}`?" if close else ""


def shown(value: Any) -> str:
    """A value with its type, cut to one short line."""
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({type(value).__name__})" if value is not None else "null"
