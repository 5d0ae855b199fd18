"""What a model of `thurl.training.method_trainer` returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


__all__ = ["MethodOutput"]


@dataclass
class MethodOutput(ModelOutput):
    """Base class; a method adds its own fields, all with the default None.

    Fields that hold one row per item, tensors (N, ...), are what evaluators see (`thurl.training.evaluation`).

    Args:
        loss: scalar, only where the model weighs its terms itself; otherwise the trainer does.
        terms: named losses, scalars with a graph, the same names in every batch. A term without any label in the
            batch is 0 with a graph, as the losses of `thurl.ranking` give it.
        present: for terms that may lack labels, whether the batch has any, truth values; a name that is not here is
            always present. An absent term is left out of the logged mean, and its bi-level weight stays.
    """

    loss: torch.Tensor | None = None
    terms: dict[str, torch.Tensor] | None = None
    present: dict[str, torch.Tensor] | None = None
