"""Disjoint parts of data in which nothing that belongs together, such as a person, is in two parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from thurl.errors import DataError, UsageError


__all__ = ["assign_parts", "connected_units"]


def connected_units(names: Iterable[Sequence[str]]) -> list[str]:
    """One name per record, equal for records that share a name, directly or through others.

    Args:
        names: of each record, at least one.

    Returns:
        For each record the alphabetically first name of all it is connected with; the order of records does not
        matter.
    """
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    firsts = []
    for own in names:
        firsts.append(own[0])
        for other in own[1:]:
            a, b = sorted((find(own[0]), find(other)))
            root[b] = a
    return [find(name) for name in firsts]


def assign_parts(
    units: Iterable[str], parts: Mapping[str, float], *, seed: int, what: str, fix: str
) -> dict[str, str]:
    """The part of every unit. Depends on `seed`, the parts and the names only, not on their order or the platform.

    Args:
        units: names, repeated or not. Parts are counted in different names, so unequal units make unequal parts.
        parts: name to share; positive numbers that add up to 1.
        seed: another seed is another split.
        what: what the units are made of, for the message, such as "12 photographs".
        fix: what to do about too few units, for the message.

    Returns:
        Unit to part; no part is empty.

    Raises:
        UsageError: wrong `parts`.
        DataError: fewer units than parts.
    """
    if not parts or min(parts.values()) <= 0 or abs(sum(parts.values()) - 1) > 1e-6:
        raise UsageError(f"parts is {dict(parts)}; it must be names with positive shares that add up to 1")
    names = sorted(set(units), key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest() + name.encode())
    if len(names) < len(parts):
        raise DataError(
            f"{what} form {len(names)} group{'s' if len(names) != 1 else ''} and "
            f"{len(parts)} parts ({', '.join(parts)}) need one each; {fix}"
        )
    part_of: dict[str, str] = {}
    start, share = 0, 0.0
    for place, (part, size) in enumerate(parts.items()):
        share += size
        rest = len(parts) - place - 1
        end = min(max(round(share * len(names)), start + 1), len(names) - rest)
        part_of.update(dict.fromkeys(names[start:end], part))
        start = end
    return part_of
