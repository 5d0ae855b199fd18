"""Classifiers to edit by name: a folder, or weights of the Hub, with class names and preprocessing.

| folder | classifier |
|---|---|
| ViT, DeiT, DINOv2, CLIP `...ForImageClassification` of transformers | its own head |
| `CLIPModel` of transformers with its tokenizer | text features of the classes given |
| timm, as timm saves for the Hub | its own head |

Weights are safetensors alone; no code of a folder is run.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from thurl.editing.classifier import Classifier, as_classifier
from thurl.editing.export import save_model
from thurl.editing.zero_shot import ZeroShotClassifier
from thurl.errors import MissingRequirementError, UsageError
from thurl.messages import nearest, printable
from thurl.vision_models.clip_text import clip_text_features
from thurl.vision_models.files import check_weights, from_pretrained, model_folder, read_config
from thurl.vision_models.preprocessing import PicturePreprocessing, load_processor


__all__ = ["LoadedClassifier", "load_classifier", "save_classifier"]

_ARCHITECTURES = (
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "Dinov2ForImageClassification",
    "CLIPForImageClassification",
)
_ZERO_SHOT = "CLIPModel"
# What stands beside the weights and is the same for an edited model.
_BESIDE = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier and what belongs to it.

    Args:
        classifier: with the default units.
        preprocessing: its test transform.
        names: of its classes; empty where nothing says them.
        folder: where it was found on this machine.
    """

    classifier: Classifier
    preprocessing: PicturePreprocessing
    names: tuple[str, ...]
    folder: Path

    def read(self, image: Image) -> torch.Tensor:
        """A picture as the classifier reads it, [channels, H, W]."""
        return self.preprocessing.scaled(self.preprocessing(image)[None])[0]

    def name_of(self, label: int) -> str:
        """`3 (cat)`, or `3` where classes have no names."""
        return f"{label} ({printable(self.names[label])})" if self.names else str(label)

    def label_of(self, text: str) -> int:
        """Number of a class from its name, capital or small letters alike, or from its number.

        A name counts before a number.

        Raises:
            UsageError: no such class, or a name that several have.
        """
        known = [name.lower() for name in self.names]
        hits = [index for index, name in enumerate(known) if name == text.lower()]
        if len(hits) > 1:
            raise UsageError(f"label {text!r}: the classes {', '.join(map(str, hits))} are called so; give a number")
        if hits:
            return hits[0]
        if text.isascii() and text.isdigit() and int(text) < self.classifier.classes:
            return int(text)
        what = "a name or a number of 0" if self.names else "a number of 0"
        raise UsageError(
            f"label {text!r}: not a class of the model; give {what} to {self.classifier.classes - 1}"
            f"{nearest(text, self.names)}"
        )


def load_classifier(text: str, classes: Sequence[str] = (), template: str | None = None) -> LoadedClassifier:
    """A classifier with its own preprocessing.

    Args:
        text: a folder of one of the kinds above; else `timm:NAME` with a name of timm's pretrained models, or an
            `owner/name` of the Hub.
        classes: names of the classes; needed for a CLIPModel, in place of the model's own names otherwise.
        template: prompt of a CLIPModel with `{}` for the name; that of `clip_text_features` when None.

    Raises:
        MissingRequirementError: no such folder, no safetensors in it, or the Hub cannot be reached.
        DataError: broken weights, or fewer than the model has.
        UsageError: a model of another kind or without a classifier, names or a template that do not fit it.
    """
    folder = model_folder(text)
    config = read_config(folder)
    architecture = (config.get("architectures") or [None])[0]
    if template is not None and architecture != _ZERO_SHOT:
        raise UsageError(f"a prompt template needs a {_ZERO_SHOT}; {folder} holds none. Leave it out")
    classifier: Classifier
    if config.get("model_type") is None and "architecture" in config:
        check_weights(folder, index=False)
        from thurl.vision_models.timm_models import class_names, load_timm

        model, _, preprocess = load_timm(folder, config, classifier=True)
        classifier, names = as_classifier(model), class_names(model, config)
    elif architecture == _ZERO_SHOT:
        check_weights(folder)
        classifier, names = _zero_shot(folder, classes, template), tuple(classes)
        preprocess = load_processor(folder, _size(classifier.model.config.vision_config))
    elif architecture in _ARCHITECTURES:
        import transformers

        check_weights(folder)
        model = from_pretrained(getattr(transformers, architecture), folder)
        classifier = as_classifier(model)
        names = tuple(str(model.config.id2label[index]) for index in range(classifier.classes))
        kind = model.config.model_type
        # DINOv2 interpolates its positions: its image processor decides.
        vision = model.config.vision_config if kind == "clip" else model.config
        preprocess = load_processor(folder, None if kind == "dinov2" else _size(vision))
    else:
        known = ", ".join([*_ARCHITECTURES, _ZERO_SHOT, "folders of timm"])
        raise UsageError(
            f"{folder}: holds a {architecture or config.get('model_type')}; classifiers that can be edited are {known}"
            f"{nearest(architecture, _ARCHITECTURES)}"
        )
    if classes and len(classes) != classifier.classes:
        raise UsageError(f"{len(classes)} names of classes for a model of {classifier.classes}; give one for each")
    return LoadedClassifier(classifier, preprocess, tuple(classes) or names, folder)


def save_classifier(loaded: LoadedClassifier, folder: Path) -> None:
    """Save a classifier's model as it is now, and copy what stands beside its weights.

    The folder loads as the one it came from does, with plain transformers or timm, too.

    Args:
        folder: made if need be.

    Raises:
        UsageError: a folder that holds a model already.
    """
    if (folder / "config.json").exists() or (folder / "model.safetensors").exists():
        raise UsageError(f"{folder} holds a model already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    save_model(loaded.classifier.model, folder)
    # timm's settings hold the sizes of the model, which it does not know once it is made.
    whole = (*_BESIDE, *(() if hasattr(loaded.classifier.model, "save_pretrained") else ("config.json",)))
    for name in whole:
        if (loaded.folder / name).is_file():
            shutil.copyfile(loaded.folder / name, folder / name)


def _zero_shot(folder: Path, classes: Sequence[str], template: str | None) -> ZeroShotClassifier:
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise UsageError(f"{folder}: a {_ZERO_SHOT} classifies by the names of classes; give two or more, each once")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise MissingRequirementError(f"{folder}: no tokenizer; save that of the model beside it (`save_pretrained`)")
    from transformers import AutoTokenizer, CLIPModel

    model = from_pretrained(CLIPModel, folder)
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    options = {} if template is None else {"template": template}
    features: torch.Tensor = clip_text_features(model, words, classes, **options)
    return ZeroShotClassifier(model, features)


def _size(config: Any) -> tuple[int, int, int]:
    side = config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    return config.num_channels, height, width
