"""What can be said of weight files without loading them: digests, and what a pristine model holds."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path


__all__ = ["has_brisque", "weights_digest"]

_LARGE = 2**30
_CHUNK = 2**20


def weights_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file; of a folder, that of the names and digests of its files.

    A file above 1 GiB is known by its size, its first and its last MiB; the digest then begins with `parts:`.
    """
    place = Path(path)
    if place.is_dir():
        digest = hashlib.sha256()
        for file in sorted(item for item in place.rglob("*") if item.is_file()):
            digest.update(f"{file.relative_to(place).as_posix()} {weights_digest(file)}\n".encode())
        return f"folder:{digest.hexdigest()}"
    with open(place, "rb") as content:
        size = place.stat().st_size
        if size <= _LARGE:
            return hashlib.file_digest(content, "sha256").hexdigest()
        digest = hashlib.sha256(f"{size}\n".encode())
        digest.update(content.read(_CHUNK))
        content.seek(-_CHUNK, os.SEEK_END)
        digest.update(content.read(_CHUNK))
        return f"parts:{digest.hexdigest()}"


def has_brisque(path: str | os.PathLike[str]) -> bool:
    """Whether a pristine model holds BRISQUE features; False for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "brisque_mean.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
