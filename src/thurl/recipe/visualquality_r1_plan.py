"""Sizes of a VisualQuality-R1 run as `thurl plan` needs them, read from the recipe without weights or data."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thurl.errors import UsageError
from thurl.recipe.fields import field_value
from thurl.recipe.visualquality_r1 import VisualQualityR1Recipe, prompt_preset
from thurl.rl.plan.memory import RunShape
from thurl.rl.plan.shape import RELEASED, ModelShape, picture_patches, released_shape


__all__ = ["PlannedRun", "planned_run"]

# What Qwen2.5-VL's processor uses where the recipe says nothing.
_MIN_PIXELS, _MAX_PIXELS = 3136, 12_845_056
_KADID = (512, 384)
# Words, single digits and single signs: one token each in Qwen's vocabulary, nearly.
_PIECE = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]")
# Tokens of the chat template: system turn 11, user turn 5, begin and end of the picture 2, begin of the answer 3.
_TEMPLATE = 21


@dataclass(frozen=True)
class PlannedRun:
    """Model and run, and what had to be assumed about them."""

    model: ModelShape
    run: RunShape
    assumptions: tuple[str, ...]


def planned_run(
    recipe: VisualQualityR1Recipe, *, gpus: int, zero: int | None = None, picture: tuple[int, int] | None = None
) -> PlannedRun:
    """Read the sizes from a validated recipe.

    Args:
        gpus: devices that train.
        zero: stage of ZeRO; what `training.deepspeed` says when None, DDP without it.
        picture: width and height of the pictures in pixels; when None, that of generated pictures, else KADID's.

    Raises:
        UsageError: a model whose sizes are not known.
    """
    section, training = recipe.model, recipe.training
    model = _model_shape(recipe)
    assumptions = []
    if picture is None:
        made = [source.size for source in recipe.data.train if source.format == "degraded_photos"]
        picture = (max(made), max(made)) if len(made) == len(recipe.data.train) else _KADID
    if picture == _KADID:
        assumptions.append(f"pictures of {picture[0]} x {picture[1]} pixels (`--picture`)")
    area = section.tiny or section
    patches = picture_patches(
        *picture, shape=model, min_pixels=area.min_pixels or _MIN_PIXELS, max_pixels=area.max_pixels or _MAX_PIXELS
    )
    words = _prompt_tokens(recipe)
    rows, group = field_value(training, "per_device_train_batch_size"), field_value(training, "num_generations")
    steps = field_value(training, "steps_per_generation") or field_value(training, "gradient_accumulation_steps")
    if field_value(training, "generation_batch_size"):
        steps = max(1, field_value(training, "generation_batch_size") // (rows * gpus))
    stage, offload = _zero(training.get("deepspeed"), zero)
    low = bool(field_value(training, "bf16") or training.get("fp16"))
    held = 2 if section.dtype in ("bfloat16", "float16") or (section.dtype == "auto" and low) else 4
    if recipe.adapter is None and not stage and low:
        held = 4  # float32 weights, see `thurl.recipe.visualquality_r1_run.load_model`
    answer = field_value(training, "max_completion_length")
    assumptions.append(f"answers of {answer} tokens, the most that `training.max_completion_length` allows")
    vllm = "none" if not training.get("use_vllm") else field_value(training, "vllm_mode")
    if section.prefix_sharing == "auto":
        assumptions.append("`model.prefix_sharing: auto` counts as off: whether it shares is decided batch by batch")
    adapter = recipe.adapter
    targets = () if adapter is None else _targets(adapter.target_modules)
    if adapter is not None and adapter.kind not in ("lora", "rslora", "pissa"):
        assumptions.append(f"`adapter.kind: {adapter.kind}` counts as a LoRA of its rank")
    if recipe.coto is not None:
        assumptions.append("`coto`: all adapters on, as in the last part of the run; earlier steps need less")
    run = RunShape(
        gpus=gpus,
        zero=stage,
        offload=offload,
        dtype=held,
        compute=2 if low or held == 2 else 4,
        train_vision="vision" not in section.freeze,
        train_language="language" not in section.freeze,
        adapter=0 if adapter is None else model.adapter_parameters(adapter.r, targets),
        rank=0 if adapter is None else adapter.r,
        images=rows / group,
        completions=group,
        micro_batches=steps,
        prompt=words + patches // model.merge**2,
        answer=answer,
        patches=patches,
        shared=section.prefix_sharing == "on",
        checkpointing=bool(field_value(training, "gradient_checkpointing")),
        reference=field_value(training, "beta") > 0,
        on_gpu=not training.get("use_cpu", False),
        vllm=vllm,
        vllm_share=field_value(training, "vllm_gpu_memory_utilization"),
        vllm_sleeps=bool(field_value(training, "vllm_enable_sleep_mode")),
        tensor_parallel=field_value(training, "vllm_tensor_parallel_size"),
    )
    return PlannedRun(model, run, tuple(assumptions))


def _targets(names: Any) -> tuple[str, ...]:
    """Projections that an adapter sits on; a pattern is taken for all of those it names."""
    known = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    if isinstance(names, str):
        return tuple(name for name in known if name in names) or known
    return tuple(names)


def _model_shape(recipe: VisualQualityR1Recipe) -> ModelShape:
    tiny = recipe.model.tiny
    if tiny is not None:
        from thurl.rl.tiny import build_tiny_tokenizer

        return ModelShape(
            hidden=tiny.hidden,
            layers=tiny.layers,
            heads=tiny.heads,
            kv_heads=tiny.kv_heads or tiny.heads,
            intermediate=tiny.intermediate or 2 * tiny.hidden,
            vocabulary=math.ceil(len(build_tiny_tokenizer()) / 8) * 8,
            tied=tiny.tie_embeddings,
            vision_hidden=tiny.vision_hidden,
            vision_layers=tiny.vision_depth,
            vision_intermediate=tiny.vision_intermediate or 2 * tiny.vision_hidden,
            patch=tiny.patch_size,
            vision_full=tiny.vision_depth,
            window=8 * tiny.patch_size,
        )
    name = str(recipe.model.name_or_path)
    file = Path(name).expanduser() / "config.json"
    if file.is_file():
        try:
            return ModelShape.from_config(json.loads(file.read_text(encoding="utf-8")))
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, RecursionError) as error:
            raise UsageError(f"{file} is no JSON object ({error}); save the model again") from None
    shape = released_shape(name)
    if shape is None:
        raise UsageError(
            f"the sizes of {name} are not known: name a folder that holds its config.json, or one of "
            f"{', '.join(f'Qwen/{known}-Instruct' for known in RELEASED)}"
        )
    return shape


def _prompt_tokens(recipe: VisualQualityR1Recipe) -> int:
    preset = prompt_preset(recipe)
    text = preset.text("think" if recipe.data.prompt.think else "direct")
    return len(_PIECE.findall(text)) + _TEMPLATE + (len(_PIECE.findall(preset.system)) - 6 if preset.system else 0)


def _zero(file: Any, asked: int | None) -> tuple[Any, bool]:
    if file is None:
        return asked or 0, False
    settings = file
    if isinstance(file, str):
        try:
            settings = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"training.deepspeed: {file} cannot be read ({error})") from None
    section = settings.get("zero_optimization", {})
    stage = section.get("stage", 0) if asked is None else asked
    return stage, "offload_optimizer" in section
