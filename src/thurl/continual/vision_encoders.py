"""Encoders by name: a folder, or weights of the Hub. One loader for every kind the command line takes.

| folder | features |
|---|---|
| `MLPEncoder` | its last layer |
| ViT, DeiT, DINOv2 of transformers | the CLS token after the final norm; a pooler is left out |
| CLIP of transformers, or its vision tower with projection | projected, to be compared with text features |
| CLIP vision tower without projection | the CLS token after the final norm |
| timm, as timm saves for the Hub | what the model gives to its classifier |

Weights are safetensors alone; no code of a folder is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from thurl.continual.encoders import MLPEncoder, MLPEncoderConfig
from thurl.continual.encoding import VisionEncoder, flat_input
from thurl.continual.transformers_encoders import KINDS
from thurl.errors import UsageError
from thurl.messages import nearest
from thurl.vision_models.clip_text import clip_text_features
from thurl.vision_models.files import check_weights, from_pretrained, model_folder, read_config
from thurl.vision_models.preprocessing import PicturePreprocessing, load_processor


__all__ = ["LoadedEncoder", "load_encoder"]


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and what belongs to it.

    Args:
        model: gives features [B, D], in evaluation mode.
        preprocess: a picture as the model reads it; see `thurl.continual.pool_data.class_data`.
        folder: where it was found on this machine.
    """

    model: nn.Module
    preprocess: Callable[[Image.Image | np.ndarray[Any, Any]], torch.Tensor] | PicturePreprocessing
    folder: Path

    def text_features(self, classes: Sequence[str], template: str | None = None) -> torch.Tensor | None:
        """Text features of classes, float [C, D], by the text tower and the tokenizer of a CLIP folder; None where
        the folder has none.

        Args:
            classes: `class_uid`s.
            template: with `{}` for the name; that of `clip_text_features` when None.

        Raises:
            UsageError: a template, but no text tower; or one without `{}`.
            DataError: the text tower lacks weights.
        """
        tokenizer = any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        if read_config(self.folder).get("model_type") != "clip" or not tokenizer:
            if template is not None:
                raise UsageError(
                    f"a prompt template needs a CLIP model with its tokenizer; {self.folder} holds none. Leave it out"
                )
            return None
        from transformers import AutoTokenizer, CLIPModel

        model = from_pretrained(CLIPModel, self.folder)
        words = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        return clip_text_features(model, words, classes, **({} if template is None else {"template": template}))


def load_encoder(text: str) -> LoadedEncoder:
    """An encoder with its own preprocessing.

    Args:
        text: a folder of one of the kinds above; else `timm:NAME` with a name of timm's pretrained models, or an
            `owner/name` of the Hub.

    Raises:
        MissingRequirementError: no such folder, no safetensors in it, or the Hub cannot be reached.
        DataError: broken weights, or fewer than the model has.
        UsageError: a model or a preprocessing of another kind.
    """
    folder = model_folder(text)
    config = read_config(folder)
    kind = config.get("model_type")
    if kind is None and "architecture" in config:
        check_weights(folder, index=False)
        from thurl.vision_models.timm_models import load_timm

        backbone, described, preprocess = load_timm(folder, config)
        return _whole(folder, VisionEncoder(backbone, "features", preprocess.size, described), preprocess)
    if kind == MLPEncoderConfig.model_type:
        check_weights(folder)
        model = from_pretrained(MLPEncoder, folder)
        side = model.config.side
        return LoadedEncoder(model, lambda picture: flat_input(picture, side), folder)
    if kind not in KINDS:
        known = ", ".join([MLPEncoderConfig.model_type, *KINDS, "folders of timm"])
        raise UsageError(
            f"{folder}: a model of kind {kind!r}; encoders are {known}{nearest(kind, KINDS)}. The features of any "
            "other encoder are taken from a file (thurl.continual.features.encode)"
        )
    check_weights(folder)
    backbone, output = KINDS[kind].load(folder, config)
    preprocess = load_processor(folder, KINDS[kind].size(backbone))
    encoder = VisionEncoder(backbone, output, preprocess.size, backbone.config.to_diff_dict())
    return _whole(folder, encoder, preprocess)


def _whole(folder: Path, encoder: VisionEncoder, preprocess: PicturePreprocessing) -> LoadedEncoder:
    encoder.eval()
    with torch.no_grad():
        found = encoder(torch.zeros(1, *preprocess.size))
    if found.ndim != 2:
        raise UsageError(
            f"{folder}: a {type(encoder.backbone).__name__} that gives {tuple(found.shape)} for one picture, not "
            "[1, D] features; save it with a pooling (`global_pool`)"
        )
    return LoadedEncoder(encoder, preprocess, folder)
