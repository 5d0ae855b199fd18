"""Patches of photographs, labelled by the photograph they were cut from: a real task without a labelled data set.

Each photograph is divided into blocks that do not overlap; a block is for training or for testing, and patches lie
inside one block. So no pixel of a test patch is ever in a training patch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from thurl.data.image_files import find_images
from thurl.data.images import ImageError, open_image
from thurl.distillation.pictures import PictureSet, area_resize
from thurl.distillation.sources.common import two_parts
from thurl.errors import DataError, UsageError


__all__ = ["load_patches"]


def load_patches(
    photos: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    size: tuple[int, int] = (16, 16),
    patch: int = 32,
    block: int | None = None,
    stride: int | None = None,
    test_part: float = 0.3,
    classes: int | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    channels: int = 3,
    seed: int = 0,
) -> tuple[PictureSet, PictureSet]:
    """One class per photograph.

    Args:
        photos: a folder, or files; the class is the file's name without its ending.
        size: height and width that patches are averaged to.
        patch: side of a patch in the photograph, in pixels.
        block: side of a block, at least `patch`; None for twice as much.
        stride: between patches of a block; None for half a patch.
        test_part: of the blocks of each photograph, above 0 and below 1; at least one block each way.
        classes: take this many photographs, drawn with `seed` from those that are large enough; None for all.
        train_per_class, test_per_class: patches of each photograph, drawn with `seed`; None for all.
        channels: 1 or 3.

    Raises:
        UsageError: a value outside its range.
        DataError: photographs that cannot be read or are too small, or too few of them or of their patches.
    """
    block = 2 * patch if block is None else block
    stride = max(1, patch // 2) if stride is None else stride
    _check(patch, block, stride, test_part, size, channels)
    files = find_images([photos] if isinstance(photos, str | os.PathLike) else photos)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(files), generator=generator).tolist() if classes else range(len(files))
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    names: list[str] = []
    problems: list[str] = []
    for index in order:
        if classes and len(names) == classes:
            break
        try:
            cut = _cut(files[index], patch, block, stride, test_part, channels, generator)
        except ImageError as error:
            problems.append(str(error))
            continue
        if cut is None:
            if not classes:
                problems.append(f"{files[index].name}: holds fewer than two blocks of {block}x{block} pixels")
            continue
        names.append(files[index].stem)
        for part, pixels in zip(parts, cut, strict=True):
            part.append(area_resize(pixels, *size))
    if classes and len(names) < classes:
        problems.append(f"{len(names)} photographs hold two blocks of {block}x{block} pixels; {classes} are wanted")
    if problems:
        raise DataError("\n".join(problems))
    labelled = [
        (torch.cat(part), torch.arange(len(part)).repeat_interleave(torch.tensor([len(x) for x in part])))
        for part in parts
    ]
    train, test = two_parts(labelled[0], labelled[1], names)
    return (
        train if train_per_class is None else train.draw(train_per_class, generator),
        test if test_per_class is None else test.draw(test_per_class, generator),
    )


def _check(patch: int, block: int, stride: int, test_part: float, size: tuple[int, int], channels: int) -> None:
    problems = []
    if patch < 2 or block < patch:
        problems.append(f"patch: {patch} must be at least 2 and at most the block's {block}")
    if max(size) > patch or min(size) < 2:
        problems.append(f"size: {size[0]}x{size[1]} must be at least 2 and at most the patch's {patch}")
    if stride < 1:
        problems.append(f"stride: {stride} must be at least 1")
    if not 0 < test_part < 1:
        problems.append(f"test_part: {test_part} must be above 0 and below 1")
    if channels not in (1, 3):
        problems.append(f"channels: {channels} must be 1 or 3")
    if problems:
        raise UsageError(problems)


def _cut(
    file: Path, patch: int, block: int, stride: int, test_part: float, channels: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Training and test patches, uint8 (N, channels, patch, patch); None for a photograph of fewer than two blocks."""
    picture = open_image(file)
    values = np.asarray(picture.convert("L") if channels == 1 else picture)
    pixels = torch.from_numpy(values.copy()).reshape(picture.height, picture.width, channels).permute(2, 0, 1)
    blocks = pixels.unfold(1, block, block).unfold(2, block, block).permute(1, 2, 0, 3, 4).flatten(0, 1)
    if len(blocks) < 2:
        return None
    tests = min(len(blocks) - 1, max(1, round(test_part * len(blocks))))
    shuffled = blocks[torch.randperm(len(blocks), generator=generator)]
    train, test = (
        part.unfold(2, patch, stride).unfold(3, patch, stride).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()
        for part in (shuffled[tests:], shuffled[:tests])
    )
    return train, test
