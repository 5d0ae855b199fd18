"""Seconds of each phase of a GRPO step, from operations and bytes. Arithmetic with assumed efficiencies.

A device reaches a share of its peak: `COMPUTE_SHARE` of its operations in matrix products of training, and
`BANDWIDTH_SHARE` of its memory bandwidth when it generates token by token. Both shares are assumptions that a user
with a measured step replaces (`calibrated`); nothing here was measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from thurl.errors import UsageError
from thurl.messages import nearest
from thurl.rl.plan.memory import VLLM_WORKING, RunShape
from thurl.rl.plan.shape import ModelShape


__all__ = ["DEVICES", "Device", "calibrated", "device_named", "step_seconds"]

COMPUTE_SHARE, BANDWIDTH_SHARE = 0.4, 0.6
GPUS_PER_MACHINE = 8
BETWEEN_MACHINES = 50e9
"""Bytes per second and GPU between machines: one 400 Gb/s adapter for each."""


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    Attributes:
        name: as on the command line.
        memory: GiB.
        flops: dense bfloat16 operations per second.
        bandwidth: bytes per second of its memory.
        link: bytes per second to the other GPUs of its machine, one direction.
        compute_share, bandwidth_share: what is reached of `flops` and `bandwidth`.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    compute_share: float = COMPUTE_SHARE
    bandwidth_share: float = BANDWIDTH_SHARE


# Data sheets of the SXM versions (nvidia.com): dense bfloat16, one direction of NVLink.
DEVICES = {
    device.name: device
    for device in (
        Device("a100", 80.0, 312e12, 2.04e12, 300e9),
        Device("h100", 80.0, 989e12, 3.35e12, 450e9),
        Device("h200", 140.0, 989e12, 4.8e12, 450e9),
    )
}


def device_named(name: str) -> Device:
    """One of `DEVICES`.

    Raises:
        UsageError: an unknown name.
    """
    if name not in DEVICES:
        raise UsageError(f"`--device {name}` is not one of {', '.join(DEVICES)}{nearest(name, DEVICES)}")
    return DEVICES[name]


def calibrated(device: Device, model: ModelShape, run: RunShape, update: float) -> Device:
    """The device with the compute share that a measured update shows.

    Args:
        update: measured seconds of the update of one generation batch.
    """
    predicted = step_seconds(model, run, device)["update"]
    return replace(device, compute_share=device.compute_share * predicted / update)


def step_seconds(model: ModelShape, run: RunShape, device: Device, answer: float | None = None) -> dict[str, float]:
    """Seconds of each phase, for one generation batch on every device at the same time.

    Args:
        answer: mean tokens of a completion; the longest allowed when None.

    Returns:
        `rollout`, `old log-probabilities` (with vLLM), `reference`, `update`, `weight sync`; absent where there is
        none.
    """
    answer = run.answer if answer is None else answer
    rate = device.flops * device.compute_share
    weights = model.parameters * run.compute
    across = run.gpus > GPUS_PER_MACHINE
    gather = 0.0
    if run.zero == 3 and run.gpus > 1:
        gather = weights * (1 - 1 / run.gpus) / (BETWEEN_MACHINES if across else device.link)
    seconds = {"rollout": _rollout(model, run, device, answer, gather)}
    language, vision = _forward(model, run, answer)
    once = run.micro_batches * max((language + vision) / rate, gather)
    if run.vllm != "none":
        seconds["old log-probabilities"] = once
    if run.reference:
        seconds["reference"] = once
    again = 1.0 if run.checkpointing else 0.0
    backward = 1.0 if run.adapter else 2.0  # the weights' own gradients are small with an adapter
    vision_backward = 2.0 + again if run.train_vision and not run.adapter else 0.0
    operations = language * (1 + backward + again) + vision * (1 + vision_backward)
    # Weights are gathered forth and back, gradients sent once.
    seconds["update"] = run.micro_batches * max(operations / rate, 3 * gather)
    if run.vllm != "none":
        seconds["weight sync"] = weights / (BETWEEN_MACHINES if run.vllm == "server" else device.bandwidth) + gather
    return seconds


def _forward(model: ModelShape, run: RunShape, answer: float) -> tuple[float, float]:
    """Operations of language model and vision tower in a forward pass of one micro-batch."""
    if run.shared:
        rows, length = run.images, run.prompt - 1 + run.completions * (1 + answer)
    else:
        rows, length = run.rows, run.prompt + answer
    positions = run.rows * answer if run.on_gpu else rows * (length - 1)
    return model.language_flops(rows, length, positions), model.vision_flops(run.pictures, run.patches)


def _rollout(model: ModelShape, run: RunShape, device: Device, answer: float, gather: float) -> float:
    """Prompts at once, then token by token: each token reads the weights and the cache, or is bound by arithmetic."""
    rows, images = run.rows * run.micro_batches, run.images * run.micro_batches
    prompts = images if run.vllm != "none" else rows  # vLLM caches the prefix that completions share
    prefill = model.language_flops(prompts, run.prompt, prompts) + model.vision_flops(prompts, run.patches)
    per_row = (run.prompt + answer / 2) * 2 * model.layers * model.keys * run.compute
    split = run.tensor_parallel if run.vllm != "none" else 1
    weights = model.language_parameters * run.compute / split
    waves = 1
    if run.vllm == "colocate":
        room = run.vllm_share * device.memory * 2**30 - model.parameters * run.compute / split - VLLM_WORKING
        waves = math.ceil(rows * split * run.length * per_row / (run.prompt + answer / 2) / split / max(room, 1.0))
    at_once = rows / waves
    operations = 2 * model.language_parameters * at_once / (device.flops * device.compute_share)
    reads = (weights + at_once * per_row) / (device.bandwidth * device.bandwidth_share)
    start = prefill / (device.flops * device.compute_share)
    return start + waves * answer * max(operations, reads) + (gather if run.vllm == "none" else 0.0)
