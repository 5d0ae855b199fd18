"""Folders of face pictures: `frames/PLACE.png`, and beside them `masks/PLACE.png` and `landmarks/PLACE.npy`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thurl.errors import UsageError


__all__ = ["new_folder", "write_face"]


def new_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder that does not exist or is empty.

    Raises:
        UsageError: it is neither.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"folder {str(path)!r} is not empty; give a new one")
    return path


def write_face(
    folder: Path,
    place: str,
    pixels: NDArray[np.uint8],
    *,
    mask: NDArray[np.uint8] | None = None,
    landmarks: NDArray[np.float64] | None = None,
) -> tuple[str, str | None, str | None]:
    """Writes one face; folders are made.

    Args:
        folder: of the data set.
        place: path below the part's folder, without an ending.
        pixels: (H, W, 3) uint8.
        mask: (H, W) uint8.
        landmarks: (P, 2).

    Returns:
        Paths of picture, mask and landmarks, None for what is not there.
    """

    def ready(part: str, ending: str) -> str:
        path = folder / part / (place + ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    frame = ready("frames", ".png")
    Image.fromarray(pixels).save(frame)
    mask_path = points_path = None
    if mask is not None:
        mask_path = ready("masks", ".png")
        Image.fromarray(mask).save(mask_path)
    if landmarks is not None:
        points_path = ready("landmarks", ".npy")
        np.save(points_path, landmarks)
    return frame, mask_path, points_path
