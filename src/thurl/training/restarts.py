"""Cosine schedule with restarts of different height and an end above zero; pure arithmetic.

The schedule of the released A-FINE code (arXiv 2503.11221): periods of 10,000 steps, restart weights 1, .5, .5, .5,
lowest rate 1e-8. `transformers` has cosine restarts of equal height that end at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


__all__ = ["cosine_with_restarts", "restart_multiplier"]


def cosine_with_restarts(
    step: int, base_lr: float, periods: Sequence[int], restart_weights: Sequence[float], eta_min: float = 0.0
) -> float:
    """Learning rate after `step` completed steps.

    `eta_min + w (base - eta_min) (1 + cos(pi (step - start) / period)) / 2` inside a period of weight `w`. A step at a
    boundary belongs to the earlier period, so the rate is `eta_min` there; after the last period it stays.

    Args:
        step: >= 0.
        base_lr: rate at the start of a period of weight 1, >= `eta_min`.
        periods: length of each period in steps, > 0.
        restart_weights: factor of each period's height.
        eta_min: rate at the end of each period.

    Raises:
        ValueError: no period, lengths that differ, values out of range.
    """
    _check(periods, restart_weights)
    if step < 0 or eta_min < 0 or base_lr < eta_min:
        raise ValueError(f"step {step}, eta_min {eta_min}, base_lr {base_lr}: need step >= 0 and base >= eta_min >= 0")
    start = 0
    for period, weight in zip(periods, restart_weights, strict=True):
        if step <= start + period:
            shape = 0.5 * (1 + math.cos(math.pi * (step - start) / period))
            return eta_min + weight * (base_lr - eta_min) * shape
        start += period
    return eta_min


def restart_multiplier(
    base_lr: float, periods: Sequence[int], restart_weights: Sequence[float], eta_min: float = 0.0
) -> Callable[[int], float]:
    """The same as a factor of `base_lr`, for `torch.optim.lr_scheduler.LambdaLR`."""
    cosine_with_restarts(0, base_lr, periods, restart_weights, eta_min)

    def factor(step: int) -> float:
        return cosine_with_restarts(step, base_lr, periods, restart_weights, eta_min) / base_lr

    return factor


def _check(periods: Sequence[int], restart_weights: Sequence[float]) -> None:
    if not periods or len(periods) != len(restart_weights):
        raise ValueError(f"{len(periods)} periods and {len(restart_weights)} weights: one weight per period is needed")
    if min(periods) < 1 or min(restart_weights) < 0:
        raise ValueError(f"periods {list(periods)} must be 1 or more, weights {list(restart_weights)} 0 or more")
