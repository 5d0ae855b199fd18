"""Pictures of a pool as a vision encoder reads them, read when they are asked for: not all have to fit in memory."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.continual.pool import ClassPool, raise_problems
from thurl.continual.pool_sources import read_picture
from thurl.errors import DataError, UsageError
from thurl.vision_models.preprocessing import PicturePreprocessing


__all__ = ["PictureInputs", "read_pictures"]


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
