"""Pictures to a model's input in batches, read ahead by threads; a picture that cannot be used stops nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.data.images import ImageError
from thurl.errors import UsageError


__all__ = ["Picture", "PictureReader", "picture_name"]

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path, encoded bytes, a PIL picture or a (H, W, 3) uint8 array."""

_Box = Sequence[float] | None
_Read = tuple[str, torch.Tensor | None]


class PictureReader:
    """Decodes pictures while a model works.

    Args:
        processor: makes `pixel_values` of pictures and face boxes.
        batch_size: pictures given together.
        workers: threads that decode; 0 decodes in between.

    Raises:
        UsageError: a batch size below 1.
    """

    def __init__(self, processor: Any, *, batch_size: int = 32, workers: int = 0):
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: at least 1 is needed")
        self.processor, self.batch_size, self.workers = processor, batch_size, workers

    def encoded(
        self,
        pictures: Sequence[Picture],
        boxes: Sequence[_Box] | None,
        encode: Callable[[torch.Tensor], torch.Tensor],
        width: int,
        what: str,
    ) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Go through pictures once, in order.

        Args:
            pictures: to read.
            boxes: a face box in pixels for each picture, None for pictures used whole.
            encode: (B, 3, H, W) to (B, width).
            width: of the rows.
            what: the rows hold, for the message where they are not finite.

        Yields:
            errors of up to `batch_size` pictures, empty where there is none, and their (B, width) rows on the CPU,
            float32, NaN where there is one.

        Raises:
            UsageError: another number of boxes.
        """
        for read in self._batches(pictures, boxes):
            errors = [error for error, _ in read]
            good = [pixels for _, pixels in read if pixels is not None]
            rows = torch.full((len(read), width), torch.nan)
            if good:
                with torch.no_grad():
                    found = encode(torch.stack(good)).float().cpu()
                rows[torch.tensor([not error for error in errors])] = found
            for place, error in enumerate(errors):
                if not error and not rows[place].isfinite().all():
                    errors[place], rows[place] = f"{what} are not finite", torch.nan
            yield errors, rows

    def _batches(self, pictures: Sequence[Picture], boxes: Sequence[_Box] | None) -> Iterator[list[_Read]]:
        if boxes is not None and len(boxes) != len(pictures):
            raise UsageError(f"{len(boxes)} boxes for {len(pictures)} pictures; one each, None for a whole picture")
        tasks = [(picture, None if boxes is None else boxes[place]) for place, picture in enumerate(pictures)]
        chunks = [tasks[start : start + self.batch_size] for start in range(0, len(tasks), self.batch_size)]
        if self.workers < 1:
            for chunk in chunks:
                yield [self._read(task) for task in chunk]
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead = [pool.map(self._read, chunk) for chunk in chunks[:2]]
            for number in range(len(chunks)):
                read = list(ahead.pop(0))
                if number + 2 < len(chunks):
                    ahead.append(pool.map(self._read, chunks[number + 2]))
                yield read

    def _read(self, task: tuple[Picture, _Box]) -> _Read:
        picture, box = task
        try:
            pixels = self.processor([picture], boxes=[box], return_tensors="pt")["pixel_values"][0]
        except (ImageError, ValueError) as error:
            return str(error) or type(error).__name__, None
        return "", pixels


def picture_name(picture: Picture, place: int) -> str:
    """What a report calls a picture: its path where it has one."""
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else f"picture {place}"
