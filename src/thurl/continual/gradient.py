"""Learners that train an encoder with gradient steps: sequential fine-tuning, experience replay, and one like SLCA.

Plain torch on any encoder that `thurl.continual.encoding.pooled` reads. The state holds the whole encoder, a head row
per class and what the learner needs of the past. New head rows begin at zero.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from thurl.continual.class_data import ClassData, TaskData
from thurl.continual.encoding import pooled
from thurl.continual.learner import State
from thurl.errors import UsageError
from thurl.training.fingerprint import fingerprint


__all__ = ["ExperienceReplay", "Finetune", "SLCALike"]


class _Steps:
    """Steps of `torch.optim.SGD` without its bookkeeping, which takes a third of the time of networks this small."""

    def __init__(self, parameters: Sequence[torch.Tensor], rates: Sequence[float], momentum: float, decay: float):
        self.parameters, self.rates, self.momentum, self.decay = list(parameters), list(rates), momentum, decay
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    def __call__(self, loss: torch.Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for p, g, v, rate in zip(self.parameters, gradients, self.velocities, self.rates, strict=True):
                v.mul_(self.momentum).add_(g.add(p, alpha=self.decay) if self.decay else g)
                p.add_(v, alpha=-rate)


class Finetune:
    """Cross-entropy over all classes seen, on the samples of the new task alone: the lower bound.

    Args:
        encoder: where it begins; it is copied.
        learning_rate: of the head (SGD).
        encoder_rate: of the encoder; that of the head when None.
        epochs: per task.
        batch_size: samples per step.
        momentum, weight_decay: of SGD.
    """

    name = "finetune"
    frozen_encoder = False

    def __init__(
        self,
        encoder: nn.Module,
        *,
        learning_rate: float = 0.02,
        encoder_rate: float | None = None,
        epochs: int = 8,
        batch_size: int = 32,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        self.settings: dict[str, Any] = {
            "learning_rate": learning_rate,
            "encoder_rate": learning_rate if encoder_rate is None else encoder_rate,
            "epochs": epochs,
            "batch_size": batch_size,
            "momentum": momentum,
            "weight_decay": weight_decay,
        }
        low = {"epochs": 1, "batch_size": 1}
        problems = [
            f"{self.name}: {key} is {value}; it must be {low.get(key, 0)} or more"
            for key, value in self.settings.items()
            if not value >= low.get(key, 0)
        ]
        if problems:
            raise UsageError(problems)
        self.encoder = copy.deepcopy(encoder).eval()
        self._begin = {f"encoder.{name}": value.detach().clone() for name, value in encoder.state_dict().items()}
        self._fingerprint = fingerprint(encoder)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "encoder": self._fingerprint, **self.settings}

    def init(self, data: ClassData, seed: int) -> State:
        with torch.no_grad():
            dimension = pooled(self._load(self._begin), data.read(torch.zeros(1, dtype=torch.int64))).shape[1]
        return {
            **self._begin,
            "classes": torch.zeros(0, dtype=torch.int64),
            "head.weight": torch.zeros(0, dimension),
            "head.bias": torch.zeros(0),
        }

    def learn(self, state: State, task: TaskData, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        encoder, old = self._load(state), len(state["classes"])
        classes = torch.cat([state["classes"], torch.tensor(task.classes, dtype=torch.int64)])
        new = len(task.classes)
        weight = nn.Parameter(torch.cat([state["head.weight"], torch.zeros(new, state["head.weight"].shape[1])]))
        bias = nn.Parameter(torch.cat([state["head.bias"], torch.zeros(new)]))
        settings = self.settings
        body = [p for p in encoder.parameters() if p.requires_grad]
        rates = [settings["encoder_rate"]] * len(body) + [settings["learning_rate"]] * 2
        step = _Steps([*body, weight, bias], rates, settings["momentum"], settings["weight_decay"])
        encoder.train()
        for inputs, labels in self._batches(state, task, generator):
            target = (labels[:, None] == classes[None, :]).int().argmax(dim=1)
            logits = nn.functional.linear(pooled(encoder, inputs), weight, bias)
            step(self._loss(logits, target, old))
        encoder.eval()
        learned = {f"encoder.{name}": value.detach().clone() for name, value in encoder.state_dict().items()}
        learned |= {"classes": classes, "head.weight": weight.detach(), "head.bias": bias.detach()}
        with torch.no_grad():
            return {**learned, **self._remember(state, learned, task, generator)}

    def logits(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.features(state, data, rows), state["head.weight"], state["head.bias"])

    def features(self, state: State, data: ClassData, rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return pooled(self._load(state), data.read(rows))

    def _batches(
        self, state: State, task: TaskData, generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        inputs, labels = task.data.read(task.rows), task.labels
        for _ in range(self.settings["epochs"]):
            for rows in torch.randperm(len(labels), generator=generator).split(self.settings["batch_size"]):
                yield inputs[rows], labels[rows]

    def _loss(self, logits: torch.Tensor, target: torch.Tensor, old: int) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, target)

    def _remember(
        self, before: State, learned: State, task: TaskData, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        """Further tensors of the new state, or replacements."""
        return {}

    def _load(self, state: State) -> nn.Module:
        own = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
        self.encoder.load_state_dict(own)  # copies
        return self.encoder


class ExperienceReplay(Finetune):
    """Fine-tuning with as many kept samples in every step as new ones.

    Args:
        per_class: samples kept of each class, drawn at random when it was learned.
    """

    name = "er"

    def __init__(self, encoder: nn.Module, *, per_class: int = 10, **settings: Any) -> None:
        super().__init__(encoder, **settings)
        if per_class < 1:
            raise UsageError(f"er: per_class is {per_class}; it must be 1 or more")
        self.settings["per_class"] = per_class

    def init(self, data: ClassData, seed: int) -> State:
        return {**super().init(data, seed), "buffer": torch.zeros(0, dtype=torch.int64)}

    def _batches(
        self, state: State, task: TaskData, generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        kept = state["buffer"]
        past, names = task.data.read(kept), task.data.labels[kept]
        for inputs, labels in super()._batches(state, task, generator):
            if len(kept):
                drawn = torch.randint(len(kept), (len(labels),), generator=generator)
                inputs, labels = torch.cat([inputs, past[drawn]]), torch.cat([labels, names[drawn]])
            yield inputs, labels

    def _remember(
        self, before: State, learned: State, task: TaskData, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        chosen = [before["buffer"]]
        for index in task.classes:
            rows = task.data.rows([index], "train")
            chosen.append(rows[torch.randperm(len(rows), generator=generator)[: self.settings["per_class"]]])
        return {"buffer": torch.cat(chosen)}


class SLCALike(Finetune):
    """A slow encoder and a loss over the new classes alone; then, optionally, an alignment of the head.

    After "SLCA: Slow Learner with Classifier Alignment" (arXiv 2303.05118) as LAMDA-PILOT has it: features of every
    class seen are drawn from a normal distribution, and the head alone is trained on them with normalised logits. A
    class's task is known from its own record, not from equal task sizes.

    Args:
        alignment: epochs of it from the second task on; 0 leaves it out.
        samples: features drawn per class.
    """

    name = "slca"

    def __init__(
        self,
        encoder: nn.Module,
        *,
        learning_rate: float = 0.01,
        encoder_rate: float | None = None,
        alignment: int = 3,
        samples: int = 256,
        **settings: Any,
    ) -> None:
        slow = learning_rate / 100 if encoder_rate is None else encoder_rate
        super().__init__(encoder, learning_rate=learning_rate, encoder_rate=slow, **settings)
        if alignment < 0 or samples < 1:
            raise UsageError(f"slca: alignment is {alignment}, samples {samples}; they must be 0 and 1 or more")
        self.settings |= {"alignment": alignment, "samples": samples}

    def init(self, data: ClassData, seed: int) -> State:
        empty = super().init(data, seed)
        size = empty["head.weight"].shape[1]
        past = {"means": torch.zeros(0, size), "covariances": torch.zeros(0, size, size)}
        return {**empty, **past, "arrival": torch.zeros(0, dtype=torch.int64)}

    def _loss(self, logits: torch.Tensor, target: torch.Tensor, old: int) -> torch.Tensor:
        return nn.functional.cross_entropy(logits[:, old:], target - old)

    def _remember(
        self, before: State, learned: State, task: TaskData, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        means, covariances = [before["means"]], [before["covariances"]]
        for index in task.classes:
            found = pooled(self.encoder, task.data.read(task.data.rows([index], "train")))
            middle = found.mean(dim=0)
            apart = found - middle
            means.append(middle[None])
            covariances.append((apart.T @ apart / max(1, len(found) - 1))[None])
        number = int(before["arrival"].max()) + 1 if len(before["arrival"]) else 0
        arrival = torch.cat([before["arrival"], torch.full((len(task.classes),), number)])
        past = {"means": torch.cat(means), "covariances": torch.cat(covariances), "arrival": arrival}
        if number and self.settings["alignment"]:
            past |= self._align(learned, past, generator)
        return past

    def _align(self, learned: State, past: State, generator: torch.Generator) -> Mapping[str, torch.Tensor]:
        arrival = past["arrival"]
        tasks = int(arrival.max()) + 1
        shrink = 0.9 + 0.1 * (arrival + 1) / tasks
        means = past["means"] * shrink[:, None]
        jitter = 1e-4 * torch.eye(means.shape[1])
        factors = torch.linalg.cholesky(past["covariances"] + jitter)
        weight = nn.Parameter(learned["head.weight"].clone())
        bias = nn.Parameter(learned["head.bias"].clone())
        rate = self.settings["learning_rate"]
        step = _Steps([weight, bias], [rate, rate], self.settings["momentum"], 0.0)
        member = (arrival[None, :] == torch.arange(tasks)[:, None]).float()  # (tasks, n_seen)
        count = self.settings["samples"]
        with torch.enable_grad():
            for _ in range(self.settings["alignment"]):
                noise = torch.randn(len(means), count, means.shape[1], generator=generator)
                drawn = (means[:, None] + noise @ factors.mT).flatten(0, 1)
                labels = torch.arange(len(means)).repeat_interleave(count)
                for rows in torch.randperm(len(labels), generator=generator).split(count):
                    logits = nn.functional.linear(drawn[rows], weight, bias)
                    length = (logits.square() @ member.T).clamp_min(1e-14).sqrt().mean(dim=1, keepdim=True) + 1e-7
                    step(nn.functional.cross_entropy(logits / length / 0.1, labels[rows]))
        return {"head.weight": weight.detach(), "head.bias": bias.detach()}
