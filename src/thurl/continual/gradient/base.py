"""What learners that train with gradient steps have in common.

A learner of this kind says which samples a step sees (`rows`, `steps`), what the loss is made of (`terms`, with
`prepare` before the first step) and what it keeps of a task (`remember`); a few lines each.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from thurl.continual.class_data import ClassData, TaskData
from thurl.continual.fitting import FitSettings, fit, random_rows
from thurl.continual.gradient.model import RowBatches, Step, TaskModel, cross_entropy, encoded, head_of
from thurl.continual.gradient.tuning import Tuning, insert, reset, tuned_names
from thurl.continual.learner import LearnerError, State
from thurl.errors import UsageError
from thurl.training.fingerprint import fingerprint
from thurl.training.single_process import process_device


__all__ = ["GradientLearner", "Step"]


class GradientLearner:
    """An encoder, or a part of it, and a head over all classes seen, trained on each task in turn.

    The state holds `classes`, `head.weight` and `head.bias`, under `encoder.` the tensors that are trained and nothing
    that is not, and what `remember` adds; all on the CPU. New head rows begin at zero. One module per learner takes
    the tensors of the state that is asked for; it is on the accelerator of the process from its first use on.

    Args:
        encoder: where it begins, see `thurl.continual.encoding.pooled`; it is copied.
        tune: which tensors are trained: `full`, `lora`, `adapter` or `head`, see `thurl.continual.gradient.tuning`.
        rank, alpha: of `tune=lora`.
        bottleneck: of `tune=adapter`.
        learning_rate: of the head.
        encoder_rate: of the encoder, or of what is put into it; that of the head when None.
        epochs: per task.
        max_steps: per task at most, 0 for no limit.
        batch_size: samples of the task per step.
        optimizer, momentum, weight_decay, schedule, drop_at: see `thurl.continual.fitting.FitSettings`.

    Raises:
        UsageError: values outside their range, all together, or an encoder in which there is nothing to tune.
    """

    name = ""
    frozen_encoder = False
    fixed: tuple[str, ...] = ()
    """Options that this kind of learner decides itself; they are not offered on the command line."""

    def __init__(
        self,
        encoder: nn.Module,
        *,
        tune: str = "full",
        rank: int | None = None,
        alpha: float | None = None,
        bottleneck: int | None = None,
        learning_rate: float = 0.02,
        encoder_rate: float | None = None,
        epochs: int = 8,
        max_steps: int = 0,
        batch_size: int = 32,
        optimizer: str = "sgd",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        drop_at: float = 0.9,
    ) -> None:
        numbers: dict[str, Any] = {
            "learning_rate": learning_rate,
            "encoder_rate": learning_rate if encoder_rate is None else encoder_rate,
            "epochs": epochs,
            "max_steps": max_steps,
            "batch_size": batch_size,
        }
        low = {"epochs": 1, "batch_size": 1}
        problems = [
            f"{self.name}: {key} is {value}; it must be {low.get(key, 0)} or more"
            for key, value in numbers.items()
            if not value >= low.get(key, 0)
        ]
        try:
            self.fitting = FitSettings(optimizer, momentum, weight_decay, schedule, drop_at)
        except UsageError as error:
            problems += [f"{self.name}: {problem}" for problem in error.problems]
        try:
            self.tuning = Tuning(tune, rank, alpha, bottleneck)
        except UsageError as error:
            problems += [f"{self.name}: {problem}" for problem in error.problems]
        if problems:
            raise UsageError(problems)
        self.settings: dict[str, Any] = {**self.tuning.settings, **numbers, **vars(self.fitting)}
        self._fingerprint = fingerprint(encoder)
        with torch.random.fork_rng(devices=[]):  # new tensors are drawn below
            self.encoder = self.build(copy.deepcopy(encoder)).eval()
        self.reset(torch.Generator().manual_seed(0))
        names = tuned_names(self.encoder)
        values = self.encoder.state_dict()
        self._begin = {f"encoder.{name}": values[name].detach().cpu().clone() for name in names}

    def __getstate__(self) -> dict[str, Any]:
        # Another process has its own device.
        return {**self.__dict__, "encoder": self.encoder.to("cpu")}

    # -- what a learner of this kind may say -------------------------------------------------------------------------

    def build(self, encoder: nn.Module) -> nn.Module:
        """The module that gives features, made of a copy of the encoder; `requires_grad` says what is trained."""
        return insert(encoder, self.tuning)

    def reset(self, generator: torch.Generator) -> None:
        """Draw those tensors of the module anew that `build` added."""
        reset(self.encoder, generator)

    def rows(self, state: State, task: TaskData) -> torch.Tensor:
        """Samples of an epoch, int64 [n]."""
        return task.rows

    def steps(self, state: State, task: TaskData, generator: torch.Generator) -> list[torch.Tensor]:
        """Samples of each step, int64, in order: `rows` in a new order every epoch."""
        rows, settings = self.rows(state, task), self.settings
        return [rows[part] for part in random_rows(len(rows), settings["batch_size"], settings["epochs"], generator)]

    def prepare(self, state: State, task: TaskData, rows: torch.Tensor) -> Any:
        """Whatever `terms` needs, as `Step.prepared`; the module is still the one of `state`.

        Args:
            rows: every sample that a step will see, int64, sorted, each once. See `ByRow` and `outputs`.
        """
        return None

    def terms(self, step: Step) -> Mapping[str, torch.Tensor]:
        """Named scalars whose sum is the loss; the same names in every step of a task."""
        return cross_entropy(step)

    def groups(self, model: TaskModel) -> list[dict[str, Any]]:
        """Groups of the optimizer."""
        return [
            {"params": list(model.encoder.parameters()), "lr": self.settings["encoder_rate"]},
            {"params": list(model.head.parameters()), "lr": self.settings["learning_rate"]},
        ]

    def remember(
        self, before: State, learned: State, task: TaskData, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        """Further tensors of the new state, or replacements; called without gradients, the module is that of
        `learned`."""
        return {}

    # -- a learner ---------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        own = {key: value for key, value in self.settings.items() if key not in self.fixed}
        return {"name": self.name, "encoder": self._fingerprint, **own}

    def init(self, data: ClassData, seed: int) -> State:
        self._load(self._begin)
        self.reset(torch.Generator().manual_seed(seed))
        dimension = next(encoded(self.encoder, data, torch.zeros(1, dtype=torch.int64), process_device())).shape[1]
        return {
            **self._tuned(),
            "classes": torch.zeros(0, dtype=torch.int64),
            "head.weight": torch.zeros(0, dimension),
            "head.bias": torch.zeros(0),
        }

    def learn(self, state: State, task: TaskData, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        classes = torch.cat([state["classes"], torch.tensor(task.classes, dtype=torch.int64)])
        model = self.model(state, new=len(task.classes))
        steps = self.steps(state, task, generator)
        steps = steps[: self.settings["max_steps"] or None]
        with torch.no_grad():
            model.prepared = self.prepare(state, task, torch.cat(steps).unique())
        model.terms = self.terms
        loss = fit(model, RowBatches(task.data, steps, classes), self.groups(model), self.fitting, seed=seed)
        learned = {
            **self._tuned(),
            "classes": classes,
            "head.weight": model.head.weight.detach().cpu().clone(),
            "head.bias": model.head.bias.detach().cpu().clone(),
        }
        if not all(bool(value.isfinite().all()) for value in learned.values()):
            raise LearnerError(
                f"learner {self.name} diverged learning task {', '.join(task.names)}: its mean loss is {loss}; lower "
                f"its learning_rate ({self.settings['learning_rate']}) or encoder_rate "
                f"({self.settings['encoder_rate']})"
            )
        with torch.no_grad():
            return {**state, **learned, **self.remember(state, learned, task, generator)}

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return self.outputs(state, data, rows)[1]

    def features(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return self.encoded(state, data, rows)

    # -- for learners ------------------------------------------------------------------------------------------------

    def encoded(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        """Features [n, D] of the module with the `encoder.` tensors of `state`, on the CPU, without gradients."""
        self._load(state)
        return torch.cat(list(encoded(self.encoder, data, rows, process_device())))

    def outputs(self, state: State, data: ClassData, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`encoded` and the logits [n, n_seen] of the head."""
        features = self.encoded(state, data, rows)
        return features, nn.functional.linear(features, state["head.weight"], state["head.bias"])

    def model(self, state: State, new: int = 0) -> TaskModel:
        """The module with the tensors of `state`, on the device, and `new` further head rows that are zero. It is the
        learner's only one: another call, `outputs` too, may give it the tensors of another state."""
        self._load(state)
        head = head_of(state["head.weight"], state["head.bias"], new)
        return TaskModel(self.encoder, head.to(process_device()), old=len(state["classes"]))

    def _load(self, state: Mapping[str, torch.Tensor]) -> None:
        self.encoder.to(process_device())
        own = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
        left = self.encoder.load_state_dict(own, strict=False)  # copies
        lacking = [name for name in self._begin if name.removeprefix("encoder.") not in own]
        if left.unexpected_keys or lacking:
            raise LearnerError(
                f"a state of another learner than {self.name}: without {lacking[:3]}, with {left.unexpected_keys[:3]}"
            )
        self.encoder.eval()

    def _tuned(self) -> dict[str, torch.Tensor]:
        values = self.encoder.state_dict()
        return {name: values[name.removeprefix("encoder.")].detach().cpu().clone() for name in self._begin}
