"""Which picture files a command is about."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from thurl.errors import DataError


__all__ = ["IMAGE_ENDINGS", "find_images"]

IMAGE_ENDINGS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")
"""Endings of the files that are taken from folders, in any case."""


def find_images(inputs: Iterable[str | os.PathLike[str]], *, recursive: bool = False) -> list[Path]:
    """Picture files named directly or lying in folders, each once, folders in alphabetical order.

    A file that is named directly is taken whatever its ending; in folders the ending decides, and hidden files are
    left out.

    Raises:
        DataError: paths that do not exist (all of them listed), or no picture at all.
    """
    places = [Path(item).expanduser() for item in inputs]
    if missing := [str(path) for path in places if not path.exists()]:
        shown = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
        raise DataError(f"no such file or folder: {shown}")
    found: dict[Path, Path] = {}
    for path in places:
        files: Iterable[Path] = [path]
        if path.is_dir():
            entries = path.rglob("*") if recursive else path.glob("*")
            files = sorted(
                entry
                for entry in entries
                if entry.suffix.lower() in IMAGE_ENDINGS
                and entry.is_file()
                and not any(part.startswith(".") for part in entry.relative_to(path).parts)
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        names = ", ".join(str(path) for path in places) or "nothing given"
        hint = "" if recursive else "; pictures in subfolders are found with --recursive"
        raise DataError(f"no pictures in {names}: files ending in {' '.join(IMAGE_ENDINGS)} are taken{hint}")
    return list(found.values())
