"""Trained models from their folders: which of the three kinds, with the image processor saved beside it.

Safetensors only. A folder that leaves a parameter of the model without a value is refused: it would judge with random
numbers in that place.
"""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from thurl.errors import DataError, MissingRequirementError
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


def model_kind(name_or_path: str | os.PathLike[str]) -> type[PreTrainedModel]:
    """`BladesModel`, `ExifOrdinalModel` or `ExifEncoder`: what a folder or a repository of the Hub holds.

    Raises:
        MissingRequirementError: there is no model.
        DataError: a model of another kind.
    """
    try:
        settings, _ = PreTrainedConfig.get_config_dict(os.fspath(name_or_path))
    except (OSError, ValueError) as error:
        raise _not_there(name_or_path, "config.json", error) from None
    found = settings.get("model_type")
    if found not in _KINDS:
        raise DataError(f"{os.fspath(name_or_path)}: model_type is {found!r}; it must be one of {', '.join(_KINDS)}")
    return _KINDS[found]


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
    # The visual tower alone leaves the rest of a model's weights unused on purpose, which is reported at length.
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, info = kind.from_pretrained(os.fspath(name_or_path), use_safetensors=True, output_loading_info=True)
    except OSError as error:
        raise _not_there(name_or_path, "model.safetensors", error) from None
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise DataError(
            f"{os.fspath(name_or_path)}: the weights do not fit config.json ({reason[0] if reason else error!r}); "
            "save the model again"
        ) from None
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
    if lacking := sorted(info["missing_keys"]):
        raise DataError(
            f"{os.fspath(name_or_path)}: {len(lacking)} weights are missing ({', '.join(lacking[:3])}"
            f"{', ...' if len(lacking) > 3 else ''}); save the model again"
        )
    return model.to(device).eval()


def load_processor(name_or_path: str | os.PathLike[str]) -> FaceImageProcessor:
    """The image processor saved beside a model.

    Raises:
        MissingRequirementError: there is none: its settings are part of what the encoder learned.
        DataError: its settings cannot be used.
    """
    try:
        return FaceImageProcessor.from_pretrained(os.fspath(name_or_path))
    except OSError as error:
        raise _not_there(name_or_path, "preprocessor_config.json", error) from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{os.fspath(name_or_path)}: preprocessor_config.json: {error}") from None


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


def _not_there(name_or_path: str | os.PathLike[str], file: str, error: Exception) -> MissingRequirementError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return MissingRequirementError(
        f"model {os.fspath(name_or_path)!r}: no usable {file} ({reason}). Give a folder that training or "
        "`thurl exif convert` wrote, or the name of a repository of the Hub"
    )
