"""Reconstruction as a utility: the warm-up's objective in the joint stage's place, at any size.

What joint optimisation is worth shows only against the same codec, trained for the same bits to look like the pictures
it was started from. The same trainer and controller reach that size with this loss.
"""

from __future__ import annotations

import torch

from thurl.distillation.pictures import RealBatches
from thurl.distillation.utility.base import Utility


__all__ = ["Reconstruction"]


class Reconstruction(Utility):
    """Sum over slices of the mean squared error of pixels in [0, 1].

    Args:
        targets: (N, channels, H, W) in [0, 1], in the order of the samples.
        mean, std: (channels,), of the normalisation of the pictures that `loss` gets.
        slices: how many; with `1 / rate_weight` for lambda the objective is the warm-up's.
    """

    def __init__(self, targets: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, slices: int) -> None:
        self.targets = targets
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self.slices = slices

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, real: RealBatches, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Utility.loss`; draws nothing."""
        mean, std, targets = (value.to(images) for value in (self.mean, self.std, self.targets))
        return self.slices * (images * std + mean - targets).square().mean()
