"""What a person needs to know when a file could not be written for want of room, however deep the writer was."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path


__all__ = ["NO_ROOM", "full_disk_problem"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Full file system, quota used up, file above the limit of its size."""

_TORCH = ("PytorchStreamWriter failed", "inline_container.cc")
"""What torch says where an optimizer's file cannot be written to its end; it does not say why."""
_FULL = 2**20  # bytes


def full_disk_problem(error: BaseException, place: str | os.PathLike[str]) -> str | None:
    """The file or folder, the cause and how much room is left; None: the error has another reason.

    Libraries wrap the error of the system: safetensors keeps its words, torch nothing of it.

    Args:
        error: as it was raised; what it came from is looked at, too.
        place: folder that was written to, named where the error names no file.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        cause = _cause(link, place)
        if cause is not None:
            path = getattr(link, "filename", None) or place
            return f"{path}: {cause} ({_room(place) / 2**20:.1f} MiB free in {place})"
        link = link.__cause__ or link.__context__
    return None


def _cause(error: BaseException, place: str | os.PathLike[str]) -> str | None:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return os.strerror(error.errno)
    text = str(error)
    for number in NO_ROOM:
        if os.strerror(number) in text:
            return os.strerror(number)
    if isinstance(error, RuntimeError) and any(words in text for words in _TORCH) and _room(place) < _FULL:
        return os.strerror(errno.ENOSPC)
    return None


def _room(place: str | os.PathLike[str]) -> int:
    path = Path(place).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
