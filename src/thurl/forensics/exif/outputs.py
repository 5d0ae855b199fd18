"""What the trained models return."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from thurl.training.method_output import MethodOutput


__all__ = ["ExifOutput"]


@dataclass
class ExifOutput(MethodOutput):
    """Result of one batch. Several processes have their own scores and features, and the losses of all rows together.

    Attributes:
        loss: sum of the terms, scalar; None without labels.
        terms: task to loss, scalars; None without labels.
        present: task to whether the batch has labels for it.
        scores: what the losses are made of: (B, 5) of the five heads, or (B, 50) logits of the joint embedding.
        features: (B, d) for a detector, as the paper's takes them: raw for the five-headed model, length 1 for BLADES.
    """

    scores: torch.FloatTensor | None = None
    features: torch.FloatTensor | None = None
