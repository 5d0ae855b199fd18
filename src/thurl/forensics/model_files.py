"""Trained models from their folders. Safetensors only, and no parameter is left to chance: a folder that leaves one
without a value is refused, since it would judge with random numbers in that place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from thurl.errors import DataError, MissingRequirementError
from thurl.forensics.processing import FaceImageProcessor
from thurl.messages import first_line
from thurl.training.tensor_files import UNFIT


__all__ = ["load_weights", "model_kind", "processor_of"]


def model_kind(
    name_or_path: str | os.PathLike[str], kinds: Mapping[str, type[PreTrainedModel]], makers: str
) -> type[PreTrainedModel]:
    """What a folder or a repository of the Hub holds.

    Args:
        name_or_path: the folder, or the name on the Hub.
        kinds: `model_type` of its configuration to the class.
        makers: what writes such folders, for messages.

    Raises:
        MissingRequirementError: there is no model.
        DataError: a model of another kind.
    """
    try:
        settings, _ = PreTrainedConfig.get_config_dict(os.fspath(name_or_path))
    except (OSError, ValueError) as error:
        raise _not_there(name_or_path, "config.json", error, makers) from None
    found = settings.get("model_type")
    if found not in kinds:
        raise DataError(f"{os.fspath(name_or_path)}: model_type is {found!r}; it must be one of {', '.join(kinds)}")
    return kinds[found]


def load_weights(
    name_or_path: str | os.PathLike[str],
    kind: type[PreTrainedModel],
    makers: str,
    *,
    device: str = "cpu",
    config: PreTrainedConfig | None = None,
) -> Any:
    """The model in evaluation mode.

    Args:
        name_or_path: a folder that `save_pretrained` wrote, or the name of a repository of the Hub.
        kind: the class to load.
        makers: what writes such folders, for messages.
        device: "cpu", "cuda", "cuda:1".
        config: of the model where it is not the folder's own.

    Raises:
        MissingRequirementError: there is no model, or no weights in safetensors.
        DataError: weights that do not fit the configuration, or parameters without a value.
    """
    # Loading a part of a model leaves the rest of its weights unused on purpose, which is reported at length.
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        own = {} if config is None else {"config": config}
        model, info = kind.from_pretrained(
            os.fspath(name_or_path), use_safetensors=True, output_loading_info=True, **own
        )
    except OSError as error:
        raise _not_there(name_or_path, "model.safetensors", error, makers) from None
    except UNFIT as error:
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


def processor_of(name_or_path: str | os.PathLike[str], makers: str) -> FaceImageProcessor:
    """The image processor saved beside a model.

    Raises:
        MissingRequirementError: there is none: its settings are part of what the model learned.
        DataError: its settings cannot be used.
    """
    try:
        return FaceImageProcessor.from_pretrained(os.fspath(name_or_path))
    except OSError as error:
        raise _not_there(name_or_path, "preprocessor_config.json", error, makers) from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{os.fspath(name_or_path)}: preprocessor_config.json: {error}") from None


def _not_there(
    name_or_path: str | os.PathLike[str], file: str, error: Exception, makers: str
) -> MissingRequirementError:
    return MissingRequirementError(
        f"model {os.fspath(name_or_path)!r}: no usable {file} ({first_line(error)}). Give a folder that {makers} "
        "wrote, or the name of a repository of the Hub"
    )
