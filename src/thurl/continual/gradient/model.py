"""The module that is trained on one task: an encoder, one head over all classes seen, and a loss of named terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from thurl.continual.class_data import ClassData
from thurl.continual.encoding import pooled
from thurl.training.method_output import MethodOutput


__all__ = ["ByRow", "RowBatches", "Step", "TaskModel", "cross_entropy", "encoded", "head_of"]

INFERENCE = 256
"""Samples that are encoded at a time where nothing is trained."""


@dataclass(frozen=True)
class Step:
    """What the loss of one step is made of, on the device.

    Args:
        rows: the samples, int64 [B], on the CPU.
        inputs: of the encoder, [B, ...].
        features: float [B, D], with a graph.
        logits: float [B, n_seen], with a graph; a column per class in the order of arrival.
        target: column of each sample's class, int64 [B]; below `old` for replayed ones.
        old: classes of earlier tasks.
        model: what is trained, for penalties on its parameters.
        prepared: what `GradientLearner.prepare` returned.
    """

    rows: torch.Tensor
    inputs: torch.Tensor
    features: torch.Tensor
    logits: torch.Tensor
    target: torch.Tensor
    old: int
    model: TaskModel
    prepared: Any


class TaskModel(nn.Module):
    """Encoder and head as one module of `thurl.training.method_trainer`.

    Args:
        encoder: gives features, see `thurl.continual.encoding.pooled`.
        head: `nn.Linear` [D] -> [n_seen].
        old: classes of earlier tasks.
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear, old: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.old = old
        self.terms: Callable[[Step], Mapping[str, torch.Tensor]] = cross_entropy
        self.prepared: Any = None

    def train(self, mode: bool = True) -> TaskModel:
        """As in torch, but an encoder without trained parameters stays as it is in use: no dropout, no statistics."""
        super().train(mode)
        if mode and not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def forward(self, inputs: torch.Tensor, target: torch.Tensor, rows: Any) -> MethodOutput:
        """The named terms and their sum."""
        features = pooled(self.encoder, inputs)
        step = Step(rows.value, inputs, features, self.head(features), target, self.old, self, self.prepared)
        terms = dict(self.terms(step))
        return MethodOutput(loss=torch.stack(list(terms.values())).sum(), terms=terms)


def cross_entropy(step: Step, local: bool = False) -> dict[str, torch.Tensor]:
    """Cross-entropy over all classes seen, or, `local`, over those of the task alone; no sample is replayed then."""
    first = step.old if local else 0
    return {"cross_entropy": nn.functional.cross_entropy(step.logits[:, first:], step.target - first)}


@dataclass(frozen=True)
class OnHost:
    """A tensor that a trainer leaves on the CPU."""

    value: torch.Tensor


class RowBatches:
    """`thurl.continual.fitting.Batches` of samples, each read when its step comes.

    Args:
        data: where the samples are.
        rows: of each step, int64.
        classes: in the order of their columns, int64 [n_seen].
    """

    def __init__(self, data: ClassData, rows: list[torch.Tensor], classes: torch.Tensor) -> None:
        self.data, self.rows = data, rows
        self.columns = torch.full((len(data.classes),), -1, dtype=torch.int64)
        self.columns[classes] = torch.arange(len(classes))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: int) -> dict[str, Any]:
        rows = self.rows[step]
        return {
            "inputs": self.data.read(rows),
            "target": self.columns[self.data.labels[rows]],
            "rows": OnHost(rows),
        }


class ByRow:
    """A tensor with one entry per sample, looked up by the rows of a step; for `GradientLearner.prepare`.

    Args:
        rows: int64 [n], sorted, each once.
        values: [n, ...], of the same order.
    """

    def __init__(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        self.rows, self.values = rows, values

    def at(self, step: Step) -> torch.Tensor:
        """Entries of the step's samples, [B, ...], on its device."""
        return self.values[torch.searchsorted(self.rows, step.rows)].to(step.logits.device)


def head_of(weight: torch.Tensor, bias: torch.Tensor, new: int = 0) -> nn.Linear:
    """A head with these rows, and `new` further ones that are zero.

    Args:
        weight, bias: float [n, D] and [n].
    """
    head = nn.Linear(weight.shape[1], len(weight) + new, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        head.weight.zero_()[: len(weight)] = weight
        head.bias.zero_()[: len(bias)] = bias
    return head


def encoded(encoder: nn.Module, data: ClassData, rows: torch.Tensor, device: torch.device) -> Iterator[torch.Tensor]:
    """Features [<= 256, D] of `rows`, part after part, on the CPU; in evaluation mode and without gradients."""
    encoder.eval()
    for part in rows.split(INFERENCE) if len(rows) else (rows,):
        with torch.no_grad():
            found = pooled(encoder, data.read(part).to(device))
        yield found.float().cpu()
