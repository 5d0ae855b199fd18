"""Runs a recipe of supervised fine-tuning on rated pictures: the run of VisualQuality-R1 with TRL's SFT trainer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from trl import SFTConfig

from thurl.recipe.coto_sft_run import AdapterSFTTrainer, build_trainer
from thurl.recipe.coto_vlm import CoToVLMRecipe
from thurl.recipe.language_cards import COTO
from thurl.recipe.visualquality_r1_data import Study
from thurl.recipe.visualquality_r1_report import Story
from thurl.recipe.visualquality_r1_run import Way, run_way
from thurl.rl.dataset import build_answer_dataset
from thurl.rl.frozen_vision import skip_frozen_towers
from thurl.rl.prompts import PromptPreset


__all__ = ["answer_trainer", "run", "training_arguments"]

_LOG_FIELDS = {
    "loss": ("loss", ".4f"),
    "mean_token_accuracy": ("tokens right", ".3f"),
    "coto/p": ("p", ".2f"),
    "coto/active": ("groups on", ".0f"),
}


def run(recipe: CoToVLMRecipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, evaluate and report as the recipe says; called by `thurl.recipe.launch` on every process.

    Returns:
        the record of the run, as in the results file.
    """
    return run_way(SFT, recipe, recipe_path, overrides)


def training_arguments(recipe: CoToVLMRecipe, **changes: Any) -> SFTConfig:
    """The recipe's `training` section as a trainer configuration; `changes` win."""
    return SFTConfig(**{**recipe.training, **changes})


def answer_trainer(
    recipe: CoToVLMRecipe, args: SFTConfig, study: Study, model: Any, processor: Any, preset: PromptPreset
) -> AdapterSFTTrainer:
    """The trainer of the recipe; the loss is that of the answer's tokens alone."""
    rows = build_answer_dataset(study.train, preset)
    trainer = build_trainer(recipe, SimpleNamespace(rows=lambda: rows), args, model, processor, vision=True)
    skip_frozen_towers(trainer.model)
    return trainer


SFT = Way(
    training_arguments,
    answer_trainer,
    _LOG_FIELDS,
    Story("Supervised fine-tuning on rated pictures", "by their ratings, written as answers", ("Loss", "loss")),
    {**COTO, "name": "supervised fine-tuning on rated pictures"},
)
