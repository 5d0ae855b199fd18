"""The mathematics of the bi-level step as pure functions on lists of tensors, one entry per trained parameter.

Inner problem: `theta' = theta - r (m + grad sum_i lambda_i L_i(train; theta) + w theta)`, one virtual step with the
optimizer's learning rate `r`, weight decay `w` and momentum `m`. Outer problem: minimise `F(theta')`, the loss of the
primary tasks on the outer batch. By the chain rule

    dF/dlambda_i = -<r grad L_i(train; theta), v>,   v = grad F(theta')                                    (1)

and, since `dL/dlambda_i = L_i`, the inner product is a difference of two losses along `d = (r / alpha) v`:

    h_i = (L_i(theta + eps d) - L_i(theta - eps d)) / (2 eps) ~ <grad L_i(theta), d>,  dF/dlambda_i = -alpha h_i  (2)

with `eps = radius / (||d|| + fd_eps)`. `alpha` is the largest learning rate of all parameter groups; with a single
group `d = v`, the formula of the official code of BLADES (arXiv 2507.22824) and SJEDD (arXiv 2408.16305), which is
that of Auto-Lambda (arXiv 2202.03091). With Adam's preconditioner in the virtual step `r` includes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


__all__ = [
    "AdamState",
    "StepRule",
    "adam_update",
    "difference_radius",
    "direction",
    "finite_difference",
    "from_raw",
    "global_norm",
    "raw_gradient",
    "shifted",
    "step_rules",
    "to_raw",
    "virtual_parameters",
]

Tensors = list[torch.Tensor]
MaybeTensors = Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class StepRule:
    """How the optimizer would move one parameter.

    Args:
        lr: learning rate, >= 0.
        weight_decay: >= 0.
        momentum: momentum times its buffer, of the parameter's shape; None: none.
        scale: Adam's `1 / (sqrt(v_hat) + eps)`, of the parameter's shape; None: 1.
    """

    lr: float
    weight_decay: float = 0.0
    momentum: torch.Tensor | None = None
    scale: torch.Tensor | None = None


def step_rules(optimizer: Any, parameters: Sequence[torch.Tensor], virtual: str = "sgd") -> list[StepRule]:
    """Read the rules out of an optimizer: `lr`, `weight_decay`, SGD's momentum and, for "adam", its second moments.

    A parameter the optimizer does not have is not moved. Before Adam's first step there are no moments: plain step.
    """
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    rules = []
    for parameter in parameters:
        group = groups.get(id(parameter))
        if group is None:
            rules.append(StepRule(0.0))
            continue
        state = optimizer.state.get(parameter, {})
        momentum = scale = None
        if group.get("momentum") and state.get("momentum_buffer") is not None:
            momentum = group["momentum"] * state["momentum_buffer"]
        if virtual == "adam" and "exp_avg_sq" in state:
            corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            scale = 1 / (corrected.sqrt() + group["eps"])
        rules.append(StepRule(float(group["lr"]), float(group.get("weight_decay", 0.0)), momentum, scale))
    return rules


def virtual_parameters(parameters: Tensors, gradients: MaybeTensors, rules: Sequence[StepRule]) -> Tensors:
    """`theta' = theta - lr (scale (momentum + gradient) + weight_decay theta)`; a gradient of None is zero."""
    moved = []
    for value, gradient, rule in zip(parameters, gradients, rules, strict=True):
        new = value * (1 - rule.lr * rule.weight_decay)
        for part in (gradient, rule.momentum):
            if part is not None and rule.scale is None:
                new.add_(part, alpha=-rule.lr)
            elif part is not None:
                new.addcmul_(rule.scale, part, value=-rule.lr)
        moved.append(new)
    return moved


def direction(outer: MaybeTensors, parameters: Tensors, rules: Sequence[StepRule]) -> tuple[Tensors, float]:
    """`d = (lr / alpha) scale v` of equation (2), and `alpha`.

    Args:
        outer: gradient of the outer loss at the virtual parameters; None is zero.
        parameters: for the shapes.
        rules: of the virtual step.
    """
    alpha = max((rule.lr for rule in rules), default=0.0)
    result = []
    for gradient, parameter, rule in zip(outer, parameters, rules, strict=True):
        if gradient is None:
            result.append(torch.zeros_like(parameter))
            continue
        # At the very start of a warm-up and the end of a schedule all rates are 0, and the direction still exists.
        share = rule.lr / alpha if alpha > 0 else 1.0
        gradient = gradient if rule.scale is None else rule.scale * gradient
        result.append(gradient if share == 1.0 else share * gradient)
    return result, alpha


def global_norm(tensors: Tensors) -> float:
    """Euclidean norm over all entries of all tensors."""
    if not tensors:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])))


def difference_radius(norm: float, radius: float = 0.01, fd_eps: float = 0.0) -> float:
    """`eps` of equation (2): `radius / (norm + fd_eps)`; `norm` > 0."""
    return radius / (norm + fd_eps)


def shifted(parameters: Tensors, along: Tensors, by: float) -> Tensors:
    """`theta + by * d`."""
    return [torch.add(value, step, alpha=by) for value, step in zip(parameters, along, strict=True)]


def finite_difference(plus: torch.Tensor, minus: torch.Tensor, eps: float) -> torch.Tensor:
    """`h` of equation (2), (T,), from the losses (T,) on both sides, in float64."""
    return (plus.double() - minus.double()) / (2 * eps)


# -- weights and their optimizer -------------------------------------------------------------------------------------


def from_raw(raw: torch.Tensor, positive: str) -> torch.Tensor:
    """Weights from the numbers that are optimised: `softplus(raw)`, or `raw` itself."""
    return torch.nn.functional.softplus(raw) if positive == "softplus" else raw.clone()


def to_raw(weights: torch.Tensor, positive: str) -> torch.Tensor:
    """The inverse of `from_raw`; weights > 0 for "softplus"."""
    return weights + torch.log(-torch.expm1(-weights)) if positive == "softplus" else weights.clone()


def raw_gradient(gradient: torch.Tensor, raw: torch.Tensor, positive: str) -> torch.Tensor:
    """Chain rule from the weights to `raw`."""
    return gradient * torch.sigmoid(raw) if positive == "softplus" else gradient


@dataclass(frozen=True)
class AdamState:
    """First and second moments and the number of updates, each (T,): a task that is absent has fewer updates."""

    mean: torch.Tensor
    square: torch.Tensor
    updates: torch.Tensor

    @classmethod
    def zeros(cls, size: int) -> AdamState:
        return cls(*(torch.zeros(size, dtype=torch.float64) for _ in range(3)))


def adam_update(
    raw: torch.Tensor,
    gradient: torch.Tensor,
    state: AdamState,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    present: torch.Tensor,
) -> tuple[torch.Tensor, AdamState]:
    """One step of Adam (Kingma and Ba, arXiv 1412.6980) on each entry by itself.

    Entries that are not `present` (T,) bool keep value, moments and count: an absent task earns and loses nothing,
    not even by momentum. Where all are present it is `torch.optim.Adam`.
    """
    mean = betas[0] * state.mean + (1 - betas[0]) * gradient
    square = betas[1] * state.square + (1 - betas[1]) * gradient**2
    updates = state.updates + 1
    step = (mean / (1 - betas[0] ** updates)) / ((square / (1 - betas[1] ** updates)).sqrt() + eps)
    keep = [
        torch.where(present, new, old)
        for new, old in ((raw - lr * step, raw), (mean, state.mean), (square, state.square), (updates, state.updates))
    ]
    return keep[0], AdamState(*keep[1:])
