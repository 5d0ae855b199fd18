"""The `coto` section: progressive activation of the adapter's layers (arXiv 2506.05713), and what excludes it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from thurl.coto.config import CoToConfig
from thurl.coto.schedule import generation_period
from thurl.recipe.fields import Problem, field_value, process_count, usable_fields
from thurl.recipe.sections import Section


__all__ = ["CoToSection", "coto_problems"]

_Patterns = Annotated[tuple[str, ...], Field(strict=False)]
_Probability = Annotated[float, Field(ge=0, le=1)]


class CoToSection(Section):
    """Switch the adapter's layers on one by one: settings of `thurl.coto.CoToConfig`, whose defaults hold here."""

    initial_p: _Probability | dict[str, _Probability] = CoToConfig.initial_p
    """p0, the probability that a group of adapters is on in the first step; or one by layer, a mapping from regular
    expression to p0, of which the first that is found in a module path counts (`""` fits all)."""
    final_p: float = Field(CoToConfig.final_p, ge=0, le=1)
    stage1_ratio: float = Field(CoToConfig.stage1_ratio, ge=0, le=1)
    """Share of the steps in which p rises."""
    schedule: Literal["linear", "sine", "exponential", "constant"] = CoToConfig.schedule
    group_by: Literal["layer", "module"] | Annotated[int, Field(ge=1)] = "layer"
    """Which adapters share a draw: those of a block, each its own, or chunks of so many."""
    min_active: Literal["resample", "force"] = "resample"
    """What happens when all are off. CoTo's `allow_empty` is not here: a trainer cannot skip a step."""
    min_active_per_tower: bool = CoToConfig.min_active_per_tower
    """One group on in each tower of a vision-language model, not only in one of them."""
    seed: int = CoToConfig.seed
    hold: int = Field(CoToConfig.hold, ge=1)
    """Optimizer steps that share a mask."""
    include: _Patterns | None = None
    exclude: _Patterns | None = None
    """Regular expressions found in a module path; what is not included, or is excluded, stays on."""
    old_logprobs: Literal["masked_old", "full_old", "detach"] | None = None
    """GRPO only: against which old log-probabilities the update is measured; `masked_old` when left out."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        by_layer = self.initial_p if isinstance(self.initial_p, dict) else {}
        patterns = [(("initial_p", pattern), pattern) for pattern in by_layer]
        for name in ("include", "exclude"):
            patterns += [((name, index), pattern) for index, pattern in enumerate(getattr(self, name) or ())]
        for where, pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                found.append((where, f"{pattern!r} is no regular expression: {error}"))
        if self.initial_p == {}:
            found.append((("initial_p",), "is an empty mapping; give a number, or one for each expression"))
        return found

    def words(self) -> str:
        """The schedule, for a report."""
        start = self.initial_p
        values = start.values() if isinstance(start, dict) else [start]
        words = f"{min(values):g} to {max(values):g} by layer" if isinstance(start, dict) else f"{start:g}"
        return f"p from {words} to {self.final_p:g} over {self.stage1_ratio:.0%} of the steps"

    def config(self) -> CoToConfig:
        """Settings for `thurl.coto.CoToCallback` and `thurl.coto.CoToGRPOMixin`."""
        return CoToConfig(**self.model_dump(exclude={"old_logprobs"}))


def coto_problems(
    sections: Mapping[str, Any], schema: str, *, processes: int | None = None, grpo: bool = False
) -> list[Problem]:
    """What `coto` excludes in other sections, for every method that has it.

    Args:
        sections: of the recipe, by name; those that are wrong alone are missing.
        schema: of `training`, as in `thurl.recipe.fields.check_fields`.
        processes: that will train; `None` for those of this launch.
        grpo: whether the method is reinforcement learning.
    """
    coto = sections.get("coto")
    if coto is None:
        return []
    found: list[Problem] = []
    if "adapter" in sections and sections["adapter"] is None:
        found.append((("coto",), "switches adapters and needs the section `adapter`, for instance `adapter: {r: 16}`"))
    if coto.old_logprobs is not None and not grpo:
        found.append((("coto", "old_logprobs"), "is for GRPO; this method has no old log-probabilities"))
    training = sections.get("training")
    if not isinstance(training, dict):
        return found
    training = usable_fields(training, schema)
    if grpo and coto.old_logprobs in (None, "masked_old"):
        found += _hold_problems(coto.hold, training, processes or process_count())
        found += _correction_problems(training)
    if training.get("deepspeed") or _launcher_shards():
        return found
    # The same rules as in `thurl.coto.callback`, before anything is loaded.
    if field_value(training, "ddp_find_unused_parameters", schema) is False:
        found.append(
            (
                ("training", "ddp_find_unused_parameters"),
                "is false, but adapters that are off have no gradient, which ends DDP in the second step; set it to "
                "true or remove it",
            )
        )
    if field_value(training, "ddp_static_graph", schema):
        found.append((("training", "ddp_static_graph"), "`coto` changes the graph in every step; remove it"))
    checkpointing = field_value(training, "gradient_checkpointing", schema)
    options = field_value(training, "gradient_checkpointing_kwargs", schema) or {}
    if (processes or process_count()) > 1 and checkpointing and options.get("use_reentrant"):
        found.append(
            (
                ("training", "gradient_checkpointing_kwargs"),
                "`use_reentrant: true` fails with several processes where some parameters have no gradient; set it to "
                "false",
            )
        )
    return found


def _hold_problems(hold: int, training: dict[str, Any], world: int) -> list[Problem]:
    """A mask that changes while its completions are in use, as `thurl.coto.CoToGRPOMixin` refuses it."""
    accumulation, iterations, rows = (
        field_value(training, name)
        for name in ("gradient_accumulation_steps", "num_iterations", "per_device_train_batch_size")
    )
    steps = field_value(training, "steps_per_generation") or accumulation
    if field_value(training, "generation_batch_size"):
        steps = max(1, field_value(training, "generation_batch_size") // (rows * world))
    period = generation_period(steps, iterations, accumulation)
    numbers = f"{steps} steps per generation x {iterations} iterations, {accumulation} accumulated"
    if period is None:
        message = f"a batch of completions ends inside an optimizer step ({numbers}); take a multiple, or set "
        return [(("training", "gradient_accumulation_steps"), message + "`coto.old_logprobs: full_old`")]
    if hold > 1 and hold % period:
        message = f"is {hold}, but completions are used for {period} optimizer steps ({numbers}); take a multiple"
        return [(("coto", "hold"), message)]
    return []


def _correction_problems(training: dict[str, Any]) -> list[Problem]:
    """TRL's default with vLLM, which has all adapters: the ratio of whole answers is far from 1 and silences them."""
    corrects = training.get("use_vllm") and field_value(training, "vllm_importance_sampling_correction")
    if not corrects or "vllm_importance_sampling_mode" in training:
        return []
    message = (
        "is left at its default, a ratio of whole answers between the masked policy and that of vLLM, which is near 0 "
        "while p is small and takes the gradient with it; name one, for instance `token_truncate`"
    )
    return [(("training", "vllm_importance_sampling_mode"), message)]


def _launcher_shards() -> bool:
    return any(
        os.environ.get(name, "").lower() == "true" for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
    )
