"""What a recipe will need: bytes on each device in each phase, seconds of a step, and whether it can run at all."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from thurl.errors import UsageError
from thurl.recipe.fields import process_count
from thurl.recipe.methods import METHODS, load_attribute
from thurl.rl.plan.memory import (
    VLLM_ASLEEP,
    VLLM_WORKING,
    RunShape,
    generation_memory,
    resident_memory,
    update_memory,
)
from thurl.rl.plan.shape import ModelShape
from thurl.rl.plan.time import Device, step_seconds


__all__ = ["Plan", "make_plan", "warn_before_start"]

logger = logging.getLogger(__name__)

GIB = 2**30
CONTEXT = 1.0 * GIB
"""What the CUDA context and communication libraries take of a device: an estimate."""
FRAGMENTED = 0.05
"""Share of the device that the caching allocator cannot use: an estimate."""


@dataclass(frozen=True)
class Plan:
    """Prediction for one recipe.

    Attributes:
        model, run: sizes.
        device_memory: bytes of one device.
        phases: phase (`rollout`, `update`) to named parts in bytes; parts add up.
        seconds: phase to seconds for one generation batch; None without a device whose speed is known.
        problems: why the run cannot work as it is, each with what to do.
        assumptions: what the recipe does not say.
    """

    model: ModelShape
    run: RunShape
    device_memory: float
    phases: dict[str, dict[str, float]]
    seconds: dict[str, float] | None
    problems: tuple[str, ...]
    assumptions: tuple[str, ...]

    @property
    def peak(self) -> float:
        """Bytes of the phase that needs most."""
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def usable(self) -> float:
        """Bytes of a device that tensors can have."""
        if not self.run.on_gpu:
            return self.device_memory
        return self.device_memory * (1 - FRAGMENTED) - CONTEXT

    @property
    def fits(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """For programs: bytes and seconds."""
        return {
            "parameters": self.model.parameters,
            "tokens": {"prompt": self.run.prompt, "answer": self.run.answer, "rows": self.run.rows},
            "phases": self.phases,
            "peak": self.peak,
            "usable": self.usable,
            "fits": self.fits,
            "seconds": self.seconds,
            "problems": list(self.problems),
            "assumptions": list(self.assumptions),
        }


def make_plan(
    recipe: Any,
    *,
    gpus: int,
    memory: float,
    zero: int | None = None,
    picture: tuple[int, int] | None = None,
    device: Device | None = None,
) -> Plan:
    """Predict memory and, for a known device, time.

    Args:
        recipe: validated.
        gpus: devices that train.
        memory: of one device, in GiB.
        zero: stage of ZeRO when the launcher's configuration decides; that of the recipe when None.
        picture: width and height of the pictures in pixels; when None, that of generated pictures, else 512 x 384.
        device: for the times.

    Raises:
        UsageError: a method without sizes, or a model whose sizes are not known.
    """
    path = METHODS[recipe.method].plan
    if path is None:
        planned = ", ".join(name for name, method in METHODS.items() if method.plan)
        raise UsageError(f"`thurl plan` cannot say what {recipe.method} needs; it can for {planned}")
    planned = load_attribute(path)(recipe, gpus=gpus, zero=zero, picture=picture)
    model, run = planned.model, planned.run
    whole = memory * GIB
    resident = resident_memory(model, run)
    update = {**resident, **update_memory(model, run)}
    if run.vllm == "colocate":
        update["vLLM"] = VLLM_ASLEEP if run.vllm_sleeps else run.vllm_share * whole
    phases = {"rollout": {**resident, **generation_memory(model, run, whole)}, "update": update}
    plan = Plan(model, run, whole, phases, None, (), planned.assumptions)
    seconds = None if device is None else step_seconds(model, run, device)
    return replace(plan, seconds=seconds, problems=tuple(_problems(plan)))


def warn_before_start(recipe: Any) -> None:
    """Say what the plan says against this run on this machine's GPU; silent without one, or where nothing is planned.

    A prediction must not stop a run that might work, so this only warns.
    """
    import torch

    if not torch.cuda.is_available() or recipe.training.get("use_cpu"):
        return
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    try:
        plan = make_plan(recipe, gpus=process_count(), memory=memory)
    except UsageError as error:
        logger.info("memory was not predicted: %s", error)
        return
    for problem in plan.problems:
        logger.warning("this run may not fit: %s", problem)


def _problems(plan: Plan) -> list[str]:
    model, run = plan.model, plan.run
    found = []
    if run.vllm == "colocate":
        needed = model.parameters * run.compute / run.tensor_parallel + VLLM_WORKING
        if needed > run.vllm_share * plan.device_memory:
            share = needed / plan.device_memory
            fix = (
                f"set `training.vllm_gpu_memory_utilization` to {share + 0.05:.2f} or more"
                if share < 0.85
                else "split the engine with `training.vllm_tensor_parallel_size`, or put it on a server"
            )
            found.append(
                f"vLLM needs {needed / GIB:.1f} GiB for the weights alone and may take "
                f"{run.vllm_share * plan.device_memory / GIB:.1f}; {fix}"
            )
    if plan.peak > plan.usable:
        phase = max(plan.phases, key=lambda name: sum(plan.phases[name].values()))
        found.append(
            f"the {phase} needs {plan.peak / GIB:.1f} GiB of {plan.usable / GIB:.1f} usable on each device; "
            + _remedy(plan, phase)
        )
    return found


def _remedy(plan: Plan, phase: str) -> str:
    """What lowers the largest part that can be lowered."""
    run, parts = plan.run, plan.phases[phase]
    if phase == "update" and run.vllm == "colocate" and not run.vllm_sleeps:
        return "set `training.vllm_enable_sleep_mode=true`"
    if phase == "rollout" and run.vllm == "none":
        return "generate with vLLM (`training.use_vllm=true`), or fewer rows (`training.per_device_train_batch_size`)"
    states = sum(parts.get(name, 0.0) for name in ("weights", "optimizer", "gradients", "reference model"))
    if states > 0.5 * plan.usable:
        if run.zero < 3 and run.gpus > 1 and not run.adapter:
            return "split the states with ZeRO-3 (`training.deepspeed=deepspeed_configs/zero3.json`)"
        if not run.offload and not run.adapter:
            return "take more GPUs, an adapter, or `deepspeed_configs/zero3_offload.json`"
        return "take more GPUs or a smaller model"
    if not run.checkpointing:
        return "set `training.gradient_checkpointing=true`"
    return "halve `training.per_device_train_batch_size` and double `training.gradient_accumulation_steps`"
