"""Pictures for meta-training: random squares of files, without labels; or pictures that are in memory already."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from thurl.data.images import open_image
from thurl.errors import UsageError


__all__ = ["PictureTensors", "RandomCrops"]


class PictureTensors(Dataset[dict[str, torch.Tensor]]):
    """Pictures (N, C, H, W) as they are."""

    def __init__(self, pictures: torch.Tensor) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pictures[row]}


class RandomCrops(Dataset[dict[str, torch.Tensor]]):
    """Random resized crops of picture files, normalised: the training transform of the official code, without flips.

    A crop follows from seed, epoch and row alone.

    Args:
        files: paths.
        size: side of the squares in pixels.
        mean, std: per channel, of values in [0, 1]; 0.5 officially.
        scale: smallest and largest share of the area.
        seed: of the crops.

    Raises:
        UsageError: no files, or an empty range.
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]],
        size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        scale: tuple[float, float] = (0.25, 1.0),
        seed: int = 0,
    ) -> None:
        if not files or not 0 < scale[0] <= scale[1] <= 1:
            raise UsageError(
                f"{len(files)} pictures, shares of their area from {scale[0]} to {scale[1]}: give one picture or more "
                "and shares in (0, 1], the smaller one first"
            )
        self.files = list(files)
        self.size, self.scale, self.seed, self.epoch = size, scale, seed, 0
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in (mean, std))

    def __len__(self) -> int:
        return len(self.files)

    def set_epoch(self, epoch: int) -> None:
        """Other crops of the same pictures."""
        self.epoch = epoch

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        """`pixel_values`, float32 (3, size, size).

        Raises:
            ImageError: the picture cannot be opened.
        """
        picture = open_image(self.files[row])
        rng = np.random.default_rng((self.seed, int(self.epoch), row))
        square = picture.resize(
            (self.size, self.size), Image.Resampling.BILINEAR, box=_crop(picture.size, self.scale, rng)
        )
        pixels = torch.from_numpy(np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / 255)
        return {"pixel_values": (pixels - self.mean) / self.std}


def _crop(
    size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge of a box, of a shape between 3:4 and 4:3; the middle square if none fits."""
    width, height = size
    for _ in range(10):
        area = rng.uniform(*scale) * width * height
        shape = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            left, upper = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
            return left, upper, left + across, upper + down
    side = min(size)
    left, upper = (width - side) // 2, (height - side) // 2
    return left, upper, left + side, upper + side
