"""Steps of optimizers as pure functions of a gradient and a state.

An edit has a parameter for each weight its mask lets it change and for no other, so the mask lies on the update, not
only on the gradient, whatever the optimizer. None of them decays weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch


__all__ = ["OPTIMIZERS", "State", "Update", "adam", "rmsprop", "sgd"]

State: TypeAlias = tuple[torch.Tensor, ...]
# (gradient, state, step from 1, rate) -> what is added to the weights, next state; the first state is ().
Update: TypeAlias = Callable[[torch.Tensor, State, int, float], tuple[torch.Tensor, State]]


def rmsprop(gradient: torch.Tensor, state: State, step: int, rate: float) -> tuple[torch.Tensor, State]:
    """torch's RMSprop with its defaults: alpha 0.99, epsilon 1e-8, neither momentum nor centring.

    The first step is 10 * rate in each weight, since 1 / sqrt(1 - alpha) = 10.
    """
    square = state[0] if state else torch.zeros_like(gradient)
    square = 0.99 * square + 0.01 * gradient.square()
    return -rate * gradient / (square.sqrt() + 1e-8), (square,)


def adam(gradient: torch.Tensor, state: State, step: int, rate: float) -> tuple[torch.Tensor, State]:
    """torch's Adam with its defaults: betas 0.9 and 0.999, epsilon 1e-8."""
    first, second = state or (torch.zeros_like(gradient), torch.zeros_like(gradient))
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient.square()
    scale = (second / (1 - 0.999**step)).sqrt() + 1e-8
    return -rate * first / (1 - 0.9**step) / scale, (first, second)


def sgd(gradient: torch.Tensor, state: State, step: int, rate: float) -> tuple[torch.Tensor, State]:
    """Gradient descent, without momentum."""
    return -rate * gradient, ()


OPTIMIZERS: dict[str, Update] = {"rmsprop": rmsprop, "adam": adam, "sgd": sgd}
"""By name."""
