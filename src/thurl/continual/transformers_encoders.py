"""Vision models of transformers, from folders as `save_pretrained` writes them, with their image processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.continual.encoder_files import first_line, from_pretrained, quiet
from thurl.continual.picture_inputs import PicturePreprocessing
from thurl.errors import DataError, MissingRequirementError, UsageError


__all__ = ["KINDS", "Kind", "load_processor"]


@dataclass(frozen=True)
class Kind:
    """A `model_type` of transformers.

    Args:
        load: model and what of its output are the features, see `thurl.continual.encoding.VisionEncoder`, from
            a folder and its settings.
        any_size: it interpolates its positions: pictures have the size of its image processor, not that of its
            pre-training.
    """

    load: Callable[[Path, dict[str, Any]], tuple[Any, str]]
    any_size: bool = False

    def size(self, backbone: Any) -> tuple[int, int, int] | None:
        """Channels, height and width of its pictures; None where the image processor decides."""
        if self.any_size:
            return None
        side = backbone.config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return backbone.config.num_channels, height, width


def _vit(name: str, **options: Any) -> Callable[[Path, dict[str, Any]], tuple[Any, str]]:
    def load(folder: Path, config: dict[str, Any]) -> tuple[Any, str]:
        import transformers

        return from_pretrained(getattr(transformers, name), folder, **options), "cls"

    return load


def _clip(folder: Path, config: dict[str, Any]) -> tuple[Any, str]:
    from transformers import CLIPConfig, CLIPVisionModelWithProjection

    both = CLIPConfig.from_pretrained(folder, local_files_only=True)
    # The vision part has a size of the projection of its own, which need not be that of the whole.
    both.vision_config.projection_dim = both.projection_dim
    return from_pretrained(CLIPVisionModelWithProjection, folder, config=both.vision_config), "projected"


def _clip_vision(folder: Path, config: dict[str, Any]) -> tuple[Any, str]:
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    if "CLIPVisionModelWithProjection" in (config.get("architectures") or ()):
        return from_pretrained(CLIPVisionModelWithProjection, folder), "projected"
    return from_pretrained(CLIPVisionModel, folder), "pooled"


KINDS = {
    "vit": Kind(_vit("ViTModel", add_pooling_layer=False)),
    "deit": Kind(_vit("DeiTModel", add_pooling_layer=False)),
    "dinov2": Kind(_vit("Dinov2Model"), any_size=True),
    "clip": Kind(_clip),
    "clip_vision_model": Kind(_clip_vision),
}
"""By `model_type`."""


class _Resize:
    """An image processor of transformers without its last two steps."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return self.processor(picture, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values[0]


def load_processor(folder: Path, size: tuple[int, int, int] | None) -> PicturePreprocessing:
    """The image processor of an encoder.

    Args:
        size: channels, height and width the encoder reads; None for any.

    Raises:
        MissingRequirementError: there is none.
        DataError: it cannot be read.
        UsageError: it gives pictures of another size, or does more than resize, scale and normalise.
    """
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise MissingRequirementError(
            f"{folder}: no preprocessor_config.json; save the image processor of the encoder beside its weights "
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
