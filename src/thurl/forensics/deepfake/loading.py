"""Trained models and their image processors from folders (`thurl.forensics.model_files`)."""

from __future__ import annotations

import os

from thurl.forensics import model_files
from thurl.forensics.deepfake.config import DeepFakeConfig
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.processing import FaceImageProcessor


__all__ = ["load_model", "load_processor"]

_MAKERS = "training or `thurl deepfake convert`"


def load_model(name_or_path: str | os.PathLike[str], *, device: str = "cpu") -> DeepFakeModel:
    """The model in evaluation mode; folded or not.

    Raises:
        MissingRequirementError: there is no model, or no weights in safetensors.
        DataError: a model of another kind, weights that do not fit the configuration, parameters without a value.
    """
    kind = model_files.model_kind(name_or_path, {DeepFakeConfig.model_type: DeepFakeModel}, _MAKERS)
    return model_files.load_weights(name_or_path, kind, _MAKERS, device=device)


def load_processor(name_or_path: str | os.PathLike[str]) -> FaceImageProcessor:
    """The image processor saved beside a model.

    Raises:
        MissingRequirementError: there is none: its settings are part of what the model learned.
        DataError: its settings cannot be used.
    """
    return model_files.processor_of(name_or_path, _MAKERS)
