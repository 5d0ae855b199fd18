"""Pieces of error messages: the valid name that was probably meant, and values as one safe line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


__all__ = ["closest", "first_line", "nearest", "printable", "shown"]


def closest(name: object, valid: Iterable[object], cutoff: float = 0.6) -> str | None:
    """The one of `valid` that `name` most likely was meant to be, `None` when nothing is close.

    `cutoff` is the share of letters in common, in [0, 1]; short names such as `I07` need a lower one.
    """
    lowered = {str(item).lower(): str(item) for item in valid}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=cutoff)
    return lowered[close[0]] if close else None


def nearest(name: object, valid: Iterable[object]) -> str:
    """`"; did you mean `x`?"` for the closest of `valid`, the empty string when nothing is close."""
    found = closest(name, valid)
    return f"; did you mean `{found}`?" if found else ""


def printable(text: str) -> str:
    """`text` on one line and without control characters, which a foreign recipe could aim at the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """The beginning of what an error of another library says, its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def shown(value: Any) -> str:
    """A value with its type, cut to one short line."""
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({type(value).__name__})" if value is not None else "null"
