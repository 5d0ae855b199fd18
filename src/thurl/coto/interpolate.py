"""Lines between two adapters, and the loss along them (linear mode connectivity).

CoTo (arXiv 2506.05713) compares adapters by the loss on the line between two of them. There are two lines:

- factor space: `A = (1 - lam) A1 + lam A2`, `B` likewise. The update then holds the cross terms `B1 A2` and `B2 A1`.
  This is what linear fusion means in the paper.
- delta space: `dW = (1 - lam) dW1 + lam dW2`, exactly. It has rank r1 + r2 and is stored as such, by concatenation.

PEFT's `add_weighted_adapter(combination_type="linear")` is neither: it multiplies both factors by the square root of
weight times scaling, which at weights 1/2 gives twice the factor-space midpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from thurl.coto.adapters import Adapter, Factors, check_alike, extra_mean, retarget, wide
from thurl.errors import UsageError


__all__ = [
    "LmcCurve",
    "Space",
    "barrier",
    "combine_deltas",
    "combine_factors",
    "concatenated",
    "interpolate",
    "lmc_curve",
]

Space = Literal["factor", "delta"]


def combine_factors(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Weighted sum of the factors, and of DoRA's magnitudes: `A = sum w_i A_i`, `B = sum w_i B_i`.

    Raises:
        UsageError: different kinds, modules, ranks or scalings.
    """
    _check_weights(adapters, weights)
    check_alike(adapters, factors=True)
    first = adapters[0]
    modules = {}
    for path, factors in first.modules.items():
        parts = [adapter.modules[path] for adapter in adapters]
        magnitudes = [part.magnitude for part in parts if part.magnitude is not None]
        modules[path] = replace(
            factors,
            a=_weighted([part.a for part in parts], weights),
            b=_weighted([part.b for part in parts], weights),
            magnitude=_weighted(magnitudes, weights) if magnitudes else None,
        )
    return replace(retarget(first, modules), extra=extra_mean(adapters, weights))


def combine_deltas(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Weighted sum of the updates, exact: `A = [A_1; A_2; ...]`, `B = [w_1 s_1 B_1, w_2 s_2 B_2, ...]`, scaling 1.

    Ranks, scalings and adapted modules may differ; a module's rank becomes the sum over the adapters that have it.

    Raises:
        UsageError: different kinds or layer shapes; DoRA, whose update is not of low rank.
    """
    _check_weights(adapters, weights)
    check_alike(adapters, factors=False)
    first = adapters[0]
    if first.kind == "dora":
        raise UsageError(
            f"{first.source}: the weights a DoRA layer computes with are a row-wise normalised sum, and their change "
            "is not of low rank; use the factor space"
        )
    paths = {path: None for adapter in adapters for path in adapter.modules}
    modules = {}
    for path in paths:
        parts = [
            (adapter.modules[path], w) for adapter, w in zip(adapters, weights, strict=True) if path in adapter.modules
        ]
        modules[path] = concatenated([part for part, _ in parts], [weight for _, weight in parts])
    return replace(retarget(first, modules, unit_scaling=True), extra=extra_mean(adapters, weights))


def concatenated(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Factors of `sum w_i s_i B_i A_i` (scaling 1, rank the sum of the ranks) of one module."""
    a = torch.cat([wide(part.a) for part in parts])
    b = torch.cat([weight * part.scaling * wide(part.b) for part, weight in zip(parts, weights, strict=True)], dim=1)
    return replace(parts[0], a=a, b=b, scaling=1.0)


def interpolate(a: Adapter, b: Adapter, lam: float, space: Space = "factor") -> Adapter:
    """The adapter at `lam` on the line from `a` (0) to `b` (1); outside [0, 1] the line goes on.

    Args:
        a, b: adapters of one kind for one base model.
        lam: position, a finite number.
        space: `factor` (equal ranks and scalings) or `delta` (any ranks; the result has the sum of them).

    Raises:
        UsageError: adapters that do not fit, or a `lam` that is no finite number.
    """
    if not math.isfinite(lam):
        raise UsageError(f"lam={lam}: a finite number is needed, 0 gives the first adapter and 1 the second")
    if space not in ("factor", "delta"):
        raise UsageError(f"space={space!r}: choose factor or delta")
    combine = combine_factors if space == "factor" else combine_deltas
    return combine([a, b], [1.0 - lam, lam])


@dataclass(frozen=True)
class LmcCurve:
    """Loss along a line.

    Attributes:
        lambdas: positions, ascending, from 0 to 1.
        losses: loss at each.
        metrics: further values by name, one per position.
        barrier: highest rise of the loss over the straight line between the end points (0 if there is none).
        at: position of the barrier.
        space: `factor` or `delta`.
    """

    lambdas: tuple[float, ...]
    losses: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    barrier: float
    at: float
    space: Space


def barrier(lambdas: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """`max over lam of L(lam) - ((1 - lam) L(0) + lam L(1))` and where it lies; NaN if a loss is not finite.

    Args:
        lambdas: ascending, the first 0, the last 1.
        losses: one per position.
    """
    if not all(math.isfinite(loss) for loss in losses):
        return math.nan, math.nan
    rises = [loss - ((1 - lam) * losses[0] + lam * losses[-1]) for lam, loss in zip(lambdas, losses, strict=True)]
    # Exactly 0 at the ends; rounding of the straight line is no barrier.
    rises[0] = rises[-1] = 0.0
    best = max(range(len(rises)), key=rises.__getitem__)
    return rises[best], lambdas[best]


def lmc_curve(
    a: Adapter,
    b: Adapter,
    evaluate: Callable[[Adapter], float | Mapping[str, float]],
    *,
    lambdas: Sequence[float] | None = None,
    space: Space = "factor",
) -> LmcCurve:
    """Evaluate the line between two adapters and measure its barrier.

    Args:
        a, b: end points.
        evaluate: loss of an adapter (lower is better), or a mapping with `loss` and further values such as accuracy.
        lambdas: positions; they must run from 0 to 1. Default: 0, 0.1, ... 1.
        space: see :func:`interpolate`.

    Raises:
        UsageError: positions that do not ascend from 0 to 1.
    """
    grid = [i / 10 for i in range(11)] if lambdas is None else [float(lam) for lam in lambdas]
    if len(grid) < 2 or grid[0] != 0 or grid[-1] != 1 or sorted(set(grid)) != grid:
        raise UsageError(
            f"lambdas={grid}: the positions must ascend from 0 to 1, the barrier is measured against the ends"
        )
    columns: dict[str, list[float]] = {}
    for lam in grid:
        value = evaluate(interpolate(a, b, lam, space))
        for name, number in (value if isinstance(value, Mapping) else {"loss": value}).items():
            columns.setdefault(name, []).append(float(number))
    losses = columns.pop("loss")
    height, at = barrier(grid, losses)
    metrics = {name: tuple(numbers) for name, numbers in columns.items()}
    return LmcCurve(tuple(grid), tuple(losses), metrics, height, at, space)


def _weighted(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    return sum((weight * wide(tensor) for tensor, weight in zip(tensors, weights, strict=True)), start=torch.zeros(()))


def _check_weights(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if not adapters or len(adapters) != len(weights) or not all(math.isfinite(weight) for weight in weights):
        raise UsageError(f"weights {list(weights)} for {len(adapters)} adapters: one finite number each is needed")
