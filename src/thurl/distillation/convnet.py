"""ConvNet: the network that data sets are distilled with and evaluated on (Zhao et al. 2021, arXiv 2006.05929).

Blocks of 3x3 convolution, normalisation, ReLU and 2x2 average pooling, then one linear layer; parameters under the
names of the official code. A plain module: networks here are measuring instruments, made anew every iteration and
called through `torch.func`, and a released one is its `state_dict` in safetensors.
"""

from __future__ import annotations

import torch
from torch import nn

from thurl.errors import UsageError


__all__ = ["NORMS", "Classifier", "ConvNet", "default_depth", "norm_layer"]

NORMS = ("instance", "batch", "none")


def default_depth(height: int, width: int) -> int:
    """Blocks for a size: 3 at 28 and 32 pixels and 5 at 128, as in the paper; the last map is 3 to 7 pixels wide."""
    return max(1, (min(height, width) + 4).bit_length() - 3)


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Normalisation by name; `instance` is a group norm with one group per channel, as in the official code."""
    if kind == "instance":
        return nn.GroupNorm(channels, channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


class Classifier(nn.Module):
    """`features`, whose flattened output is the embedding, and a linear `classifier`."""

    features: nn.Module
    classifier: nn.Module

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W), normalised, to (N, F)."""
        return self.features(images).flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W), normalised, to logits (N, classes)."""
        return self.classifier(self.embed(images))


class ConvNet(Classifier):
    """ConvNet.

    Args:
        channels, height, width: of the pictures.
        classes: outputs.
        filters: width of every convolution.
        depth: blocks, each halving the sides; None for `default_depth`.
        norm: one of `NORMS`.

    Raises:
        UsageError: a depth that leaves no pixel.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        classes: int,
        filters: int = 128,
        depth: int | None = None,
        norm: str = "instance",
    ):
        super().__init__()
        depth = default_depth(height, width) if depth is None else depth
        # Grey 28 x 28 pictures are padded to 32, in the first convolution.
        padding = 3 if (channels, height, width) == (1, 28, 28) else 1
        height, width = height + 2 * padding - 2, width + 2 * padding - 2
        if depth < 1 or min(height, width) >> depth < 1:
            raise UsageError(f"depth: {depth} must be at least 1 and leave a pixel of {height}x{width} after halvings")
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(filters if block else channels, filters, 3, padding=1 if block else padding),
                norm_layer(norm, filters),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(filters * (height >> depth) * (width >> depth), classes)
