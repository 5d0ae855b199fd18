"""Vision models of timm, from folders as timm saves them for the Hub: config.json and model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.messages import first_line, nearest
from thurl.vision_models.preprocessing import PicturePreprocessing


__all__ = ["class_names", "hub_name", "load_timm"]


def hub_name(name: str) -> str:
    """The Hub repository of one of timm's pretrained models, with or without its tag.

    Raises:
        MissingRequirementError: timm is not installed.
        UsageError: timm has no such model, or no weights of it on the Hub.
    """
    timm = _timm()
    try:
        found = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UsageError(f"timm: {error}") from None
    if found is None or not found.hf_hub_id:
        raise UsageError(f"timm has no pretrained model {name!r} on the Hub{nearest(name, timm.list_models())}")
    return found.hf_hub_id


def load_timm(
    folder: Path, config: dict[str, Any], *, classifier: bool = False
) -> tuple[nn.Module, dict[str, Any], PicturePreprocessing]:
    """The model, what describes it, and its test transform.

    Args:
        folder: with config.json and model.safetensors, which the caller has seen.
        config: of config.json.
        classifier: with its classifier; without it, it gives features.

    Raises:
        MissingRequirementError: timm is not installed.
        UsageError: an architecture timm does not know.
        DataError: weights that are not those of the model.
    """
    timm = _timm()
    architecture = str(config["architecture"])
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise UsageError(f"{folder}: timm {timm.__version__} knows no {architecture!r}{nearest(architecture, known)}")
    try:
        # Reads model.safetensors before any other file, and takes no key too few or too many.
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    # A model's own constructor may raise anything for settings that are not its own.
    except Exception as error:
        raise DataError(f"{folder}: not a whole {architecture} of timm: {first_line(error)}; save it again") from error
    if not classifier:
        model.reset_classifier(0)
    transform = timm.data.resolve_model_data_config(model)
    description = {
        "architecture": architecture,
        "model_args": config.get("model_args") or {},
        "global_pool": str(getattr(model, "global_pool", "")),
    }
    size = tuple(int(value) for value in transform["input_size"])
    resize = timm.data.create_transform(**transform, is_training=False, normalize=False)
    mean, std = (tuple(float(value) for value in transform[key]) for key in ("mean", "std"))
    name = json.dumps({"timm": transform}, sort_keys=True)
    return model.eval(), description, PicturePreprocessing(resize, (size[0], size[1], size[2]), mean, std, name)


def class_names(model: Any, config: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes: those in config.json, else of ImageNet where the model is of it; empty if neither.

    Raises:
        DataError: another number of names than the model has classes.
    """
    own = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    if own:
        descriptions = config.get("label_descriptions") or {}
        if len(own) != model.num_classes:
            raise DataError(f"config.json names {len(own)} classes of {model.num_classes}; correct `label_names`")
        return tuple(str(descriptions.get(name, name)) for name in own)
    data = _timm().data
    subset = data.infer_imagenet_subset(model)
    if subset is None:
        return ()
    info = data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(model.num_classes))


def _timm() -> Any:
    try:
        import timm
        import timm.data
        import timm.models
    except ImportError:
        raise MissingRequirementError("models of timm need it: pip install 'thurl[vision]'") from None
    return timm
