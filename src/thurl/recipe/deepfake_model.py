"""The model of a DeepFake recipe at its start."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import CLIPConfig

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics import model_files
from thurl.forensics.deepfake.config import DeepFakeConfig
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.loading import load_model
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.deepfake.prompts import known_prompts, tokenized
from thurl.forensics.deepfake.tiny import tiny_config


__all__ = ["build_model"]


def build_model(recipe: Any, graph: LabelGraph) -> DeepFakeModel:
    """CLIP's towers, those of another model, or random ones; random weights need `set_seed` first.

    Args:
        recipe: a `DeepFakeRecipe`.
        graph: its label graph.

    Raises:
        MissingRequirementError, DataError: weights that are not there, or do not fit.
        UsageError: a label graph without known token ids, or another one than the model's.
    """
    section, losses = recipe.model, recipe.losses.model_dump()
    if section.start == "folder":
        model = load_model(section.path)
        if model.graph.plain() != graph.plain():
            raise UsageError(f"{section.path} was made for another label graph than {section.graph} (`model.graph`)")
        for name, value in losses.items():
            setattr(model.config, name, value)
        return model
    options = {name: getattr(section, name) for name in ("normalize", "scale", "learn_scale")} | losses
    if section.start == "clip":
        return _of_clip(section.path, graph, options)
    if section.tiny is not None:
        sizes = section.tiny.model_dump(exclude={"positions"})
        tiny = DeepFakeModel(tiny_config(graph, image_size=recipe.transform.size, **sizes, **options))
        with torch.no_grad():
            for name, weight in tiny.vision_model.named_parameters():
                if "position_embedding" in name:
                    weight.mul_(section.tiny.positions)
        return tiny
    return DeepFakeModel(DeepFakeConfig(graph=graph.plain(), **options))


def _of_clip(path: str, graph: LabelGraph, options: dict[str, Any]) -> DeepFakeModel:
    try:
        clip = CLIPConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise MissingRequirementError(f"{path}: no folder of a CLIP model ({str(error).splitlines()[0]})") from None
    vision, text = clip.vision_config, clip.text_config
    config = DeepFakeConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        projection_dim=clip.projection_dim,
        graph=graph.plain(),
        prompt_ids=_prompt_ids(path, graph),
        **options,
    )
    model: DeepFakeModel = model_files.load_weights(path, DeepFakeModel, "CLIP's release", config=config)
    return model


def _prompt_ids(path: str, graph: LabelGraph) -> list[list[int]]:
    """Those that are kept for the shipped graphs, or by the tokenizer beside the weights."""
    if all(sentence in known_prompts() for sentence in graph.prompts()):
        return tokenized(graph)
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(os.fspath(path))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: no tokenizer ({str(error).splitlines()[0]}), which a label graph of your own needs"
        ) from None
    return tokenized(graph, tokenizer)
