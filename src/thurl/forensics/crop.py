"""Where to cut a face out of its photograph: a square around the face box, enlarged by 1.3.

The box comes from a file or a detector; the whole picture is the face when there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


__all__ = ["CROP_SCALE", "central_box", "face_square", "official_crop"]

CROP_SCALE = 1.3
"""Side of the crop over the longer side of the face box, as the training faces were cut."""

Box = tuple[int, int, int, int]


def face_square(box: Sequence[float], size: tuple[int, int], *, scale: float = CROP_SCALE) -> Box:
    """The official square around a face box, cut off (not moved) at the borders of the picture.

    Args:
        box: (left, top, right, bottom) in pixels, rounded first.
        size: (width, height) of the picture.
        scale: side of the square over the longer side of the box.

    Returns:
        (left, top, right, bottom), right and bottom exclusive, inside the picture and at least one pixel wide.

    Raises:
        ValueError: a number that is not finite, an empty box, a box outside the picture, or `scale` not above 0.
    """
    if len(box) != 4 or not all(math.isfinite(n) and abs(n) < 1e7 for n in box):
        raise ValueError(f"box is {list(box)}; it must be four finite numbers of pixels")
    if not 0 < scale < 100:
        raise ValueError(f"scale is {scale}; it must be above 0")
    left, top, right, bottom = (round(n) for n in box)
    side = int(max(right - left, bottom - top) * scale)
    if right <= left or bottom <= top or side < 1:
        raise ValueError(f"box is {list(box)}; it holds no pixel")
    x, y = max((right + left) // 2 - side // 2, 0), max((bottom + top) // 2 - side // 2, 0)
    if x >= size[0] or y >= size[1]:
        raise ValueError(f"box is {list(box)}; it lies outside the picture of {size[0]}x{size[1]}")
    return x, y, x + min(size[0] - x, side), y + min(size[1] - y, side)


def central_box(size: tuple[int, int], *, scale: float = CROP_SCALE) -> tuple[float, float, float, float]:
    """The face box (left, top, right, bottom) in a picture that is itself a crop around a face.

    Args:
        size: (width, height) of the picture.
        scale: what the crop was enlarged by.
    """
    width, height = size
    left, top = width * (1 - 1 / scale) / 2, height * (1 - 1 / scale) / 2
    return left, top, width - left, height - top


def official_crop(fractions: Sequence[float], size: tuple[int, int], *, scale: float = CROP_SCALE) -> Box:
    """`face_square` of a box given in fractions, as Flickr Diverse Faces stores them.

    Both axes are multiplied by the picture's height, as in the official code: right for its square pictures only. For
    others give pixels to `face_square`.

    Args:
        fractions: (left, top, right, bottom) in [0, 1].
        size: (width, height) of the picture.
    """
    return face_square([fraction * size[1] for fraction in fractions], size, scale=scale)
