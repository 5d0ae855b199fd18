"""Released checkpoints of SJEDD to thurl's model, and back.

A file (`ckpt_best.pth`) is a pickle with the entries model, optimizer, max_accuracy, epoch, config and args, the last
two being objects of yacs and argparse, which `thurl.training.released_files` turns into plain dictionaries. `model` is
a whole CLIP under OpenAI's names; other files of OpenAI's CLIP ViTs fit too.

Strict, where the official code drops silently what it cannot place: every tensor of both towers must be there, and
nothing else may, but for `ALLOWED`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from thurl.errors import DataError, UsageError
from thurl.forensics.deepfake.config import DeepFakeConfig
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.processing import FaceImageProcessor
from thurl.training.openai_clip import collected, text_config, text_names, to_openai, vision_config, vision_names
from thurl.training.released_files import read_model_tensors


__all__ = ["ALLOWED", "convert_checkpoint", "from_official", "to_official"]

ALLOWED = ("logit_scale", "input_resolution", "context_length", "vocab_size")
"""Entries that may be left out: the method cancels CLIP's scale, the others are sizes."""


def from_official(state: Mapping[str, torch.Tensor], **options: Any) -> DeepFakeModel:
    """The model that a checkpoint's tensors belong to, float32, in evaluation mode.

    Args:
        state: OpenAI's names to tensors (`thurl.training.released_files.read_model_tensors`). `module.` in front of
            every name is dropped.
        **options: settings of `DeepFakeConfig` that tensors do not tell: `graph`, `prompt_ids`, `learn_scale`.

    Raises:
        DataError: a tensor is missing, has no place, another shape or values that are not finite; all problems.
        UsageError, ValueError: options that cannot be used.
    """
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        vision = vision_config({name.removeprefix("visual."): t for name, t in state.items() if "visual." in name})
        text = text_config(state)
    except ValueError as error:
        raise DataError(f"the checkpoint cannot be used: {error}") from None
    width = state["text_projection"].shape[-1] if "text_projection" in state else vision.projection_dim
    vision.projection_dim = text.projection_dim = width
    model = DeepFakeModel(DeepFakeConfig(vision_config=vision, text_config=text, projection_dim=width, **options))
    names = _names(model)
    values, missing, problems = collected(model.state_dict(), names, state)
    problems = [f"{name} is missing" for name in missing] + problems
    problems += [f"{name} has no place" for name in state if name not in names and name not in ALLOWED]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(f"the checkpoint cannot be used: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(values)
    return model.eval()


def to_official(model: DeepFakeModel) -> dict[str, torch.Tensor]:
    """The tensors of a model under OpenAI's names; the inverse of `from_official`.

    Raises:
        UsageError: a folded model, which lacks the text tower.
    """
    if model.config.folded:
        raise UsageError("a folded model has no text tower to write; convert the model it was made from")
    own = model.state_dict()
    return {
        official: to_openai(official, [own[name] for name in ours]).detach().clone()
        for official, ours in _names(model).items()
    }


def convert_checkpoint(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    processor: FaceImageProcessor | None = None,
    **options: Any,
) -> DeepFakeModel:
    """Turn a released file into a folder with the model and its image processor.

    Args:
        path: the released file.
        output: folder to write; made if it is not there.
        processor: image processor to save beside the model; when None the released one: bicubic to the size of the
            image tower, CLIP's mean and standard deviation.
        **options: as `from_official` takes them.

    Raises:
        UsageError: `output` holds a model already, or options that cannot be used.
        DataError, MissingRequirementError: a file that is not there or cannot be used.
    """
    folder = Path(output)
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model already; choose another folder")
    model = from_official(read_model_tensors(path), **options)
    if processor is None:
        vision: Any = model.config.vision_config
        processor = FaceImageProcessor(size=vision.image_size, resample="bicubic")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def _names(model: DeepFakeModel) -> dict[str, list[str]]:
    """Official name to the one or three of ours it holds."""
    config: Any = model.config
    names = {
        f"visual.{official}": [f"vision_model.{name}" for name in ours]
        for official, ours in vision_names(config.vision_config.num_hidden_layers).items()
    }
    for official, ours in text_names(config.text_config.num_hidden_layers).items():
        names[official] = [f"text_model.{name}" for name in ours]
    names |= {"visual.proj": ["visual_projection.weight"], "text_projection": ["text_projection.weight"]}
    return names | ({"logit_scale": ["logit_scale"]} if config.learn_scale else {})
