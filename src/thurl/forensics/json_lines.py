"""Reading manifests of JSON Lines that nobody has checked: one object per line, and the values in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from thurl.errors import DataError, MissingRequirementError
from thurl.messages import nearest


__all__ = ["check_keys", "json_lines", "manifest_text", "mapping_value", "numbers_value", "text_value"]


def manifest_text(path: Path, obtain: str = "") -> str:
    """The text of a manifest.

    Raises:
        MissingRequirementError: no such file; `obtain` says what makes one.
        DataError: no UTF-8 text, or a file that cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingRequirementError(f"manifest {str(path)!r} does not exist{obtain and '; ' + obtain}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def json_lines(text: str) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Number, counted from 1, and object of every line that is not blank; what is wrong with it where it is none."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, DataError(f"not a JSON object: {error}")
            continue
        yield number, row if isinstance(row, dict) else DataError(f"a {type(row).__name__} instead of a JSON object")


def check_keys(row: Iterable[str], keys: Iterable[str]) -> None:
    """Raises DataError for a key that is not one of `keys`."""
    keys = list(keys)
    for key in row:
        if key not in keys:
            raise DataError(f"key {key!r} is unknown{nearest(key, keys)}; keys: {', '.join(keys)}")


def text_value(row: Mapping[str, Any], key: str) -> str:
    """A text; empty where it is missing or null."""
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{key} is {value!r}; it must be a text")
    return value


def mapping_value(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object; empty where it is missing or null."""
    value = row.get(key) or {}
    if not isinstance(value, dict):
        raise DataError(f"{key} is {value!r}; it must be an object")
    return value


def numbers_value(value: object, key: str, count: int) -> tuple[Any, ...]:
    """`count` finite numbers from a list; `key` is what the message calls it."""
    fine = isinstance(value, list) and len(value) == count
    if not fine or any(isinstance(n, bool) or not isinstance(n, (int, float)) or not math.isfinite(n) for n in value):  # type: ignore[attr-defined]
        raise DataError(f"{key} is {value!r}; it must be {count} finite numbers")
    return tuple(value)  # type: ignore[arg-type]
