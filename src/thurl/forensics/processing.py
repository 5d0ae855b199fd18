"""Face pictures to the encoder's input, as an image processor that is saved beside the model.

Both methods bring RGB to 224x224 and take CLIP's mean and standard deviation; no flip, no colour jitter, no random
crop. They resize differently: the EXIF papers the tensor, bilinear; the DeepFake method the 8-bit picture, bicubic, by
Pillow, which averages over the pixels it drops and rounds.

The trap: the official environment of the EXIF papers resizes tensors without anti-aliasing, later torchvision versions
with. For faces larger than 224 pixels the normalised input differs by up to about 0.5; smaller ones are the same. So
`antialias` and `resample` are part of the processor's file, and whoever scores uses what training used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from thurl.data.images import open_image
from thurl.forensics.crop import CROP_SCALE, face_square


__all__ = ["FaceImageProcessor"]

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor


_RESAMPLES = ("bilinear", "bicubic")


class FaceImageProcessor(BaseImageProcessor):
    """Turns pictures into `pixel_values`.

    Args:
        size: side of the square input in pixels.
        image_mean, image_std: per channel, for pixels in [0, 1].
        antialias: whether shrinking averages over the pixels it drops. False for the released weights of the EXIF
            papers. "bicubic" always does.
        resample: "bilinear", of the tensor, or "bicubic", of the 8-bit picture.
        crop_scale: side of the crop over the longer side of a face box; without boxes pictures are used whole.
        upright: whether EXIF orientation is applied to files. The official code never does; face boxes and landmarks
            are those of the picture so opened.

    Raises:
        ValueError: a value outside its range.
    """

    model_input_names = ["pixel_values"]
    resample = "bilinear"

    def __init__(
        self,
        size: int = 224,
        image_mean: Sequence[float] = tuple(OPENAI_CLIP_MEAN),
        image_std: Sequence[float] = tuple(OPENAI_CLIP_STD),
        antialias: bool = False,
        crop_scale: float = CROP_SCALE,
        upright: bool = False,
        resample: str = "bilinear",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size is {size!r}; it must be a whole number of pixels, the side of the square input")
        if len(image_mean) != 3 or len(image_std) != 3 or min(image_std) <= 0:
            raise ValueError(
                f"image_mean is {list(image_mean)}, image_std {list(image_std)}; three numbers each, image_std above 0"
            )
        if not crop_scale > 0:
            raise ValueError(f"crop_scale is {crop_scale}; it must be above 0")
        if resample not in _RESAMPLES:
            raise ValueError(f"resample is {resample!r}; it must be one of {', '.join(_RESAMPLES)}")
        self.size = size
        self.image_mean = [float(value) for value in image_mean]
        self.image_std = [float(value) for value in image_std]
        self.antialias = bool(antialias)
        self.crop_scale = float(crop_scale)
        self.upright = bool(upright)
        if resample != _RESAMPLES[0]:  # left out of files otherwise, as of those that are older than it
            self.resample = resample

    def preprocess(
        self,
        images: Picture | Sequence[Picture],
        boxes: Sequence[Sequence[float] | None] | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """One picture or several.

        Args:
            images: paths, encoded bytes, PIL pictures, (H, W, 3) uint8 arrays or (3, H, W) uint8 tensors.
            boxes: a face box (left, top, right, bottom) in pixels for each picture, `None` for pictures used whole.
            return_tensors: "pt" or "np".

        Returns:
            `pixel_values`, (B, 3, size, size) float32, normalised.

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: unknown arguments, wrong shapes, or as many boxes as pictures are not there.
        """
        if kwargs:
            raise ValueError(f"unknown arguments {', '.join(sorted(kwargs))}; settings belong to the processor")
        pictures = list(images) if isinstance(images, (list, tuple)) else [images]
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            pictures = list(images)
        if boxes is not None and len(boxes) != len(pictures):
            raise ValueError(f"{len(boxes)} boxes for {len(pictures)} pictures; one each, `None` for a whole picture")
        found = [
            self.pixels(self.cut(picture, None if boxes is None else boxes[place]))
            for place, picture in enumerate(pictures)
        ]
        return BatchFeature(data={"pixel_values": torch.stack(found)}, tensor_type=return_tensors)

    def cut(self, picture: Picture, box: Sequence[float] | None = None) -> np.ndarray:
        """The face of one picture, before resizing: (H, W, 3) uint8.

        Args:
            picture: as in `preprocess`.
            box: face box in pixels; the whole picture when `None`.
        """
        if isinstance(picture, torch.Tensor):
            if picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype != torch.uint8:
                raise ValueError(f"tensor of {picture.dtype} {tuple(picture.shape)}; it must be uint8 (3, H, W)")
            pixels = picture.permute(1, 2, 0).cpu().numpy()
        elif isinstance(picture, np.ndarray):
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
                raise ValueError(f"array of {picture.dtype} {picture.shape}; it must be uint8 (H, W, 3)")
            pixels = picture
        else:
            pixels = np.asarray(open_image(picture, upright=self.upright))
        if box is None:
            return pixels
        left, top, right, bottom = face_square(box, (pixels.shape[1], pixels.shape[0]), scale=self.crop_scale)
        return pixels[top:bottom, left:right]

    def pixels(self, face: np.ndarray) -> torch.Tensor:
        """Resizes and normalises one face.

        Args:
            face: (H, W, 3) uint8.

        Returns:
            (3, size, size) float32.
        """
        if self.resample == "bicubic" and face.shape[:2] != (self.size, self.size):
            face = np.asarray(Image.fromarray(face).resize((self.size, self.size), Image.Resampling.BICUBIC))
        tensor = torch.from_numpy(np.array(face, order="C")).permute(2, 0, 1).to(torch.float32).div(255)
        tensor = self.resize(tensor[None])[0]
        mean = torch.tensor(self.image_mean)[:, None, None]
        return (tensor - mean) / torch.tensor(self.image_std)[:, None, None]

    def resize(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) float to (B, 3, size, size), bilinear; pictures of the right size stay as they are."""
        if pixels.shape[-2:] == (self.size, self.size):
            return pixels
        return functional.interpolate(
            pixels, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=self.antialias
        )
