"""Pairs of a degraded and a clean picture, made on the fly.

Every pair is a function of (seed, epoch, index): the same in any process, with any number of workers, after a resume.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from thurl.data.images import open_image
from thurl.errors import UsageError
from thurl.restoration.degradation import Degradation, DegradationConfig, degrade, draw_degradation
from thurl.training.epochs import EpochDataset


__all__ = ["CROPS", "RestorationPairs"]

Photo: TypeAlias = str | os.PathLike[str] | Image.Image

CROPS = ("random", "whole")
"""How a square is taken from a photograph."""


class RestorationPairs(EpochDataset):
    """Map-style data set; item `i` is a square of photograph `i % photographs`.

    An item is `{"pixel_values": degraded, "target": clean}`, each (3, size, size) float32 in [0, 1].

    Args:
        photos: name to path or picture. Paths are opened anew each time, pictures are kept in memory.
        size: side of the squares in pixels.
        degradation: what the degradations are drawn from.
        crop: "random": a square of the photograph, after shrinking it; "whole": the largest square around the middle,
            resized (for aligned faces).
        zoom: with "random": range of the factor the photograph is first resized by. Never so far that it is smaller
            than a square; photographs that are smaller at first are enlarged.
        flip: mirror half of the squares.
        repeats: squares per photograph and epoch.
        seed: of crops and degradations.
        fixed: the same pairs in every epoch, for evaluation.
        unrelated: the target is a square of another item. There is nothing to learn but the mean picture: a control.

    Raises:
        UsageError: no photograph, or values out of their range; all of them.
    """

    def __init__(
        self,
        photos: Mapping[str, Photo],
        size: int,
        *,
        degradation: DegradationConfig | None = None,
        crop: str = "random",
        zoom: tuple[float, float] = (1.0, 1.0),
        flip: bool = True,
        repeats: int = 1,
        seed: int = 0,
        fixed: bool = False,
        unrelated: bool = False,
    ):
        super().__init__()
        problems = [] if photos else ["photos is empty; it must hold at least one photograph"]
        if size < 1 or repeats < 1:
            problems.append(f"size is {size} and repeats {repeats}; both must be at least 1")
        if crop not in CROPS:
            problems.append(f"crop is {crop!r}; it must be one of {', '.join(CROPS)}")
        if not 0 < zoom[0] <= zoom[1]:
            problems.append(f"zoom is {list(zoom)}; it must be two factors above 0, the smaller one first")
        if unrelated and len(photos) * repeats < 2:
            problems.append("unrelated targets need at least two items")
        if problems:
            raise UsageError(problems)
        self.photos = dict(photos)
        self.names = list(self.photos)
        self.size, self.crop, self.zoom, self.flip = size, crop, (float(zoom[0]), float(zoom[1])), flip
        self.repeats, self.seed, self.fixed, self.unrelated = repeats, seed, fixed, unrelated
        self.degradation = degradation or DegradationConfig()

    def __len__(self) -> int:
        return len(self.names) * self.repeats

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's pairs; `accelerate` calls it. Reaches running workers, too."""
        super().set_epoch(0 if self.fixed else epoch)

    def name(self, index: int) -> str:
        """The photograph of an item."""
        return self.names[self._place(index) % len(self.names)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index` of the current epoch.

        Raises:
            ImageError: the photograph cannot be read.
        """
        degraded, clean, _ = self.pair(index)
        return {"pixel_values": _tensor(degraded), "target": _tensor(clean)}

    def pair(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Degradation]:
        """Degraded and clean square, (size, size, 3) uint8, and what lies between them."""
        index = self._place(index)
        rng = np.random.default_rng((self.seed, self.epoch, index))
        clean = self._square(index, rng)
        drawn = draw_degradation(self.degradation, rng)
        degraded = degrade(clean, drawn)
        if self.unrelated:
            other = (index + int(rng.integers(1, len(self)))) % len(self)
            clean = self._square(other, rng)
        return degraded, clean, drawn

    def _place(self, index: int) -> int:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"item {index} of {count}")
        return index % count

    def _square(self, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        photo = self.photos[self.names[index % len(self.names)]]
        picture = photo if isinstance(photo, Image.Image) and photo.mode == "RGB" else open_image(photo)
        zoom, left, top, mirror = rng.uniform(*self.zoom), rng.random(), rng.random(), rng.random()
        width, height = picture.size
        if self.crop == "whole":
            short = min(width, height)
            column, row = (width - short) // 2, (height - short) // 2
            box: tuple[float, float, float, float] = (column, row, column + short, row + short)
            picture = picture.resize((self.size, self.size), Image.Resampling.LANCZOS, box=box)
        else:
            # The square is cut out of the unresized photograph, so that only its own pixels are resized.
            side = min(self.size / zoom, width, height)
            x, y = left * (width - side), top * (height - side)
            if side == self.size:
                column, row = int(x), int(y)
                picture = picture.crop((column, row, column + self.size, row + self.size))
            else:
                box = (x, y, min(x + side, width), min(y + side, height))
                picture = picture.resize((self.size, self.size), Image.Resampling.LANCZOS, box=box)
        if self.flip and mirror < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(picture)


def _tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div(255)
