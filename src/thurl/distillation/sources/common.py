"""What the readers share: a train and a test part that agree, and pictures of one size from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from thurl.data.images import ImageError, open_image
from thurl.distillation.pictures import PictureSet, area_resize, statistics
from thurl.errors import DataError


__all__ = ["read_pictures", "two_parts"]

SHOWN = 20
"""Bad files that a message lists."""


def read_pictures(files: Sequence[Path], channels: int, size: tuple[int, int] | None) -> torch.Tensor:
    """Pictures of files, uint8 (N, channels, H, W).

    Args:
        channels: 1 (luma) or 3.
        size: height and width that each is brought to by area average, its shape not kept; where it grows, pixels are
            repeated. None: all must be of one size.

    Raises:
        DataError: files that cannot be read (all listed), or pictures of several sizes.
    """
    found: list[np.ndarray] = []
    problems: list[str] = []
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            picture = open_image(file)
        except ImageError as error:
            problems.append(str(error))
            continue
        if size is not None and picture.size != (size[1], size[0]):
            picture = picture.resize((size[1], size[0]), Image.Resampling.BOX)
        sizes.setdefault(picture.size, file)
        if len(sizes) > 1:
            break
        values = np.asarray(picture.convert("L") if channels == 1 else picture)
        found.append(values[None] if channels == 1 else values.transpose(2, 0, 1))
    if len(sizes) > 1:
        shown = ", ".join(f"{w}x{h} ({file.name})" for (w, h), file in sizes.items())
        problems.append(f"pictures of several sizes: {shown}; give a size that all are brought to")
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n".join(problems[:SHOWN] + more))
    return torch.from_numpy(np.stack(found))


def two_parts(
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    classes: Sequence[str],
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[PictureSet, PictureSet]:
    """Both parts with the same classes and normalisation.

    Args:
        train, test: uint8 (N, channels, H, W) and int64 (N,).
        normalisation: mean and std; None for those of the training pictures at the wanted size.
        size: both are averaged to it.
    """
    images = [part[0] if size is None else area_resize(part[0], *size) for part in (train, test)]
    mean, std = normalisation or statistics(images[0])
    sets = (
        PictureSet(pixels, part[1], tuple(classes), mean, std)
        for pixels, part in zip(images, (train, test), strict=True)
    )
    return tuple(sets)  # type: ignore[return-value]
