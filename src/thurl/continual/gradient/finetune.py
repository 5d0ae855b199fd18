"""Sequential fine-tuning: the lower bound, of the whole encoder or of a low-rank change of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from thurl.continual.gradient.base import GradientLearner


__all__ = ["Finetune", "LoRA"]


class Finetune(GradientLearner):
    """Cross-entropy over all classes seen, on the samples of the new task alone."""

    name = "finetune"


class LoRA(GradientLearner):
    """As `Finetune`, of a low-rank change that goes on from task to task. AdamW, since plain steps hardly move a
    product that begins at zero.

    Args:
        rank, alpha: of the change.
    """

    name = "lora"
    fixed = ("tune", "bottleneck")

    def __init__(
        self, encoder: nn.Module, *, learning_rate: float = 1e-3, optimizer: str = "adamw", **settings: Any
    ) -> None:
        super().__init__(encoder, tune="lora", learning_rate=learning_rate, optimizer=optimizer, **settings)
