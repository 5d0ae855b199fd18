"""Runs a CoTo recipe of GRPO on checkable answers with TRL's trainer; without the section `coto`, a plain adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from thurl.coto import CoToGRPOMixin
from thurl.recipe.adapters import peft_config
from thurl.recipe.answers_run import run_recipe
from thurl.recipe.answers_task import QuestionTask, Task
from thurl.recipe.coto_grpo import CoToGRPORecipe
from thurl.rl.checked_reward import checked_reward
from thurl.rl.timed_rollouts import TimedRollouts, timed_log_probs
from thurl.text.rewards import ExactAnswerReward
from thurl.training.resumable_trl import ResumableGRPO


__all__ = ["LOG_FIELDS", "AnswersGRPOTrainer", "CoToAnswersGRPOTrainer", "run"]

LOG_FIELDS = {
    "reward": ("reward", ".3f"),
    "answers/unparsed": ("unparsed", ".2f"),
    "frac_reward_zero_std": ("groups alike", ".2f"),
    "kl": ("KL", ".3f"),
    "coto/p": ("p", ".2f"),
    "coto/active": ("groups on", ".0f"),
    "coto/abs_log_ratio": ("|log ratio|", ".3f"),
}


class AnswersGRPOTrainer(TimedRollouts, ResumableGRPO, GRPOTrainer):
    """`trl.GRPOTrainer` that resumes exactly and logs where its time goes."""

    _tag_names = ["trl", "grpo", "thurl"]

    @timed_log_probs
    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)


class CoToAnswersGRPOTrainer(CoToGRPOMixin, AnswersGRPOTrainer):
    """The same with CoTo."""


def run(recipe: CoToGRPORecipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, evaluate and report as the recipe says; called by `thurl.recipe.launch` on every process.

    Returns:
        the record of the run, as in the results file.
    """

    def arguments(**changes: Any) -> GRPOConfig:
        return GRPOConfig(**{**recipe.training, **changes})

    def trainers(task: Task, args: GRPOConfig, model: Any, processing_class: Any) -> AnswersGRPOTrainer:
        common = {
            "model": model,
            "reward_funcs": [checked_reward(ExactAnswerReward(recipe.reward.rule))],
            "args": args,
            "train_dataset": task.rows(),
            "processing_class": processing_class,
            "peft_config": peft_config(recipe.adapter, vision=False) if recipe.adapter else None,
        }
        if recipe.coto is None:
            return AnswersGRPOTrainer(**common)
        if args.ddp_find_unused_parameters is None and not args.deepspeed:
            args.ddp_find_unused_parameters = True  # adapters that are off have no gradient
        mode = recipe.coto.old_logprobs or "masked_old"
        return CoToAnswersGRPOTrainer(**common, coto=recipe.coto.config(), coto_old_logprobs=mode)

    task = QuestionTask(recipe, answers_only=True)
    return run_recipe(recipe, task, arguments, trainers, LOG_FIELDS, recipe_path, overrides)
