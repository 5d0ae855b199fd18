"""Training, validation and test parts that share no content.

All pictures made from one reference go into the same part (arXiv 2505.14460, section 4.1: 6:2:2 by reference); a
picture without a reference is its own. The official script shuffles a Python set, so its split cannot be computed
again: the reference lists of KADID-10K are therefore written down here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from thurl.data.records import RatedImage
from thurl.errors import DataError, UsageError
from thurl.messages import closest


__all__ = [
    "OFFICIAL_SPLITS",
    "SPLITS",
    "check_no_leak",
    "select_references",
    "select_split",
    "split_by_reference",
]

SPLITS = ("train", "validation", "test")


def _kadid(numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"I{number:02d}.png" for number in numbers)


_KADID_VALIDATION = (7, 12, 14, 15, 16, 27, 32, 35, 36, 41, 44, 49, 55, 66, 67, 70)
_KADID_TEST = (19, 29, 30, 34, 37, 38, 43, 50, 64, 71, 72, 73, 74, 78, 80, 81)

# References of the split VisualQuality-R1 was trained with: 49, 16 and 16 of 81.
OFFICIAL_SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "KADID-10K": {
        "train": _kadid(n for n in range(1, 82) if n not in _KADID_VALIDATION + _KADID_TEST),
        "validation": _kadid(_KADID_VALIDATION),
        "test": _kadid(_KADID_TEST),
    }
}


def split_by_reference(
    records: Sequence[RatedImage], *, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
) -> dict[str, list[RatedImage]]:
    """Parts `train`, `validation` and `test` of the given sizes, counted in references of each data set.

    Depends on `seed` and the names only: not on the order of the rows, the platform or the Python version. A data set
    without references, such as SPAQ, is split by picture.

    Args:
        records: rated pictures of one or several data sets; each data set is split alone.
        fractions: three positive sizes adding up to 1.
        seed: another seed is another split.

    Returns:
        Records of each part in their old order. Every part has at least one reference of each data set.

    Raises:
        UsageError: wrong `fractions`.
        DataError: a data set has fewer than three references.
    """
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(f"fractions is {tuple(fractions)}; it must be three positive numbers that add up to 1")
    part_of: dict[tuple[str, str], str] = {}
    units: dict[str, set[str]] = {}
    for record in records:
        units.setdefault(record.dataset, set()).add(_unit(record))
    for dataset, names in units.items():
        if len(names) < len(SPLITS):
            raise DataError(
                f"data set {dataset!r} has {len(names)} references; three parts without common content need three. "
                "Train on all of it and validate on another data set."
            )
        # Hash order: unlike random.shuffle it is the same for ever and in every language.
        ordered = sorted(names, key=lambda name, dataset=dataset: _rank(seed, dataset, name))
        sizes = _sizes(len(ordered), fractions)
        start = 0
        for split, size in zip(SPLITS, sizes, strict=True):
            part_of.update({(dataset, name): split for name in ordered[start : start + size]})
            start += size
    parts: dict[str, list[RatedImage]] = {split: [] for split in SPLITS}
    for record in records:
        parts[part_of[record.dataset, _unit(record)]].append(record)
    check_no_leak(parts)
    return parts


def select_split(records: Sequence[RatedImage], split: str, *, seed: int = 0) -> list[RatedImage]:
    """Pictures of one part: by the published reference list where there is one (KADID-10K), else 6:2:2 with `seed`.

    Args:
        split: "train", "validation", "test", or "all".

    Raises:
        UsageError: another name for a split.
        DataError: as `split_by_reference`; a KADID-10K record without a reference; an empty part.
    """
    if split == "all":
        return list(records)
    if split not in SPLITS:
        near = closest(split, SPLITS)
        raise UsageError(
            f"split is {split!r}"
            + (f"; nearest: {near!r}" if near else "")
            + f". It must be one of {', '.join(SPLITS)}."
        )
    published = [record for record in records if record.dataset in OFFICIAL_SPLITS]
    others = [record for record in records if record.dataset not in OFFICIAL_SPLITS]
    stems = {
        dataset: {name: {_stem(item) for item in items} for name, items in lists.items()}
        for dataset, lists in OFFICIAL_SPLITS.items()
    }
    chosen: set[int] = set()
    for record in published:
        lists = stems[record.dataset]
        own = _stem(record.reference or "")
        if not any(own in names for names in lists.values()):
            raise DataError(
                f"{record.where}: reference is {record.reference!r}, which is not one of {record.dataset}; "
                "give the reference of each picture, or use `references` instead of `split`"
            )
        if own in lists[split]:
            chosen.add(id(record))
    if others:
        chosen |= {id(record) for record in split_by_reference(others, seed=seed)[split]}
    found = [record for record in records if id(record) in chosen]
    if not found:
        raise DataError(
            f"split {split!r} holds none of the {len(records)} pictures; leave it out or give other labels"
        )
    return found


def select_references(records: Sequence[RatedImage], references: Iterable[str]) -> list[RatedImage]:
    """Pictures made from the named references; endings and case of the names do not matter.

    Raises:
        UsageError: a name that no record has, all of them at once, each with the nearest.
    """
    wanted = {_stem(name): name for name in references}
    known = {_stem(record.reference): record.reference for record in records if record.reference}
    unknown = [name for stem, name in wanted.items() if stem not in known]
    if unknown:
        problems = []
        for name in unknown:
            near = known.get(closest(_stem(name), known, cutoff=0.5) or "")
            problems.append(f"references: {name!r} is in no row" + (f"; nearest: {near!r}" if near else ""))
        raise UsageError(problems)
    return [record for record in records if record.reference and _stem(record.reference) in wanted]


def check_no_leak(parts: Mapping[str, Sequence[RatedImage]]) -> None:
    """Raises DataError when a reference or a picture is in two parts; names the first 20."""
    seen: dict[tuple[str, str], str] = {}
    leaks: dict[tuple[str, str], tuple[str, str]] = {}
    for part, records in parts.items():
        for record in records:
            key = (record.dataset, _unit(record))
            if seen.setdefault(key, part) != part:
                leaks[key] = (seen[key], part)
    if leaks:
        lines = [f"  {name} ({dataset}): {a} and {b}" for (dataset, name), (a, b) in sorted(leaks.items())[:20]]
        more = [f"  ... and {len(leaks) - 20} more"] if len(leaks) > 20 else []
        raise DataError(
            "\n".join(
                [f"{len(leaks)} references are in two parts, so results would be too good:", *lines, *more]
                + ["Split by reference."]
            )
        )


def _unit(record: RatedImage) -> str:
    return f"reference {_stem(record.reference)}" if record.reference else f"picture {record.image}"


def _stem(name: str) -> str:
    base = name.replace("\\", "/").rsplit("/", 1)[-1].lower()
    stem, dot, ending = base.rpartition(".")
    return stem if dot and ending in ("png", "bmp", "jpg", "jpeg", "tif", "tiff", "webp", "gif") else base


def _rank(seed: int, dataset: str, name: str) -> bytes:
    # The folder is left out: the same data set in another place must give the same split.
    kind, _, path = name.partition(" ")
    short = f"{kind} {path.replace(chr(92), '/').rsplit('/', 1)[-1]}"
    return hashlib.sha256(f"{seed}\0{dataset}\0{short}".encode()).digest() + name.encode()


def _sizes(count: int, fractions: Sequence[float]) -> list[int]:
    sizes = [round(count * fraction) for fraction in fractions[:-1]]
    sizes.append(count - sum(sizes))
    while min(sizes) < 1:
        sizes[sizes.index(min(sizes))] += 1
        sizes[sizes.index(max(sizes))] -= 1
    return sizes
