"""Pictures to the network's input and back, as an image processor that is saved beside the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from thurl.data.images import open_image


__all__ = ["RestorationImageProcessor"]

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


class RestorationImageProcessor(BaseImageProcessor):
    """Turns pictures into `pixel_values` in [0, 1], RGB, and restored tensors into pictures.

    Args:
        size: side of the square that the network was trained on faces of; pictures are resized to it. None: pictures
            keep their size (photographs).

    Raises:
        ValueError: a size below 1.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, size: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"size is {size!r}; it must be the side of a square in pixels, or None to resize nothing")
        self.size = size

    def preprocess(
        self, images: Picture | Sequence[Picture], return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """One picture or several of one size.

        Args:
            images: paths, encoded bytes, PIL pictures or (H, W, 3) uint8 arrays.
            return_tensors: "pt" or "np".

        Returns:
            `pixel_values`, (B, 3, H, W) float32 in [0, 1].

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: unknown arguments, or pictures of several sizes.
        """
        if kwargs:
            raise ValueError(f"unknown arguments {', '.join(sorted(kwargs))}; settings belong to the processor")
        pictures: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        tensors = [self.pixels(picture) for picture in pictures]
        sizes = {tuple(tensor.shape[1:]) for tensor in tensors}
        if len(sizes) > 1:
            raise ValueError(f"pictures of {len(sizes)} sizes do not fit into one batch; give them one by one")
        return BatchFeature(data={"pixel_values": torch.stack(tensors)}, tensor_type=return_tensors)

    def pixels(self, picture: Picture, size: int | None = None) -> torch.Tensor:
        """One picture as (3, H, W) float32 in [0, 1]; `size` instead of the processor's own, 0 for no resizing."""
        image = open_image(Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture)
        side = self.size if size is None else size
        if side and image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32).div(255)

    @staticmethod
    def picture(pixels: torch.Tensor) -> Image.Image:
        """(3, H, W) in [0, 1] to a picture of 8 bits, rounded and clipped.

        Raises:
            ValueError: values that are not finite: there is no picture.
        """
        if not bool(pixels.isfinite().all()):
            raise ValueError("the restored picture has values that are no numbers; the model's weights are broken")
        grey = pixels.detach().float().mul(255).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(grey.permute(1, 2, 0).cpu().numpy())
