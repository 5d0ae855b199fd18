"""Pictures from wherever they are to what the model takes: (3, H, W) in [0, 1]."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from thurl.data.images import MAX_PIXELS, open_image


__all__ = ["Picture", "as_batch", "as_picture", "require_unit_range"]

Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor"
"""A path, encoded bytes, a PIL picture, an (H, W, 3) uint8 array or a (3, H, W) tensor."""

# A resize overshoots [0, 1] by a tenth or so; 255 for white is what this catches.
_LOWEST, _HIGHEST = -1.5, 2.5


def as_picture(source: Picture, *, upright: bool = True, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """One picture as a tensor (3, H, W): uint8 from files and arrays, tensors as they are.

    Files are decoded by `thurl.data.images.open_image`: transparency is composited on white, 16 bits become 8 by
    their high byte, EXIF orientation is applied. The official code drops transparency and ignores orientation.

    Args:
        source: the picture.
        upright: whether EXIF orientation is applied.
        max_pixels: larger files are refused before they are decoded.

    Raises:
        ImageError: a file that cannot be read.
        ValueError: an array or tensor that is no picture.
    """
    if isinstance(source, torch.Tensor):
        if source.dim() != 3 or source.shape[0] != 3:
            raise ValueError(f"a tensor of the shape {tuple(source.shape)}; (3, H, W) is needed")
        return source
    if not isinstance(source, np.ndarray):
        source = np.asarray(open_image(source, upright=upright, max_pixels=max_pixels))
    if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8:
        raise ValueError(f"an array of {source.dtype} {source.shape}; uint8 (H, W, 3) is needed")
    return torch.from_numpy(np.array(source, order="C")).permute(2, 0, 1)


def as_batch(
    pictures: Picture | Sequence[Picture], device: torch.device, *, upright: bool = True, check_range: bool = True
) -> torch.Tensor | list[torch.Tensor]:
    """One picture or several for `AFineModel`, on its device.

    Args:
        pictures: a picture, a sequence of them, or a tensor (B, 3, H, W), which stays one.
        device: where to.
        upright: as `as_picture` takes it.
        check_range: refuse floating pixels that are plainly not in [0, 1], such as 0 to 255.

    Raises:
        ImageError, ValueError: as `as_picture`; pixels out of range.
    """
    if isinstance(pictures, torch.Tensor) and pictures.dim() == 4:
        found: list[torch.Tensor] = [pictures]
    else:
        given: Any = pictures if isinstance(pictures, list | tuple) else [pictures]
        found = [as_picture(picture, upright=upright) for picture in given]
    if check_range:
        for tensor in found:
            require_unit_range(tensor)
    if isinstance(pictures, torch.Tensor) and pictures.dim() == 4:
        return pictures.to(device)
    moved = [tensor.to(device) for tensor in found]
    if len({tensor.dtype for tensor in moved}) > 1:
        return [tensor.to(torch.float32) / 255 if tensor.dtype == torch.uint8 else tensor.float() for tensor in moved]
    return moved


def require_unit_range(tensor: torch.Tensor) -> None:
    """Refuse floating pixels that are plainly not in [0, 1]; uint8 and NaN pass.

    Raises:
        ValueError: such pixels.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = (float(value) for value in torch.aminmax(tensor.detach()))
    if low < _LOWEST or high > _HIGHEST:
        raise ValueError(f"pixels from {low:g} to {high:g}; [0, 1] is needed: divide by 255, or give uint8")
