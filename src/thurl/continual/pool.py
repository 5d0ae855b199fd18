"""The pool of classes a benchmark is built from: which pictures, in which split, under which name.

A pool is a manifest of JSON lines, one per picture: `dataset`, `class_name`, `class_uid`, `alias`, `split`, `image`
and `sha256`. Splits depend on the names of the pictures alone, the hash of a pool on their content alone.
Classes of different data sets that are called alike stay apart, but share an `alias`: by default they never meet in a
sequence, since telling them apart is label noise and not difficulty.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from thurl.continual.class_data import SPLITS
from thurl.data.hub_pictures import is_hub_image
from thurl.errors import DataError, UsageError
from thurl.training.results import write_atomically


__all__ = ["ARRAY_PREFIX", "ClassPool", "PoolImage", "Sample", "alias_name", "make_pool", "read_pool"]

logger = logging.getLogger(__name__)

ARRAY_PREFIX = "array:"
"""A picture in an .npz file: this prefix, the path of the file, `#` and the row."""
NEAR = 10
"""Bits of 256 in which the difference hashes of near-duplicates differ at most."""
SHOWN = 20


@dataclass(frozen=True)
class PoolImage:
    """One picture of a pool.

    Args:
        dataset, class_name: where it comes from; `class_uid` is `dataset/class_name`.
        alias: classes with one alias never meet in a sequence.
        split: one of `thurl.continual.class_data.SPLITS`.
        image: path relative to the manifest, or a reference into an .npz file or a Hub data set.
        sha256: of the encoded picture.
    """

    dataset: str
    class_name: str
    alias: str
    split: str
    image: str
    sha256: str

    @property
    def class_uid(self) -> str:
        return f"{self.dataset}/{self.class_name}"


@dataclass(frozen=True)
class Sample:
    """A picture found in a source, before it is given a split.

    Args:
        name: decides the split; the file's name, or the digest where there is none.
        near: 256 bits of a difference hash as four uint64, None where near-duplicates are not looked for.
    """

    dataset: str
    class_name: str
    name: str
    image: str
    sha256: str
    near: tuple[int, ...] | None = None


class ClassPool:
    """Pictures of many classes.

    Args:
        images: in any order.
        root: folder that relative paths start from.

    Raises:
        DataError: rows that contradict each other, or a class without pictures in a split; the first 20 and the count.
    """

    def __init__(self, images: Iterable[PoolImage], root: Path) -> None:
        self.images = tuple(sorted(images, key=lambda item: (item.class_uid, SPLITS.index(item.split), item.sha256)))
        self.root = root
        self.classes = tuple(sorted({item.class_uid for item in self.images}))
        self._check()
        names = {item.class_uid: item.alias for item in self.images}
        order = {alias: number for number, alias in enumerate(dict.fromkeys(names[uid] for uid in self.classes))}
        self.groups = tuple(order[names[uid]] for uid in self.classes)
        rows = [[item.class_uid, item.alias, item.split, item.sha256] for item in self.images]
        self.hash = hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Classes that must not meet: alias to `class_uid`s, only where there are several."""
        found: dict[int, list[str]] = defaultdict(list)
        for uid, group in zip(self.classes, self.groups, strict=True):
            found[group].append(uid)
        names = {item.class_uid: item.alias for item in self.images}
        return {names[uids[0]]: tuple(uids) for uids in found.values() if len(uids) > 1}

    def counts(self) -> dict[str, dict[str, int]]:
        """Pictures per class and split."""
        found = Counter((item.class_uid, item.split) for item in self.images)
        return {uid: {split: found[uid, split] for split in SPLITS} for uid in self.classes}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest in one step; paths are written relative to its folder."""
        target = Path(path)
        lines = []
        for item in self.images:
            row = {**asdict(item), "class_uid": item.class_uid, "image": moved(item.image, self.root, target.parent)}
            lines.append(json.dumps(row, ensure_ascii=False, sort_keys=True))
        write_atomically(target, "\n".join(lines) + "\n")

    def _check(self) -> None:
        problems = []
        aliases: dict[str, str] = {}
        owner: dict[str, str] = {}
        for item in self.images:
            if aliases.setdefault(item.class_uid, item.alias) != item.alias:
                problems.append(f"{item.class_uid}: aliases {aliases[item.class_uid]!r} and {item.alias!r}; keep one")
            if (other := owner.setdefault(item.sha256, item.class_uid)) != item.class_uid:
                problems.append(f"{item.image}: the same picture is in {other} and {item.class_uid}; keep one")
        twice = [digest for digest, count in Counter(item.sha256 for item in self.images).items() if count > 1]
        problems += [f"{owner[digest]}: a picture is there twice ({digest[:12]}); keep one" for digest in twice]
        for uid, counts in self.counts().items():
            if empty := [split for split in SPLITS if not counts[split]]:
                problems.append(f"{uid}: no picture in {', '.join(empty)}; a class needs one in each split")
        if not self.classes:
            problems.append("the pool has no picture")
        raise_problems(problems, "the pool cannot be used")


def make_pool(
    samples: Iterable[Sample],
    root: Path,
    *,
    sizes: Sequence[float] = (0.6, 0.2, 0.2),
    caps: Sequence[int | None] = (200, None, None),
    seed: int = 0,
    aliases: Mapping[str, Sequence[str]] | None = None,
    share_names: bool = True,
    on_small: str = "error",
    on_duplicate: str = "error",
    noun: str = "picture",
) -> ClassPool:
    """Give every picture a split and leave out what would make the benchmark wrong.

    Args:
        samples: from `thurl.continual.pool_sources`.
        root: folder that relative paths start from.
        sizes: of train, val and test in each class: three shares that add up to 1, or three whole numbers.
        caps: most pictures per class in each; None for no limit.
        seed: another one is another split. The rest is decided by the names of the pictures.
        aliases: further groups of classes that must not meet: a name to `class_uid`s.
        share_names: classes of different data sets called alike are aliases. False: they are different things.
        on_small: what becomes of a class with too few pictures: "error" or "skip".
        on_duplicate: what becomes of a picture that lies in several classes: "error", or "drop" it from all of them.
        noun: what messages call a sample that is no picture.

    Raises:
        UsageError: wrong options.
        DataError: classes that cannot be used; the first 20 and the count.
    """
    _check_options(sizes, caps, on_small, on_duplicate)
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[f"{sample.dataset}/{sample.class_name}"].append(sample)
    owners: dict[str, set[str]] = defaultdict(set)
    shown: dict[str, str] = {}
    for uid, found in by_class.items():
        for sample in found:
            owners[sample.sha256].add(uid)
            shown[sample.sha256] = sample.image
    shared = {digest: sorted(uids) for digest, uids in owners.items() if len(uids) > 1}
    problems = _alike(by_class)
    if shared and on_duplicate == "error":
        problems += [
            f"{shown[digest]}: this {noun} is in {' and '.join(uids)}; remove it, or on_duplicate: drop"
            for digest, uids in shared.items()
        ]
    names = _aliases(by_class, aliases or {}, share_names)
    images, small = [], []
    for uid, found in sorted(by_class.items()):
        ranked = sorted(found, key=lambda sample: _rank(seed, sample))
        kept = _distinct([sample for sample in ranked if sample.sha256 not in shared])
        counts = _sizes(len(kept), sizes)
        if counts is None:
            small.append(f"{uid}: {len(kept)} of {len(found)} {noun}s can be used; {_needed(sizes, noun)}")
            continue
        first = 0
        for split, count, cap in zip(SPLITS, counts, caps, strict=True):
            for sample in kept[first : first + min(count, cap or count)]:
                images.append(
                    PoolImage(sample.dataset, sample.class_name, names[uid], split, sample.image, sample.sha256)
                )
            first += count
    if on_small == "error":
        problems += small
    elif small:
        logger.warning("%d classes left out:\n%s", len(small), "\n".join(small[:SHOWN]))
    raise_problems(problems, "the pool cannot be made")
    return ClassPool(images, root)


def read_pool(path: str | os.PathLike[str], *, allow_outside: bool = False) -> ClassPool:
    """Read a manifest.

    Args:
        allow_outside: accept paths that are absolute or leave the manifest's folder.

    Raises:
        DataError: not a manifest; the first 20 problems and the count.
    """
    manifest = Path(path)
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a pool: {error}; `thurl cldyb pool` writes one") from error
    images, problems = [], []
    fields = tuple(PoolImage.__dataclass_fields__)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            item = PoolImage(**{field: row[field] for field in fields})
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"line {number}: {type(error).__name__} {error}; a row has {', '.join(fields)}")
            continue
        if not all(isinstance(row[field], str) and row[field] for field in fields):
            problems.append(f"line {number}: every field must be a text that is not empty")
        elif item.split not in SPLITS:
            problems.append(f"line {number}: split {item.split!r}; choose from {', '.join(SPLITS)}")
        elif row.get("class_uid", item.class_uid) != item.class_uid:
            problems.append(f"line {number}: class_uid {row['class_uid']!r} is not {item.class_uid!r}")
        elif not allow_outside and _outside(item.image):
            problems.append(
                f"line {number}: {item.image} lies outside the manifest's folder; allow_outside accepts it"
            )
        else:
            images.append(item)
    raise_problems(problems, f"{path}: not a pool")
    return ClassPool(images, manifest.parent)


def alias_name(class_name: str) -> str:
    """What two names have in common that mean one class: case, spaces, hyphens and underscores do not count."""
    return "".join(character for character in class_name.casefold() if character not in " -_")


def moved(image: str, old: Path, new: Path) -> str:
    """A reference relative to folder `old`, made relative to folder `new`."""
    if is_hub_image(image):
        return image
    prefix = ARRAY_PREFIX if image.startswith(ARRAY_PREFIX) else ""
    path, mark, row = image.removeprefix(prefix).rpartition("#") if prefix else (image, "", "")
    return prefix + Path(os.path.relpath(old / path, new)).as_posix() + mark + row


def raise_problems(problems: Sequence[str], what: str) -> None:
    """A DataError with the first 20 problems and the count, if there is one."""
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n".join([f"{what}:", *problems[:SHOWN], *more]))


def _outside(image: str) -> bool:
    if is_hub_image(image):
        return False
    path = os.path.normpath(image.removeprefix(ARRAY_PREFIX))
    return os.path.isabs(path) or path.split(os.sep)[0] == os.pardir


def _rank(seed: int, sample: Sample) -> bytes:
    key = f"{seed}\0{sample.dataset}/{sample.class_name}\0{sample.name}"
    return hashlib.sha256(key.encode()).digest() + sample.sha256.encode()


def _distinct(ranked: Sequence[Sample]) -> list[Sample]:
    """Without copies, and without pictures that look like one before them."""
    kept: list[Sample] = []
    digests: set[str] = set()
    hashes = np.zeros((len(ranked), 4), dtype=np.uint64)
    for sample in ranked:
        if sample.sha256 in digests:
            continue
        if sample.near is not None:
            bits = np.array(sample.near, dtype=np.uint64)
            apart = np.bitwise_count(hashes[: len(kept)] ^ bits).sum(axis=1)
            if (apart <= NEAR).any():
                continue
            hashes[len(kept)] = bits
        digests.add(sample.sha256)
        kept.append(sample)
    if len(kept) < len(ranked):
        where = f"{ranked[0].dataset}/{ranked[0].class_name}"
        logger.warning("%s: %d copies and near-duplicates left out", where, len(ranked) - len(kept))
    return kept


def _sizes(count: int, sizes: Sequence[float]) -> list[int] | None:
    if all(isinstance(size, int) for size in sizes):
        return [int(size) for size in sizes] if count >= sum(sizes) else None
    if count < len(SPLITS):
        return None
    held = [max(1, round(count * size)) for size in sizes[1:]]
    train = count - sum(held)
    return [train, *held] if train >= 1 else [count - 2, 1, 1]


def _needed(sizes: Sequence[float], noun: str) -> str:
    least = sum(sizes) if all(isinstance(size, int) for size in sizes) else len(SPLITS)
    return f"a class needs {least} at least. Add {noun}s, or on_small: skip"


def _alike(by_class: Mapping[str, Sequence[Sample]]) -> list[str]:
    """One class under two spellings in one data set."""
    spelled: dict[tuple[str, str], set[str]] = defaultdict(set)
    for samples in by_class.values():
        spelled[samples[0].dataset, alias_name(samples[0].class_name)].add(samples[0].class_name)
    return [
        f"{dataset}: {' and '.join(sorted(names))} are one class spelled differently; rename or merge them"
        for (dataset, _), names in sorted(spelled.items())
        if len(names) > 1
    ]


def _aliases(
    by_class: Mapping[str, Sequence[Sample]], aliases: Mapping[str, Sequence[str]], share_names: bool
) -> dict[str, str]:
    names = {uid: alias_name(samples[0].class_name) if share_names else uid for uid, samples in by_class.items()}
    unknown = sorted({uid for uids in aliases.values() for uid in uids} - set(by_class))
    if unknown:
        raise UsageError([f"aliases: class {uid!r} is not in the pool; write dataset/class" for uid in unknown])
    # Groups that share a class, or a name, are one group.
    for alias, uids in aliases.items():
        joined = {names[uid] for uid in uids}
        names = {uid: alias if name in joined else name for uid, name in names.items()}
    return names


def _check_options(sizes: Sequence[float], caps: Sequence[int | None], on_small: str, on_duplicate: str) -> None:
    problems = []
    whole = all(isinstance(size, int) for size in sizes)
    if len(sizes) != 3 or min(sizes) <= 0 or (not whole and not math.isclose(sum(sizes), 1, abs_tol=1e-6)):
        problems.append(f"sizes is {tuple(sizes)}; give three shares above 0 that add up to 1, or three whole numbers")
    if len(caps) != 3 or any(cap is not None and cap < 1 for cap in caps):
        problems.append(f"caps is {tuple(caps)}; give three numbers of 1 or more, or none")
    if on_small not in ("error", "skip"):
        problems.append(f"on_small is {on_small!r}; choose error or skip")
    if on_duplicate not in ("error", "drop"):
        problems.append(f"on_duplicate is {on_duplicate!r}; choose error or drop")
    if problems:
        raise UsageError(problems)
