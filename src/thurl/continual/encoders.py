"""The smallest encoder of pictures, which trains in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from thurl.continual.encoding import pooled
from thurl.errors import DataError, UsageError


__all__ = ["MLPEncoder", "MLPEncoderConfig", "pretrain"]


class MLPEncoderConfig(PreTrainedConfig):
    """Sizes of an `MLPEncoder`.

    Args:
        side: pictures are scaled to `side` x `side` grey pixels.
        hidden_sizes: widths of the layers; the last one is the dimension of the features.
    """

    model_type = "thurl_mlp_encoder"

    def __init__(self, side: int = 8, hidden_sizes: Sequence[int] = (96, 32), **more: Any) -> None:
        self.side = side
        self.hidden_sizes = list(hidden_sizes)
        super().__init__(**more)
        if side < 1 or not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise UsageError(
                f"side {side} and hidden_sizes {self.hidden_sizes} must be 1 or more, with one layer at least"
            )


class MLPEncoder(PreTrainedModel):
    """Layers of `hidden_sizes`, a ReLU after each; the smallest encoder that can be contaminated and forget."""

    config_class = MLPEncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"

    def __init__(self, config: MLPEncoderConfig) -> None:
        super().__init__(config)
        sizes = [config.side**2, *config.hidden_sizes]
        layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Features of pictures, float [B, side * side] in [0, 1]: `pooler_output`, [B, hidden_sizes[-1]]."""
        return BaseModelOutputWithPooling(pooler_output=self.layers(pixel_values))


def pretrain(
    encoder: MLPEncoder,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int = 40,
    learning_rate: float = 0.02,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Train the encoder in place as a classifier (SGD, momentum 0.9); the head is thrown away.

    Args:
        inputs: float [N, side * side].
        labels: int64 [N] from 0.

    Returns:
        accuracy on the training samples in [0, 1].

    Raises:
        DataError: the loss is not a number at the end.
    """
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(encoder.config.hidden_sizes[-1], int(labels.max()) + 1)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.01)
        head.bias.zero_()
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=learning_rate, momentum=0.9)
    encoder.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(pooled(encoder, inputs[rows])), labels[rows]).backward()
            optimizer.step()
    encoder.eval()
    with torch.no_grad():
        logits = head(pooled(encoder, inputs))
    if not bool(logits.isfinite().all()):
        raise DataError(f"pre-training diverged at a learning rate of {learning_rate}; lower it")
    return float((logits.argmax(dim=1) == labels).double().mean())
