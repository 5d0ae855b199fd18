"""Settings of the bi-level step: plain data that is checked without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from thurl.errors import UsageError


__all__ = ["BilevelConfig", "Method", "Positive", "Virtual"]

Method = Literal["two_forward", "autograd", "exact"]
Positive = Literal["clamp", "none", "softplus"]
Virtual = Literal["sgd", "adam"]


@dataclass(frozen=True)
class BilevelConfig:
    """How the weights of the tasks are learned.

    Args:
        tasks: names of the loss terms whose weights are learned, in this order.
        primary: those whose unweighted sum on the outer batch is minimised (both official commands: one).
        init: first weight, one for all or by name (official: 1.0).
        lr: of the outer Adam (BLADES 3e-4, SJEDD 1e-3). A weight moves by at most about this much per update.
        betas: of the outer Adam.
        adam_eps: of the outer Adam.
        method: how the outer gradient is computed. "two_forward": two forward passes without a graph, the same number
            as the official finite difference; "autograd": the official way to it, two forward and backward passes;
            "exact": second derivatives, no finite difference.
        delayed: the weights learned in a step act from the next one on. One forward and backward pass of the training
            batch less; False is the official order.
        virtual: the step that looks ahead. "sgd": plain, or with the optimizer's own momentum if it is SGD (official,
            also when the optimizer is AdamW); "adam": scaled by the second moments of Adam's state.
        positive: "clamp": a weight stops at 0 (a warning says so); "none": it may turn negative, which maximises that
            task's loss (official); "softplus": always above 0.
        fd_radius: length of the finite difference in parameter space (official: 0.01).
        fd_eps: added to the norm that divides it (BLADES 0, SJEDD 1e-6).
        scale_by_lr: multiply the outer gradient by the learning rate (official). Adam does not depend on the scale
            until the gradient comes near `adam_eps`; with it a learning rate of 1e-6 stops the weights, without it
            nothing else changes.
        every: optimizer steps from one update to the next.
        warmup: optimizer steps before the first update.

    Raises:
        UsageError: with all values that break a rule.
    """

    tasks: tuple[str, ...]
    primary: tuple[str, ...]
    init: float | Mapping[str, float] = 1.0
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    method: Method = "two_forward"
    delayed: bool = False
    virtual: Virtual = "sgd"
    positive: Positive = "clamp"
    fd_radius: float = 0.01
    fd_eps: float = 0.0
    scale_by_lr: bool = False
    every: int = 1
    warmup: int = 0
    _starts: tuple[float, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        for name in ("tasks", "primary", "betas"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        problems = []
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            problems.append(f"`tasks` is {list(self.tasks)}; it needs at least one name, each once")
        if not self.primary or not set(self.primary) <= set(self.tasks):
            problems.append(f"`primary` is {list(self.primary)}; it needs at least one of {list(self.tasks)}")
        starts: dict[str, float] = dict.fromkeys(self.tasks, 1.0)
        if isinstance(self.init, Mapping):
            problems += [f"`init` has {name!r}, which is no task" for name in self.init if name not in starts]
            starts.update({name: value for name, value in self.init.items() if name in starts})
        else:
            starts = dict.fromkeys(self.tasks, self.init)
        lowest = "> 0" if self.positive == "softplus" else "a number" if self.positive == "none" else ">= 0"
        for name, value in starts.items():
            low = value <= 0 if self.positive == "softplus" else value < 0 and self.positive == "clamp"
            if not math.isfinite(value) or low:
                problems.append(f"`init` of {name!r} is {value}; with `positive: {self.positive}` it must be {lowest}")
        for name, allowed in (("method", Method), ("positive", Positive), ("virtual", Virtual)):
            if getattr(self, name) not in get_args(allowed):
                problems.append(f"`{name}` is {getattr(self, name)!r}; it is one of {', '.join(get_args(allowed))}")
        for name in ("lr", "adam_eps", "fd_radius"):
            if not getattr(self, name) > 0:
                problems.append(f"`{name}` is {getattr(self, name)}; it must be > 0")
        if not self.fd_eps >= 0:
            problems.append(f"`fd_eps` is {self.fd_eps}; it must be >= 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"`betas` is {list(self.betas)}; it needs two numbers in [0, 1)")
        if self.every < 1 or self.warmup < 0:
            problems.append(f"`every` is {self.every} and `warmup` {self.warmup}; at least 1 and 0")
        if problems:
            raise UsageError([f"bi-level: {problem}" for problem in problems])
        object.__setattr__(self, "_starts", tuple(float(starts[name]) for name in self.tasks))

    @property
    def starts(self) -> tuple[float, ...]:
        """First weight of each task, in the order of `tasks`."""
        return self._starts

    def plain(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {
            "tasks": list(self.tasks),
            "primary": list(self.primary),
            "init": list(self.starts),
            "betas": list(self.betas),
            **{
                name: getattr(self, name)
                for name in ("lr", "adam_eps", "method", "delayed", "virtual", "positive", "fd_radius", "fd_eps")
            },
            **{name: getattr(self, name) for name in ("scale_by_lr", "every", "warmup")},
        }
