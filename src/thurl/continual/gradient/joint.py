"""Training on everything at once: the upper bound, which no continual learner may do."""

from __future__ import annotations

from thurl.continual.class_data import TaskData
from thurl.continual.gradient.base import GradientLearner
from thurl.continual.learner import State


__all__ = ["Joint"]


class Joint(GradientLearner):
    """At every task a new training, from the encoder it began with, on the samples of all classes seen so far.

    The options are those of `Finetune`; `epochs` are over all samples, so that a sequence costs as much as one of half
    its length squared. Nothing but the order of classes is taken from the state.
    """

    name = "joint"

    def learn(self, state: State, task: TaskData, seed: int) -> State:
        everything = task.data.task([*state["classes"].tolist(), *task.classes])
        return super().learn(self.init(task.data, seed), everything, seed)
