"""Runs a CoTo recipe of supervised fine-tuning with TRL's trainer; without the section `coto`, a plain adapter."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from trl import SFTConfig, SFTTrainer

from thurl.coto import CoToCallback
from thurl.recipe.adapters import peft_config
from thurl.recipe.answers_run import run_recipe
from thurl.recipe.answers_task import QuestionTask, Task
from thurl.recipe.coto_sft import CoToSFTRecipe
from thurl.training.resumable_trl import ResumableSFT
from thurl.training.timed_trainer import TimedTrainer


__all__ = ["LOG_FIELDS", "AdapterSFTTrainer", "build_trainer", "run"]

logger = logging.getLogger(__name__)

LOG_FIELDS = {
    "loss": ("loss", ".4f"),
    "mean_token_accuracy": ("tokens right", ".3f"),
    "coto/p": ("p", ".2f"),
    "coto/active": ("groups on", ".0f"),
}


class AdapterSFTTrainer(TimedTrainer, ResumableSFT, SFTTrainer):
    """`trl.SFTTrainer` that resumes exactly and logs where its time goes."""

    _tag_names = ["trl", "sft", "thurl"]


def run(recipe: CoToSFTRecipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, evaluate and report as the recipe says; called by `thurl.recipe.launch` on every process.

    Returns:
        the record of the run, as in the results file.
    """

    def arguments(**changes: Any) -> SFTConfig:
        return SFTConfig(**{**recipe.training, **changes})

    def trainers(task: Task, args: SFTConfig, model: Any, processing_class: Any) -> AdapterSFTTrainer:
        return build_trainer(recipe, task, args, model, processing_class)

    return run_recipe(recipe, QuestionTask(recipe), arguments, trainers, LOG_FIELDS, recipe_path, overrides)


def build_trainer(
    recipe: Any, task: Task, args: SFTConfig, model: Any, processing_class: Any, *, vision: bool = False
) -> AdapterSFTTrainer:
    """The trainer of a recipe with the sections `adapter` and `coto`.

    Args:
        vision: whether the model has a vision tower, which `adapter.exclude_vision` is about.
    """
    if recipe.coto is not None and args.ddp_find_unused_parameters is None and not args.deepspeed:
        args.ddp_find_unused_parameters = True  # adapters that are off have no gradient
    rows = task.rows()
    trainer = AdapterSFTTrainer(
        model,
        args=args,
        train_dataset=rows,
        processing_class=processing_class,
        peft_config=peft_config(recipe.adapter, vision=vision) if recipe.adapter else None,
    )
    left = len(rows) - len(trainer.train_dataset)
    if left > 0 and not args.packing:
        logger.warning(
            "%d of %d rows have a prompt that fills `training.max_length` (%s); TRL leaves them out",
            *(left, len(rows), args.max_length),
        )
    if "input_ids" in trainer.train_dataset.column_names and args.max_length is not None and not args.packing:
        cut = sum(len(ids) >= args.max_length for ids in trainer.train_dataset["input_ids"])
        if cut:
            logger.warning(
                "%d of %d rows fill `training.max_length` (%d) or were cut to it: the ends of answers may be missing",
                *(cut, len(rows), args.max_length),
            )
    if recipe.coto is not None:
        CoToCallback(recipe.coto.config()).register(trainer)
    return trainer
