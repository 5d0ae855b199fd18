"""What happens to pictures on their way: recompression, shrinking, blur. Detectors are evaluated again after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from thurl.data.images import ImageError, open_image
from thurl.errors import UsageError
from thurl.restoration.degradation import jpeg


if TYPE_CHECKING:
    from thurl.forensics.reading import Picture


__all__ = ["PERTURBATIONS", "SpoiledPictures", "check_perturbations"]


def _half(image: Image.Image) -> Image.Image:
    size = (max(1, image.width // 2), max(1, image.height // 2))
    return image.resize(size, Image.Resampling.BICUBIC)


PERTURBATIONS: Mapping[str, Callable[[Image.Image], Image.Image]] = MappingProxyType(
    {
        "none": lambda image: image,
        "jpeg_95": partial(jpeg, quality=95),
        "jpeg_75": partial(jpeg, quality=75),
        "jpeg_50": partial(jpeg, quality=50),
        "resize_0.5": _half,
        "blur_1": lambda image: image.filter(ImageFilter.GaussianBlur(1.0)),
    }
)
"""Name to change: JPEG of three qualities, half the size, a blur of 1 pixel."""


def check_perturbations(names: Sequence[str]) -> None:
    """Refuse names that `PERTURBATIONS` lacks.

    Raises:
        UsageError: with those it has.
    """
    if unknown := [name for name in names if name not in PERTURBATIONS]:
        raise UsageError(f"perturbations {', '.join(unknown)}: there are {', '.join(PERTURBATIONS)}")


@dataclass(frozen=True)
class SpoiledPictures:
    """Pictures of a list, opened and changed one at a time, and their face boxes in the changed ones."""

    pictures: Sequence[Picture]
    boxes: Sequence[Sequence[float] | None] | None
    change: Callable[[Image.Image], Image.Image]
    upright: bool

    def __len__(self) -> int:
        return len(self.pictures)

    def one(self, place: int) -> tuple[Picture, Sequence[float] | None]:
        """The changed picture and its box; a picture that cannot be opened as it is, for its reader to name."""
        picture = self.pictures[place]
        box = None if self.boxes is None else self.boxes[place]
        try:
            source = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
            opened = open_image(source, upright=self.upright)
        except ImageError:
            return picture, box
        changed = self.change(opened)
        if box is not None:
            scale = [after / before for after, before in zip(changed.size, opened.size, strict=True)] * 2
            box = [side * share for side, share in zip(box, scale, strict=True)]
        return changed, box
