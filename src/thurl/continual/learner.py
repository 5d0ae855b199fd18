"""What a continual learner is: a few pure functions of a state that is nothing but named tensors.

A learner never changes the state it is given. So a tree search may train on from any state as often as it likes, a
state is stored by writing its tensors down, and another process gets the same numbers. A learner of one's own is a
class with the members of `Learner`; `thurl.continual.closed_form` has three, none longer than a page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from thurl.continual.class_data import ClassData, TaskData
from thurl.errors import ThurlError


__all__ = [
    "Learner",
    "LearnerError",
    "State",
    "current_features",
    "learn_task",
    "start",
    "state_hash",
    "task_accuracies",
]

State = Mapping[str, torch.Tensor]
"""Named tensors on the CPU, all that is needed to go on. `classes`, int64 [n_seen], is always there: the classes
seen, in the order of arrival. What the pre-trained encoder holds already is not repeated."""


class LearnerError(ThurlError):
    """A learner raised, changed the state it was given, or returned something undefined; says which and where."""


class Learner(Protocol):
    """A class-incremental learner. The number of classes is never known in advance."""

    name: str
    frozen_encoder: bool
    """The features never change: those of `ClassData.features` serve, and prototypes are computed once."""

    def config(self) -> dict[str, Any]:
        """Everything that decides what is learned, as JSON values; two learners with equal ones are the same."""
        ...

    def init(self, data: ClassData, seed: int) -> State:
        """The state before the first task, with an empty `classes`."""
        ...

    def learn(self, state: State, task: TaskData, seed: int) -> State:
        """The state after the task's training split. Deterministic; `state` must stay as it is."""
        ...

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        """Float [B, n_seen] for `rows`, int64 [B]; a column per class of `state["classes"]`, no task label."""
        ...

    def features(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        """Float [B, D] of the learner's encoder as it is now."""
        ...


def start(learner: Learner, data: ClassData, seed: int) -> State:
    """`learner.init`, checked.

    Raises:
        LearnerError: it raised, or its state is not usable.
    """
    try:
        state = learner.init(data, seed)
    except ThurlError:
        raise
    except Exception as error:
        raise LearnerError(f"learner {learner.name} raised {type(error).__name__} at its start: {error}") from error
    _check_state(learner, state, (), "at its start")
    return state


def learn_task(learner: Learner, state: State, task: TaskData, seed: int) -> State:
    """`learner.learn`, checked: no exception without a name, no undefined number, no change of `state`.

    Raises:
        LearnerError: the learner raised, its new state has a NaN or infinity or other classes than it should have, or
            the old state was changed.
    """
    before = [int(index) for index in state["classes"]]
    where = f"learning task {', '.join(task.names)} after {len(before)} classes"
    held = state_hash(state)
    try:
        new = learner.learn(state, task, seed)
    except ThurlError:
        raise
    except Exception as error:
        raise LearnerError(f"learner {learner.name} raised {type(error).__name__} {where}: {error}") from error
    if state_hash(state) != held:
        raise LearnerError(
            f"learner {learner.name} changed the state it was given {where}; `learn` must return a new one, since a "
            "search trains on from the old one"
        )
    _check_state(learner, new, (*before, *task.classes), where)
    return new


def task_accuracies(
    learner: Learner, state: State, data: ClassData, tasks: Sequence[Sequence[int]], split: str
) -> list[float]:
    """Share of each task's `split` that is told apart from all classes seen, one number in [0, 1] per task.

    Equal logits go to the class that came first.

    Raises:
        LearnerError: the learner raised, or a logit is undefined: never a plausible accuracy.
        DataError: a task without samples in `split`.
    """
    parts = [data.rows(task, split) for task in tasks]
    rows = torch.cat(parts)
    where = f"predicting {len(rows)} samples after {len(tasks)} tasks"
    try:
        with torch.no_grad():
            logits = learner.logits(state, data, rows)
    except ThurlError:
        raise
    except Exception as error:
        raise LearnerError(f"learner {learner.name} raised {type(error).__name__} {where}: {error}") from error
    wanted = (len(rows), len(state["classes"]))
    if tuple(logits.shape) != wanted:
        raise LearnerError(f"learner {learner.name} gave logits of shape {tuple(logits.shape)} {where}, not {wanted}")
    scores = logits.detach().double().numpy()
    if not np.isfinite(scores).all():
        raise LearnerError(f"learner {learner.name} gave logits that are NaN or infinite {where}; lower its step size")
    # numpy promises the first of equal values, torch does not.
    hits = state["classes"].numpy()[scores.argmax(axis=1)] == data.labels[rows].numpy()
    ends = np.cumsum([len(part) for part in parts])
    return [float(part.mean()) for part in np.split(hits, ends[:-1])]


def current_features(learner: Learner, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
    """`learner.features`, checked, float [B, D].

    Raises:
        LearnerError: the learner raised, or a feature is undefined.
    """
    where = f"encoding {len(rows)} samples after {len(state['classes'])} classes"
    try:
        with torch.no_grad():
            features = learner.features(state, data, rows)
    except ThurlError:
        raise
    except Exception as error:
        raise LearnerError(f"learner {learner.name} raised {type(error).__name__} {where}: {error}") from error
    if features.ndim != 2 or len(features) != len(rows) or not bool(features.isfinite().all()):
        raise LearnerError(
            f"learner {learner.name} gave features of shape {tuple(features.shape)} or NaN {where}; there must be "
            f"finite ones, [{len(rows)}, D]"
        )
    return features


def state_hash(state: State) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def _check_state(learner: Learner, state: Any, classes: Sequence[int], where: str) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise LearnerError(
            f"learner {learner.name} returned a state {where} that is not a mapping of names to tensors"
        )
    found = state.get("classes")
    if found is None or found.dtype != torch.int64 or found.tolist() != list(classes):
        shown = None if found is None else found.tolist()
        raise LearnerError(
            f"learner {learner.name}: `classes` of its state is {shown} {where}; it must be int64 {list(classes)}"
        )
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise LearnerError(
            f"learner {learner.name}: {', '.join(sorted(bad))} of its state is NaN or infinite {where}; "
            "lower its step size or check the features"
        )
