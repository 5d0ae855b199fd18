"""Reading the evaluator's pictures: through `thurl.data.images`, with transparency on black."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thurl.data.images import BLACK, ImageError, open_image


__all__ = ["ENDINGS", "Picture", "file_digest", "read_picture"]

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of the files that count as pictures, in any case."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright.
        notes: what was done to it that a person should know, such as transparency put on black.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Decode one file.

    Transparency is composited on black, where `thurl.data.images` takes white by default: the restoration tools that
    write an alpha channel leave black behind it.

    Raises:
        ImageError: the file cannot be used.
    """
    notes: list[str] = []
    image = open_image(path, background=BLACK, notes=notes)
    return Picture(np.asarray(image), tuple(notes))


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-1 of a file's bytes; names content, protects nothing.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        return hashlib.sha1(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from None
