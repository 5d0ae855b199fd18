"""Distribution matching (Zhao and Bilen 2023, arXiv 2110.04181).

A new random network every iteration embeds real and synthetic pictures; the loss is the squared distance between the
mean embeddings, summed over classes. Both sides of a class see the same augmentation. All classes pass the network
in one batch.
"""

from __future__ import annotations

import torch

from thurl.distillation.convnet import Classifier
from thurl.distillation.dsa import DsaConfig, augment_pair
from thurl.distillation.networks import NetworkConfig, draw_network
from thurl.distillation.pictures import RealBatches
from thurl.distillation.utility.base import Utility, class_means
from thurl.errors import UsageError


__all__ = ["DistributionMatching", "distribution_matching_loss"]


def distribution_matching_loss(
    network: Classifier,
    real: torch.Tensor,
    real_labels: torch.Tensor,
    synthetic: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
) -> torch.Tensor:
    """Sum over classes of the squared distance between mean embeddings.

    Args:
        network: its `embed` gives (N, F).
        real, synthetic: (N, channels, H, W), normalised; no gradient flows into `real`.
        real_labels, labels: int64 (N,). A class that is not on both sides counts nothing.

    Returns:
        A scalar of at least 0.
    """
    with torch.no_grad():
        wanted = class_means(network.embed(real), real_labels, classes)
    found = class_means(network.embed(synthetic), labels, classes)
    both = (torch.bincount(labels, minlength=classes) > 0) & (torch.bincount(real_labels, minlength=classes) > 0)
    return (found - wanted)[both].square().sum()


class DistributionMatching(Utility):
    """Distribution matching.

    Args:
        network: its shape.
        batch_real: real pictures of each class per iteration; the paper takes 256.
        dsa: augmentation, or None.

    Raises:
        UsageError: a batch of less than one picture.
    """

    def __init__(self, network: NetworkConfig, batch_real: int = 256, dsa: DsaConfig | None = DsaConfig()):  # noqa: B008
        if batch_real < 1:
            raise UsageError(f"batch_real: {batch_real} must be at least 1")
        self.network = network
        self.batch_real = batch_real
        self.dsa = dsa

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, real: RealBatches, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Utility.loss`."""
        network = draw_network(self.network, generator).to(images.device, images.dtype).requires_grad_(False)
        true, true_labels = real.draw(self.batch_real, generator)
        true = true.to(images.dtype)
        if self.dsa is not None:
            true, images = augment_pair(true, true_labels, images, labels, real.classes, self.dsa, generator)
        return distribution_matching_loss(network, true, true_labels, images, labels, real.classes)
