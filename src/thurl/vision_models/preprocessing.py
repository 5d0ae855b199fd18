"""The test transform of a vision model: its own image processor, in two steps of which the first gives 8 bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.messages import first_line
from thurl.vision_models.files import quiet


__all__ = ["PicturePreprocessing", "as_picture", "load_processor"]


def as_picture(picture: Image.Image | np.ndarray[Any, Any]) -> Image.Image:
    """A picture in RGB.

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
    """A model's test transform in two steps, of which the first gives 8 bits and can be kept in a quarter of the
    memory.

    Args:
        resize: an RGB picture as uint8 of `size`; can be pickled.
        size: channels, height and width of the model's inputs.
        mean, std: per channel, of values in [0, 1].
        name: says all of this in one line; two preprocessings of one model are told apart by it.
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
                f"the preprocessing gives {found.dtype} {tuple(found.shape)}, the model reads 8-bit pictures of "
                f"{self.size}; save the preprocessing that belongs to the model"
            )
        return found

    def scaled(self, pictures: torch.Tensor) -> torch.Tensor:
        """Second step: uint8 [n, C, H, W] as float32, normalised."""
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        # In place: memory is what this costs.
        return pictures.float().mul_(1 / (255 * std)).sub_(mean / std)


class _Resize:
    """An image processor of transformers without its last two steps."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return self.processor(picture, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values[0]


def load_processor(folder: Path, size: tuple[int, int, int] | None) -> PicturePreprocessing:
    """The image processor of a model.

    Args:
        size: channels, height and width the model reads; None for any.

    Raises:
        MissingRequirementError: there is none.
        DataError: it cannot be read.
        UsageError: it gives pictures of another size, or does more than resize, scale and normalise.
    """
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise MissingRequirementError(
            f"{folder}: no preprocessor_config.json; save the image processor of the model beside its weights "
            "(`save_pretrained`)"
        )
    from transformers import AutoImageProcessor

    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: its image processor cannot be read: {first_line(error)}; save it again") from error
    # A picture through all steps at once, to compare with the two we take.
    ramp = Image.fromarray(np.linspace(0, 255, 3 * 96 * 96).astype(np.uint8).reshape(96, 96, 3))
    whole = processor(ramp, return_tensors="pt").pixel_values[0]
    channels, height, width = size or whole.shape
    # The last steps as one: (v f - mean) / std for v in 0..255 is (v / 255 - mean / 255 f) / (std / 255 f).
    unit = 255 * float(processor.rescale_factor) if processor.do_rescale else 255.0
    mean = processor.image_mean if processor.do_normalize else [0.0] * channels
    std = processor.image_std if processor.do_normalize else [1.0] * channels
    found = PicturePreprocessing(
        _Resize(processor),
        (channels, height, width),
        tuple(float(value) / unit for value in mean),
        tuple(float(value) / unit for value in std),
        json.dumps(processor.to_dict(), sort_keys=True, default=str),
    )
    if not torch.allclose(found.scaled(found(ramp)[None])[0], whole, atol=1e-4):
        raise UsageError(f"{folder}: a {type(processor).__name__} does more than resize, scale and normalise")
    return found
