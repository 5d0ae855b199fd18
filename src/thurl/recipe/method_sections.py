"""Sections that the methods on `thurl.training.method_trainer` share: the optimizer, and learned task weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from thurl.messages import nearest
from thurl.recipe.fields import Problem
from thurl.recipe.sections import Section
from thurl.training.bilevel.config import BilevelConfig


__all__ = ["OptimizerSection", "TaskWeightsSection", "absent_pictures"]


class OptimizerSection(Section):
    """How the weights are updated; rate, betas, eps and weight decay are those of `training`."""

    kind: Literal["training", "adam", "adamw"] = "training"
    """`training`: what `training.optim` says, without decay on biases. `adam` and `adamw`: torch's, all parameters in
    one group as in the official code; the decay of `adam` is added to the gradient."""


class TaskWeightsSection(Section):
    """Learned task weights: settings of `thurl.training.bilevel.BilevelConfig`. Without it all weights are 1."""

    tasks: ClassVar[tuple[str, ...]] = ()
    """Of the method."""

    primary: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    init: float | dict[str, float] = 1.0
    lr: float = Field(3e-4, gt=0)
    method: Literal["two_forward", "autograd", "exact"] = "two_forward"
    delayed: bool = False
    virtual: Literal["sgd", "adam"] = "sgd"
    positive: Literal["clamp", "none", "softplus"] = "clamp"
    fd_radius: float = Field(0.01, gt=0)
    fd_eps: float = Field(0.0, ge=0)
    scale_by_lr: bool = False
    every: int = Field(1, ge=1)
    warmup: int = Field(0, ge=0)
    outer: Literal["held_out", "train"] = "held_out"
    """Where the outer batches come from: a part of their own, or what is trained on (official)."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        for place, name in enumerate(self.primary):
            if name not in self.tasks:
                message = f"{name!r} is none of {', '.join(self.tasks)}{nearest(name, self.tasks)}"
                found.append((("primary", place), message))
        starts = self.init if isinstance(self.init, dict) else {"": self.init}
        for name, value in starts.items():
            where = ("init", name) if name else ("init",)
            if name and name not in self.tasks:
                found.append((where, f"is none of {', '.join(self.tasks)}{nearest(name, self.tasks)}"))
            if value < 0 and self.positive == "clamp" or value <= 0 and self.positive == "softplus":
                found.append((where, f"is {value}, which `positive: {self.positive}` cannot hold"))
        return found

    def config(self) -> BilevelConfig:
        """Settings for `thurl.training.method_trainer.MethodTrainer`."""
        return BilevelConfig(tasks=self.tasks, **self.model_dump(exclude={"outer"}))


def absent_pictures(where: str, pictures: Sequence[str], obtain: str | None) -> list[str]:
    """What a recipe lacks before it starts: a line if pictures of the list `where` are no files, else nothing."""
    absent = [picture for picture in pictures if not os.path.isfile(picture)]
    if not absent:
        return []
    from_where = f"; get it from {obtain}" if obtain else ""
    return [f"data: {where}: {len(absent)} of {len(pictures)} pictures are not there, first {absent[0]}{from_where}"]
