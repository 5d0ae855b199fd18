"""Seeded damage to files: of their bytes, of the text in them, and of the values of a JSON document."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any


__all__ = ["MUTATIONS", "mutated"]

# What people and programs write where something else belongs.
_WORDS = (
    *("nan", "-inf", "1e999", "NaN", "", "null", "true", "0", "-1", "99999999999999999999", "[]", "{}", "é", "\x00"),
    *("../../etc/passwd", "/etc/passwd", "a" * 5000, ",", '"', "\t", "\r", "\u202e", "!!python/object:os.system"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 1e308, float("nan"), float("inf"), "", "x", [], {}, [[]], {"a": 1}),
    *("../../etc/passwd", "\ud800", ["x"] * 1000),
)


def mutated(content: bytes, random_: random.Random) -> tuple[str, bytes]:
    """Name of the damage and the damaged bytes; never equal to `content`, which must not be empty."""
    for _ in range(100):
        name = random_.choice(list(MUTATIONS))
        changed = MUTATIONS[name](content, random_)
        if changed != content:
            return name, changed
    return "emptied", b""


def _flip(content: bytes, random_: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(random_.choice((1, 1, 4, 32))):
        found[random_.randrange(len(found))] ^= 1 << random_.randrange(8)
    return bytes(found)


def _flip_head(content: bytes, random_: random.Random) -> bytes:
    """Headers are short, so damage all over a file seldom meets them."""
    found = bytearray(content)
    for _ in range(random_.choice((1, 3))):
        found[random_.randrange(min(64, len(found)))] = random_.choice(
            (0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256))
        )
    return bytes(found)


def _cut(content: bytes, random_: random.Random) -> bytes:
    return content[: random_.randrange(len(content))]


def _lengthened(content: bytes, random_: random.Random) -> bytes:
    return content + random_.randbytes(random_.choice((1, 16, 4096)))


def _removed(content: bytes, random_: random.Random) -> bytes:
    start = random_.randrange(len(content))
    return content[:start] + content[start + random_.choice((1, 2, 8, 64)) :]


def _repeated(content: bytes, random_: random.Random) -> bytes:
    start, end = sorted(random_.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[start:]


def _zeroed(content: bytes, random_: random.Random) -> bytes:
    start = random_.randrange(len(content))
    end = min(len(content), start + random_.choice((1, 8, 512)))
    return content[:start] + bytes(end - start) + content[end:]


def _encoding(content: bytes, random_: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(random_.choice(("utf-16", "utf-32", "utf-8-sig", "cp1252")), "replace")


def _word(content: bytes, random_: random.Random) -> bytes:
    """One word of a text in place of another."""
    text = content.decode("utf-8", "replace")
    start = random_.randrange(len(text) + 1)
    end = start
    while end < len(text) and (text[end].isalnum() or text[end] in "._-"):
        end += 1
    return (text[:start] + random_.choice(_WORDS) + text[end:]).encode("utf-8", "replace")


def _lines(content: bytes, random_: random.Random) -> bytes:
    """Lines twice, out of order, or gone."""
    lines = content.splitlines(keepends=True)
    at = random_.randrange(len(lines))
    change = random_.choice(("twice", "gone", "shuffled"))
    if change == "twice":
        lines.insert(at, lines[at])
    elif change == "gone":
        del lines[at]
    else:
        random_.shuffle(lines)
    return b"".join(lines)


def _value(content: bytes, random_: random.Random) -> bytes:
    """A value of a JSON document, or of one line of a file of them, replaced, removed or put elsewhere."""
    lines = content.split(b"\n")
    try:
        document, line = json.loads(content), None
    except ValueError:
        line = random_.randrange(len(lines))
        try:
            document = json.loads(lines[line])
        except ValueError:
            return content
    places: list[tuple[Any, Any]] = []
    _collect(document, places)
    if not places:
        return content
    holder, key = random_.choice(places)
    if random_.random() < 0.25:
        del holder[key]
    else:
        holder[key] = random_.choice(_VALUES)
    text = json.dumps(document).encode()
    return text if line is None else b"\n".join([*lines[:line], text, *lines[line + 1 :]])


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        places.append((value, key))
        _collect(value[key], places)


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits": _flip,
    "header": _flip_head,
    "cut": _cut,
    "lengthened": _lengthened,
    "removed": _removed,
    "repeated": _repeated,
    "zeroed": _zeroed,
    "encoding": _encoding,
    "word": _word,
    "lines": _lines,
    "value": _value,
}
