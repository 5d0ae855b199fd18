"""Activation probability p(t) of CoTo. Pure functions, no torch.

Paper: "Come Together, But Not Right Now", arXiv 2506.05713, Figure 1: p rises over the first `ratio` of training, then
stays at its final value. Differences: the end of the rise is rounded before the ceiling, because ceil(0.07 * 100) is 8
in floating point; the formulas of "sine" and "exponential" are ours, the paper only names the shapes.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from thurl.errors import UsageError


__all__ = ["Schedule", "activation_probability", "generation_period", "mean_activation_probability", "stage1_end"]

Schedule = Literal["linear", "sine", "exponential", "constant"]


def stage1_end(total_steps: int, ratio: float) -> int:
    """First step (0-based) at the final probability: ceil(ratio * total_steps).

    Args:
        total_steps: optimizer steps T of the whole run, at least 1.
        ratio: share of training in which p rises, in [0, 1].
    """
    return math.ceil(round(ratio * total_steps, 9))


def activation_probability(
    step: int,
    total_steps: int,
    *,
    initial_p: float = 0.1,
    final_p: float = 1.0,
    ratio: float = 0.75,
    schedule: Schedule = "linear",
) -> float:
    """p(t) = p0 + (p1 - p0) f(t / end) for t < end, else p1.

    f(x) is x (linear), sin(pi x / 2) (sine, faster), (e^x - 1) / (e - 1) (exponential, slower) or 0 (constant: p0
    until `end`; with `ratio=1` the constant layer drop that the paper compares with).

    Args:
        step: 0-based index of the optimizer step about to run; from `total_steps` on, p1.
        total_steps: T, at least 1.
        initial_p, final_p: p0 and p1, in [0, 1].
        ratio: see `stage1_end`; 0 gives p1 from the first step.
        schedule: shape of the rise.

    Returns:
        Probability in [0, 1].

    Raises:
        UsageError: a negative step, `total_steps` below 1, or an unknown schedule.
    """
    if step < 0 or total_steps < 1:
        raise UsageError(f"Step {step} of {total_steps}: steps count from 0 and there is at least one.")
    if schedule not in get_args(Schedule):
        raise UsageError(f"`schedule` is {schedule!r}; it is one of {', '.join(get_args(Schedule))}.")
    end = stage1_end(total_steps, ratio)
    if step >= end:
        return _clamp(final_p)
    share = step / end
    if schedule == "linear":
        rise = share
    elif schedule == "sine":
        rise = math.sin(math.pi * share / 2)
    elif schedule == "exponential":
        rise = math.expm1(share) / math.expm1(1.0)
    else:
        rise = 0.0
    return _clamp(initial_p + (final_p - initial_p) * rise)


def mean_activation_probability(
    total_steps: int,
    *,
    initial_p: float = 0.1,
    final_p: float = 1.0,
    ratio: float = 0.75,
    schedule: Schedule = "linear",
) -> float:
    """Mean of p over all steps; an adapter gets about this share of the updates.

    For "linear" it tends to ratio (p0 + p1) / 2 + (1 - ratio) p1 as T grows: 0.6625 with the defaults.
    """
    values = (
        activation_probability(step, total_steps, initial_p=initial_p, final_p=final_p, ratio=ratio, schedule=schedule)
        for step in range(total_steps)
    )
    return math.fsum(values) / total_steps


def generation_period(steps_per_generation: int, num_iterations: int, accumulation: int) -> int | None:
    """Optimizer steps that one batch of completions is used for; None if it ends in the middle of one."""
    micro_batches = steps_per_generation * num_iterations
    if micro_batches % accumulation == 0:
        return micro_batches // accumulation
    return 1 if accumulation % micro_batches == 0 else None


def _clamp(p: float) -> float:
    return min(1.0, max(0.0, p))
