"""Trained models from their folders: which of the three kinds, with the image processor saved beside it
(`thurl.forensics.model_files`)."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedModel

from thurl.forensics import model_files
from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.config import BladesConfig, ExifEncoderConfig, ExifOrdinalConfig
from thurl.forensics.exif.encoder import ExifEncoder
from thurl.forensics.exif.features import FeatureTower
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.processing import FaceImageProcessor


__all__ = ["load_model", "load_processor", "load_tower", "model_kind", "unit_length_of"]

_KINDS: dict[str, type[PreTrainedModel]] = {
    BladesConfig.model_type: BladesModel,
    ExifOrdinalConfig.model_type: ExifOrdinalModel,
    ExifEncoderConfig.model_type: ExifEncoder,
}
_MAKERS = "training or `thurl exif convert`"


def model_kind(name_or_path: str | os.PathLike[str]) -> type[PreTrainedModel]:
    """`BladesModel`, `ExifOrdinalModel` or `ExifEncoder`: what a folder or a repository of the Hub holds.

    Raises:
        MissingRequirementError: there is no model.
        DataError: a model of another kind.
    """
    return model_files.model_kind(name_or_path, _KINDS, _MAKERS)


def unit_length_of(kind: type[PreTrainedModel]) -> bool | None:
    """Whether a detector takes the features of such a model at length 1; None for an encoder alone, which both may."""
    return getattr(kind, "unit_length", None)


def load_model(
    name_or_path: str | os.PathLike[str], kind: type[PreTrainedModel] | None = None, *, device: str = "cpu"
) -> Any:
    """The model in evaluation mode.

    Args:
        name_or_path: a folder that `save_pretrained` wrote, or the name of a repository of the Hub.
        kind: what to load; `ExifEncoder` takes the visual tower out of the other two. What is there when None.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        MissingRequirementError: there is no model, or no weights in safetensors.
        DataError: weights that do not fit the configuration, or parameters without a value.
    """
    kind = model_kind(name_or_path) if kind is None else kind
    return model_files.load_weights(name_or_path, kind, _MAKERS, device=device)


def load_processor(name_or_path: str | os.PathLike[str]) -> FaceImageProcessor:
    """The image processor saved beside a model.

    Raises:
        MissingRequirementError: there is none: its settings are part of what the encoder learned.
        DataError: its settings cannot be used.
    """
    return model_files.processor_of(name_or_path, _MAKERS)


def load_tower(
    name_or_path: str | os.PathLike[str], *, device: str = "cpu", batch_size: int = 32, workers: int = 0
) -> FeatureTower:
    """Encoder and image processor of a model; other arguments as `FeatureTower` takes them.

    Raises:
        DataError, MissingRequirementError: as `load_model` and `load_processor`.
    """
    model_kind(name_or_path)
    processor = load_processor(name_or_path)
    model = load_model(name_or_path, ExifEncoder, device=device)
    return FeatureTower(model, processor, batch_size=batch_size, workers=workers)
