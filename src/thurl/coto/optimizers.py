"""Optimizers that would see zeros where an adapter is off, and must not: AdamW moves a weight whose gradient is zero
(momentum, weight decay) and counts a step for it; a weight whose gradient is None it leaves alone.

Zeros appear in two places. DDP that does not look for unused parameters wants a gradient of every parameter, so that
`touch` gives it one. DeepSpeed (0.19) hands the optimizer one flat parameter per optimizer group, whose gradient has
zeros, or worse, where a parameter got none; `split_by_group` gives every CoTo group a flat parameter of its own.
`skip_off` then hides the gradients of what is off from the optimizer while it steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import torch

from thurl.errors import UsageError


__all__ = ["GROUP_KEY", "base_optimizer", "skip_off", "split_by_group", "touch"]

GROUP_KEY = "coto_group"
"""Key of an optimizer group that says which CoTo group its parameters belong to."""


class _Touch(torch.autograd.Function):
    """Identity whose backward pass also gives each of some parameters a gradient of zeros.

    Not `x + (0 * p).sum()`: that is NaN where a parameter is not finite.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.like = [(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)


def touch(x: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """`x`, in whose backward pass every one of `parameters` (leaves) gets a gradient of zeros, whatever its values.

    Args:
        x: any shape; needs a gradient already, else `x` itself is returned.
        parameters: at least one.
    """
    return _Touch.apply(x, *parameters) if x.requires_grad else x


def base_optimizer(optimizer: Any) -> torch.optim.Optimizer | None:
    """The PyTorch optimizer inside the wrappers of accelerate and DeepSpeed; None for None."""
    while getattr(optimizer, "optimizer", None) is not None:
        optimizer = optimizer.optimizer
    return optimizer


def split_by_group(optimizer: torch.optim.Optimizer, groups: Mapping[str, Sequence[torch.nn.Parameter]]) -> None:
    """Split the optimizer's parameter groups, so that the parameters of a CoTo group have groups of their own.

    Settings of a parameter group (learning rate, weight decay) are kept; `GROUP_KEY` names the CoTo group. Parameters
    of no CoTo group stay together. Call it before a learning-rate schedule or DeepSpeed looks at the optimizer.

    Raises:
        UsageError: the optimizer has state already.
    """
    if optimizer.state:
        raise UsageError("The optimizer has made a step; split its groups before training, or make a new optimizer.")
    key_of = {id(parameter): key for key, members in groups.items() for parameter in members}
    split = []
    for group in optimizer.param_groups:
        settings = {name: value for name, value in group.items() if name != "params"}
        parts: dict[str | None, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(key_of.get(id(parameter)), []).append(parameter)
        for key, members in parts.items():
            split.append({"params": members, **settings, **({} if key is None else {GROUP_KEY: key})})
    optimizer.param_groups[:] = split


def skip_off(
    optimizer: torch.optim.Optimizer,
    groups: Callable[[], Set[str]],
    parameters: Callable[[], Iterable[torch.Tensor]],
) -> Callable[[], None]:
    """Hide gradients from an optimizer while it steps: what is off is skipped, as if it had had no gradient.

    Args:
        optimizer: of PyTorch, not a wrapper.
        groups: keys of the CoTo groups that are off, asked at every step; all of a parameter group with `GROUP_KEY`.
        parameters: the same for parameters that the optimizer itself holds.

    Returns:
        A function that undoes it.
    """
    hidden: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        hidden.clear()
        off, off_ids = groups(), {id(parameter) for parameter in parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and (group.get(GROUP_KEY) in off or id(parameter) in off_ids):
                    hidden.append((parameter, parameter.grad))
                    parameter.grad = None

    def after(*_: Any) -> None:
        # DeepSpeed with offloading keeps a buffer there that it writes into later.
        for parameter, gradient in hidden:
            parameter.grad = gradient
        hidden.clear()

    handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo
