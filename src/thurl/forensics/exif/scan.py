"""A folder of photographs becomes a training manifest and a report of what its EXIF covers.

Deterministic: files are visited in the order of their paths, whatever the number of processes. A file that cannot be
used is listed with its reason and never stops the scan; a photograph that lacks some settings is kept with the others.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from thurl.data.images import MAX_PIXELS, ImageError, open_image
from thurl.errors import MissingRequirementError, UsageError
from thurl.forensics.exif.manifest import FaceRecord
from thurl.forensics.exif.reader import EXIF_FORMATS, MAX_BYTES, read_exif, read_file
from thurl.messages import printable


__all__ = ["GROUPINGS", "SUFFIXES", "UNREAD", "ScanResult", "SkippedFile", "scan_folder"]

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp")
"""Endings of the files a scan looks at, in any case; the content decides about the rest."""

UNREAD = (".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jxl", ".nef", ".orf", ".raf", ".rw2", ".tif",
          ".tiff")  # fmt: skip
"""Endings of photographs that a scan counts and leaves alone; convert them to JPEG with their metadata kept."""

GROUPINGS = ("folder", "camera", "file")
"""What makes a group: the file's folder, the camera's maker and model, or nothing but the file itself."""


@dataclass(frozen=True)
class SkippedFile:
    """A file that is not in the manifest: its path relative to the folder, and why."""

    image: str
    reason: str


@dataclass(frozen=True)
class ScanResult:
    """What a scan found.

    Args:
        records: photographs with at least one setting, sorted by path; paths are relative to the folder.
        skipped: all other files with one of `SUFFIXES`, sorted by path.
        not_read: ending of `UNREAD` to the number of such files: photographs in formats that nothing here reads.
    """

    records: list[FaceRecord]
    skipped: list[SkippedFile]
    not_read: Mapping[str, int] = field(default_factory=dict)


def scan_folder(
    folder: str | os.PathLike[str],
    *,
    group_by: str = "folder",
    canon_evaluative: bool = False,
    check_pixels: bool = True,
    keep_unlabelled: bool = False,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ScanResult:
    """Reads the EXIF of all pictures below a folder.

    Of several identical files the first is kept. Links that lead out of the folder are skipped.

    Args:
        folder: searched with its subfolders; hidden files and folders are left out.
        group_by: one of `GROUPINGS`. Pictures of one person or one burst must share a group, or the parts of a split
            are not independent: keep them in one folder.
        canon_evaluative: see `thurl.forensics.exif.settings.settings_from_raw`.
        check_pixels: decode every picture, so that training never meets a truncated one. Most of the time goes there.
        keep_unlabelled: keep pictures without any setting, for example to fit a detector on them.
        max_bytes, max_pixels: larger files and pictures are skipped.
        processes: how many processes read; the result does not depend on it. The calling script must be importable
            (`if __name__ == "__main__":`) when it is more than 1.
        progress: called with (files done, files in all).

    Raises:
        MissingRequirementError: no such folder, or no file with one of `SUFFIXES` in it.
        UsageError: wrong `group_by` or `processes`.
    """
    if group_by not in GROUPINGS:
        raise UsageError(f"group_by is {group_by!r}; it must be one of {', '.join(GROUPINGS)}")
    if processes < 1:
        raise UsageError(f"processes is {processes}; it must be 1 or more")
    root = Path(folder)
    if not root.is_dir():
        raise MissingRequirementError(f"folder {str(root)!r} does not exist; give the folder of the photographs")
    names = sorted(_files(root, SUFFIXES))
    not_read = _by_ending(_files(root, UNREAD))
    if not names:
        others = "".join(f"; {count} {ending} files are there, convert them to JPEG with their metadata kept"
                         for ending, count in not_read.items())  # fmt: skip
        raise MissingRequirementError(f"folder {str(root)!r} holds no file ending in {', '.join(SUFFIXES)}{others}")
    work = partial(
        _examine,
        root=root,
        group_by=group_by,
        canon_evaluative=canon_evaluative,
        check_pixels=check_pixels,
        keep_unlabelled=keep_unlabelled,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
    )
    records: list[FaceRecord] = []
    skipped: list[SkippedFile] = []
    first: dict[str, str] = {}
    for done, found in enumerate(_map(work, names, processes), start=1):
        if isinstance(found, SkippedFile):
            skipped.append(found)
        elif found.sha256 in first:
            skipped.append(SkippedFile(found.image, f"same file as {first[found.sha256]}"))
        else:
            first[found.sha256] = found.image
            records.append(found)
        if progress is not None:
            progress(done, len(names))
    return ScanResult(records, skipped, not_read)


def _map(
    work: Callable[[str], FaceRecord | SkippedFile], names: Sequence[str], processes: int
) -> Iterator[FaceRecord | SkippedFile]:
    if processes == 1:
        yield from map(work, names)
        return
    # Spawned, not forked: the caller may hold threads. Processes, not threads: the parser is Python code and its
    # warnings are silenced per process.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, names, chunksize=32)


def _files(root: Path, endings: tuple[str, ...]) -> Iterator[str]:
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(endings) and not name.startswith("."):
                yield Path(place, name).relative_to(root).as_posix()


def _by_ending(names: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(os.path.splitext(name)[1].lower() for name in names).items()))


def _examine(
    name: str,
    *,
    root: Path,
    group_by: str,
    canon_evaluative: bool,
    check_pixels: bool,
    keep_unlabelled: bool,
    max_bytes: int,
    max_pixels: int,
) -> FaceRecord | SkippedFile:
    path = root / name
    if printable(name) != name or "\\" in name or name != name.strip():
        return SkippedFile(printable(name), "a control character, a backslash or an outer space in its name")
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        return SkippedFile(name, "a link that leads out of the folder")
    content, problem = read_file(path, max_bytes=max_bytes)
    if problem or not content:
        return SkippedFile(name, problem or "the file is empty")
    reading = read_exif(content, max_pixels=max_pixels)
    settings = reading.settings(canon_evaluative=canon_evaluative)
    if reading.size is None and not keep_unlabelled:
        return SkippedFile(name, reading.problem)
    if not settings.values and not keep_unlabelled:
        return SkippedFile(name, reading.problem or "none of the settings in its EXIF")
    size = reading.size
    if check_pixels or size is None:
        try:
            picture = open_image(content, max_pixels=max_pixels, formats=EXIF_FORMATS, name=name)
        except ImageError as error:
            return SkippedFile(name, str(error).removeprefix(f"{name}: "))
        size = size or picture.size
    maker = str(reading.raw.get("Make") or "")
    # Many makers repeat a part of their name in the model's: "NIKON CORPORATION", "NIKON D70".
    model = reading.model
    repeated = model.casefold().split()[:1] and model.casefold().split()[0] in maker.casefold().split()
    camera = model if repeated else f"{maker} {model}".strip()
    group = {"folder": os.path.dirname(name) or ".", "camera": camera or "unknown", "file": name}[group_by]
    return FaceRecord(
        image=name,
        settings=settings,
        group=group,
        camera=camera,
        size=size,
        sha256=hashlib.sha256(content).hexdigest(),
    )
