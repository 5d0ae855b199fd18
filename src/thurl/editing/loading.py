"""Base models by name: an image classifier with its own preprocessing, from a folder or the Hub.

Weights are safetensors alone; no code of a folder is run.
"""

from __future__ import annotations

from dataclasses import dataclass

from thurl.continual.encoder_files import check_weights, encoder_folder, from_pretrained, read_config
from thurl.continual.picture_inputs import PicturePreprocessing
from thurl.continual.transformers_encoders import load_processor
from thurl.editing.classifier import Classifier, as_classifier
from thurl.errors import UsageError
from thurl.messages import nearest


__all__ = ["BaseModel", "load_base_model"]

_KINDS = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "clip": "CLIPForImageClassification",
}


@dataclass(frozen=True)
class BaseModel:
    """A classifier and its test transform."""

    classifier: Classifier
    preprocessing: PicturePreprocessing


def load_base_model(text: str) -> BaseModel:
    """An image classifier of timm or transformers.

    Args:
        text: a folder as `save_pretrained` writes it, with its image processor, or as timm saves for the Hub; else
            `timm:NAME` or an `owner/name` of the Hub.

    Raises:
        MissingRequirementError: no such folder, no safetensors in it, or the Hub cannot be reached.
        DataError: broken weights, or fewer than the model has.
        UsageError: a model of another kind.
    """
    folder = encoder_folder(text)
    config = read_config(folder)
    kind = config.get("model_type")
    if kind is None and "architecture" in config:
        check_weights(folder, index=False)
        from thurl.continual.timm_encoders import load_timm

        model, _, preprocessing = load_timm(folder, config, classifier=True)
        return BaseModel(as_classifier(model), preprocessing)
    if kind not in _KINDS:
        raise UsageError(
            f"{folder}: a model of kind {kind!r}; classifiers that can be edited are {', '.join(_KINDS)} and folders "
            f"of timm{nearest(str(kind), _KINDS)}"
        )
    check_weights(folder)
    import transformers

    model = from_pretrained(getattr(transformers, _KINDS[kind]), folder)
    vision = getattr(model.config, "vision_config", model.config)
    side = vision.image_size
    height, width = (side, side) if isinstance(side, int) else side
    size = None if kind == "dinov2" else (vision.num_channels, height, width)
    return BaseModel(as_classifier(model), load_processor(folder, size))
