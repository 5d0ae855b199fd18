"""What the trained models return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


__all__ = ["ExifOutput"]


@dataclass
class ExifOutput(ModelOutput):
    """Result of one batch.

    Attributes:
        loss: sum of the terms, scalar; None without labels.
        terms: task to loss, scalars; None without labels.
        scores: what the losses are made of: (B, 5) of the five heads, or (B, 50) logits of the joint embedding.
        features: (B, d) for a detector, as the paper's takes them: raw for the five-headed model, length 1 for BLADES.
    """

    loss: torch.FloatTensor | None = None
    terms: dict[str, torch.FloatTensor] | None = None
    scores: torch.FloatTensor | None = None
    features: torch.FloatTensor | None = None
