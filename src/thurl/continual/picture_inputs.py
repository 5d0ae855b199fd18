"""Pictures of a pool as a vision encoder reads them, read when they are asked for: not all have to fit in memory."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.continual.pool import ClassPool, raise_problems
from thurl.continual.pool_sources import read_picture
from thurl.errors import DataError, UsageError


__all__ = ["PictureInputs", "PicturePreprocessing", "as_picture", "read_pictures"]


def as_picture(picture: Image.Image | np.ndarray[Any, Any]) -> Image.Image:
    """A picture of a pool in RGB.

    Args:
        picture: a PIL picture, or an array [H, W] or [H, W, 3] of 8 bits, or of floating point in [0, 1], which is
            rounded to 8 bits.

    Raises:
        DataError: an array of another shape or range.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if picture.dtype.kind == "f":
        if not (np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1):
            raise DataError(f"an array of {picture.dtype} with values outside [0, 1] is no picture; scale it")
        picture = np.round(picture * 255).astype(np.uint8)
    if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
        raise DataError(f"an array of {picture.dtype} {picture.shape} is no picture; it must be [H, W] or [H, W, 3]")
    return Image.fromarray(picture).convert("RGB")


@dataclass(frozen=True)
class PicturePreprocessing:
    """An encoder's test transform in two steps, of which the first gives 8 bits and can be kept in a quarter of the
    memory.

    Args:
        resize: an RGB picture as uint8 of `size`; can be pickled.
        size: channels, height and width of the encoder's inputs.
        mean, std: per channel, of values in [0, 1].
        name: says all of this in one line; features of one encoder with two preprocessings are kept apart by it.
    """

    resize: Callable[[Image.Image], torch.Tensor]
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str

    def __call__(self, picture: Image.Image | np.ndarray[Any, Any]) -> torch.Tensor:
        """First step, uint8 of `size`.

        Raises:
            DataError: the picture cannot be used.
            UsageError: the transform gives something else.
        """
        found = self.resize(as_picture(picture))
        if found.dtype != torch.uint8 or tuple(found.shape) != self.size:
            raise UsageError(
                f"the preprocessing gives {found.dtype} {tuple(found.shape)}, the encoder reads 8-bit pictures of "
                f"{self.size}; save the preprocessing that belongs to the encoder"
            )
        return found

    def scaled(self, pictures: torch.Tensor) -> torch.Tensor:
        """Second step: uint8 [n, C, H, W] as float32, normalised."""
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        # In place: memory is what this costs.
        return pictures.float().mul_(1 / (255 * std)).sub_(mean / std)


class PictureInputs:
    """Inputs of an encoder by number of the picture, for `ClassData.inputs`.

    Every picture is checked against its digest whenever it is read. Pickled without the pictures kept.

    Args:
        pool: whose pictures.
        preprocessing: of the encoder.
        memory: bytes of 8-bit pictures kept; those not asked for longest go first. 0 keeps none.
    """

    def __init__(self, pool: ClassPool, preprocessing: PicturePreprocessing, memory: int = 2**30) -> None:
        if memory < 0:
            raise UsageError(f"memory is {memory} bytes; it must be 0 or more")
        self.pool = pool
        self.preprocessing = preprocessing
        self.memory = memory
        self._kept: OrderedDict[int, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.pool.images)

    def __getitem__(self, rows: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Float32 [n, C, H, W] for int64 [n].

        Raises:
            DataError: pictures that are missing, changed or cannot be decoded (the first 20 and the count).
        """
        wanted = rows.tolist() if isinstance(rows, torch.Tensor) else list(rows)
        found = {row: self._kept[row] for row in wanted if row in self._kept}
        lacking = list(dict.fromkeys(row for row in wanted if row not in found))
        found.update(zip(lacking, read_pictures(self.pool, lacking, self.preprocessing), strict=True))
        self._keep(found)
        whole = [found[row] for row in wanted]
        stacked = torch.stack(whole) if whole else torch.zeros(0, *self.preprocessing.size, dtype=torch.uint8)
        return self.preprocessing.scaled(stacked)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of pictures and preprocessing."""
        digests = [item.sha256 for item in self.pool.images]
        return hashlib.sha256(json.dumps([self.preprocessing.name, digests]).encode()).hexdigest()

    def _keep(self, found: dict[int, torch.Tensor]) -> None:
        for row, picture in found.items():
            self._kept[row] = picture
            self._kept.move_to_end(row)
        most = self.memory // int(np.prod(self.preprocessing.size))
        while len(self._kept) > most:
            self._kept.popitem(last=False)


def read_pictures(
    pool: ClassPool, rows: Sequence[int], prepare: Callable[[Image.Image | np.ndarray[Any, Any]], torch.Tensor]
) -> list[torch.Tensor]:
    """Pictures of a pool by number, each through `prepare`.

    Raises:
        DataError: pictures that are missing, changed or cannot be decoded (the first 20 and the count).
    """
    found, problems = [], []
    for row in rows:
        item = pool.images[row]
        try:
            found.append(prepare(read_picture(item.image, pool.root, item.sha256)))
        except DataError as error:
            problems.append(str(error))
    raise_problems(problems, "pictures of the pool that cannot be used")
    return found
