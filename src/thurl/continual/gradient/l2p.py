"""Learning to prompt: a frozen transformer, and a pool of prompts that each sample chooses from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from thurl.continual.gradient.base import GradientLearner, Step
from thurl.continual.gradient.model import cross_entropy
from thurl.continual.prompts import PromptedEncoder
from thurl.errors import UsageError


__all__ = ["L2PLike"]


class L2PLike(GradientLearner):
    """Prompts, keys and head are trained, by cross-entropy over the new classes alone and a pull of chosen keys.

    After "Learning to Prompt for Continual Learning" (arXiv 2112.08654) with the numbers of LAMDA-PILOT: Adam at
    0.001875, 5 epochs, batches of 16, a pool of 10 prompts of 5 tokens, 5 per sample. Unlike there every sample has
    prompts of its own choice, see `thurl.continual.prompts`. Prompts and keys begin uniform in [-1, 1].

    Args:
        encoder: a vision transformer with a class token, see `thurl.vit`.
        pool: prompts in the pool.
        length: tokens of a prompt.
        chosen: prompts per sample.
        pull: weight of the sum of cosines between a query and its keys, which is maximised.
    """

    name = "l2p"
    fixed = ("tune", "rank", "alpha", "bottleneck")

    def __init__(
        self,
        encoder: nn.Module,
        *,
        pool: int = 10,
        length: int = 5,
        chosen: int = 5,
        pull: float = 0.1,
        learning_rate: float = 0.001875,
        epochs: int = 5,
        batch_size: int = 16,
        optimizer: str = "adamw",
        **settings: Any,
    ) -> None:
        self._sizes = {"pool": pool, "length": length, "chosen": chosen}
        settings |= {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size}
        super().__init__(encoder, tune="head", optimizer=optimizer, **settings)
        if not pull >= 0:
            raise UsageError(f"l2p: pull is {pull}; it must be 0 or more")
        self.settings |= {**self._sizes, "pull": pull}

    def build(self, encoder: nn.Module) -> nn.Module:
        try:
            return PromptedEncoder(encoder, **self._sizes)
        except UsageError as error:
            raise UsageError([f"l2p: {problem}" for problem in error.problems]) from None

    def reset(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for tensor in (self.encoder.prompts, self.encoder.keys):
                tensor.copy_(torch.empty(tensor.shape).uniform_(-1, 1, generator=generator))

    def terms(self, step: Step) -> Mapping[str, torch.Tensor]:
        cosines = step.model.encoder.take_cosines()
        return {**cross_entropy(step, local=True), "pull": -self.settings["pull"] * cosines.sum(dim=1).mean()}
