"""VisualQuality-R1 as a recipe: reinforcement learning to rank for image quality (arXiv 2505.14460)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from thurl.recipe.adapters import AdapterSection, adapter_problems
from thurl.recipe.coto import CoToSection, coto_problems
from thurl.recipe.fields import Problem, field_value, grpo_problems, process_count, usable_fields
from thurl.recipe.sections import (
    ControlSection,
    DataSection,
    EvaluationSection,
    GRPOFields,
    HubSection,
    MethodRecipe,
    ModelSection,
    ReportSection,
    RewardSection,
    RolloutsSection,
    SamplerSection,
    WarmStartSection,
)
from thurl.rl.prompts import PRESETS, PromptPreset


__all__ = ["VisualQualityR1Recipe", "prompt_preset"]


class VisualQualityR1Recipe(MethodRecipe):
    """A GRPO run with Thurstone fidelity rewards; `training` holds verbatim `trl.GRPOConfig` fields."""

    method: Literal["visualquality_r1"]
    model: ModelSection
    data: DataSection
    training: GRPOFields
    reward: RewardSection = RewardSection()
    sampler: SamplerSection = SamplerSection()
    rollouts: RolloutsSection = RolloutsSection()
    adapter: AdapterSection | None = None
    coto: CoToSection | None = None
    warm_start: WarmStartSection | None = None
    evaluation: EvaluationSection | None = None
    control: ControlSection = ControlSection()
    hub: HubSection = HubSection()
    report: ReportSection = ReportSection()

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        training = sections.get("training")
        if not isinstance(training, dict):
            return []
        found: list[Problem] = [(("training", *path), message) for path, message in grpo_problems(training, processes)]
        training = usable_fields(training, "grpo_config")
        broken = {path[1] for path, _ in found}
        if not broken & {"num_generations", "per_device_train_batch_size", "generation_batch_size"}:
            found += _block_problems(sections, training, processes or process_count())
        model, reward, evaluation = (sections.get(name) for name in ("model", "reward", "evaluation"))
        found += _rollout_problems(sections, training)
        if reward is not None and reward.kind == "threshold" and reward.out_of_range == "official":
            found.append((("reward", "out_of_range"), "`official` is a rule for comparisons; use `invalid` or `clip`"))
        found += _adapter_problems(sections, training)
        found += coto_problems(sections, "grpo_config", processes=processes, grpo=True)
        data = sections.get("data")
        if evaluation is not None and evaluation.every_steps and data is not None and not data.validation:
            found.append(
                (("evaluation", "every_steps"), "needs images to evaluate on: add `data.validation`, or remove it")
            )
        return found


def prompt_preset(recipe: VisualQualityR1Recipe) -> PromptPreset:
    """The preset of `data.prompt` with its own words put in. Training never shows the vision id."""
    section = recipe.data.prompt
    changes = {
        name: getattr(section, name)
        for name in ("question", "think_suffix", "direct_suffix", "system")
        if getattr(section, name) is not None
    }
    preset = replace(PRESETS[section.preset], vision_id=bool(section.vision_id))
    return replace(preset, **changes, name="recipe") if changes else preset


def _adapter_problems(sections: Mapping[str, Any], training: dict[str, Any]) -> list[Problem]:
    """What an adapter excludes in this method."""
    adapter, rollouts = sections.get("adapter"), sections.get("rollouts")
    if adapter is None:
        return []
    found = adapter_problems(sections)
    if any("lm_head" in target or "embed_tokens" in target for target in adapter.targets()):
        message = "adapters on `lm_head` or `embed_tokens` are refused by TRL's GRPO trainer"
        found.append((("adapter", "target_modules"), message))
    beta = field_value(training, "beta")
    if adapter.kind == "pissa" and beta:
        # PiSSA takes the adapter's start out of the base weights, and TRL's reference is the model without adapter.
        found.append(
            (
                ("adapter", "kind"),
                f"`pissa` changes the base weights, so the KL term (`training.beta` {beta}) would pull to a "
                "model that is not the start; set `training.beta: 0` or take another kind",
            )
        )
    if rollouts is not None and rollouts.adapter_sync == "adapter" and adapter.kind not in ("lora", "rslora"):
        found.append(
            (("rollouts", "adapter_sync"), f"`adapter` is for `lora` and `rslora`, not `{adapter.kind}`; use `merged`")
        )
    return found


def _rollout_problems(sections: Mapping[str, Any], training: dict[str, Any]) -> list[Problem]:
    """What `thurl.rl.rollouts.check_options` and vLLM's CPU kernels refuse, without importing them."""
    rollouts, model, vllm = sections.get("rollouts"), sections.get("model"), bool(training.get("use_vllm"))
    tiny = getattr(model, "tiny", None)
    found: list[Problem] = []
    if vllm and tiny is not None and tiny.hidden // tiny.heads < 32:
        found.append(
            (
                ("model", "tiny", "heads"),
                f"vLLM takes attention heads of 32 numbers or more, these have {tiny.hidden // tiny.heads}",
            )
        )
    if rollouts is None:
        return found
    if rollouts.stop and not vllm:
        found.append((("rollouts", "stop"), "needs `training.use_vllm: true`"))
    if rollouts.stop and training.get("mask_truncated_completions"):
        found.append((("rollouts", "stop"), "`training.mask_truncated_completions` would discard what ends there"))
    if rollouts.answer_format == "strict":
        if not vllm:
            found.append((("rollouts", "answer_format"), "`strict` needs `training.use_vllm: true`"))
        if training.get("vllm_structured_outputs_regex") is not None:
            found.append(
                (("rollouts", "answer_format"), "`strict` is a regex; remove `training.vllm_structured_outputs_regex`")
            )
    if rollouts.adapter_sync == "adapter" and "adapter" in sections and sections["adapter"] is None:
        found.append((("rollouts", "adapter_sync"), "`adapter` needs the section `adapter`"))
    return found


def _block_problems(sections: Mapping[str, Any], training: dict[str, Any], world: int) -> list[Problem]:
    """Blocks must fit the generation batch (global scope) or each device's rows (device scope)."""
    sampler, reward = sections.get("sampler"), sections.get("reward")
    if sampler is None or reward is None:
        return []
    group, rows = field_value(training, "num_generations"), field_value(training, "per_device_train_batch_size")
    steps = field_value(training, "steps_per_generation") or field_value(training, "gradient_accumulation_steps")
    batch = field_value(training, "generation_batch_size") or rows * world * steps
    images = batch // group
    size = sampler.block_size
    found: list[Problem] = []
    if images % size:
        found.append(
            (
                ("sampler", "block_size"),
                f"{images} images per generation batch ({batch} rows / {group} generations) do not divide into blocks "
                f"of {size}; take a divisor of {images}, or change `training.per_device_train_batch_size`",
            )
        )
    elif reward.kind == "thurstone" and reward.scope == "device" and (batch // world) % (size * group):
        found.append(
            (
                ("reward", "scope"),
                f"`device` compares whole blocks on one device: {batch // world} rows per device do not hold blocks "
                f"of {size} images x {group} generations; use `scope: global` or another block size",
            )
        )
    return found
