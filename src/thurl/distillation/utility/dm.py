"""Distribution matching (Zhao and Bilen 2023, arXiv 2110.04181).

A new random network every iteration embeds real and synthetic pictures; the loss is the squared distance between the
mean embeddings, summed over classes. Both sides of a class see the same augmentation. Classes pass the network
together, as many as the memory is meant to hold.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from thurl.distillation.convnet import Classifier
from thurl.distillation.dsa import DsaConfig, augment_pair
from thurl.distillation.networks import NetworkConfig, draw_network, matching_problems
from thurl.distillation.pictures import RealBatches
from thurl.distillation.utility.base import Utility, known_gradient
from thurl.errors import UsageError


__all__ = ["DistributionMatching", "distribution_matching_loss"]

CHUNK = 512
"""Pictures whose activations are in memory at a time; all of a class at least."""


def distribution_matching_loss(
    network: Classifier,
    real: torch.Tensor,
    real_labels: torch.Tensor,
    synthetic: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Sum over classes of the squared distance between mean embeddings, with the gradient in `synthetic`.

    Args:
        network: its `embed` gives (N, F); no gradient flows into it.
        real, synthetic: (N, channels, H, W), normalised; no gradient flows into `real`.
        real_labels, labels: int64 (N,). A class that is not on both sides counts nothing.
        chunk: pictures whose graph is in memory at a time; at least those of a class, whatever it is.

    Returns:
        A scalar of at least 0.
    """
    counts, real_counts = (torch.bincount(one, minlength=classes) for one in (labels, real_labels))
    with torch.no_grad():
        parts = zip(real.split(chunk), real_labels.split(chunk), strict=True)
        sums = sum(_class_sums(network.embed(images), one, classes) for images, one in parts)
        wanted = sums / real_counts[:, None]
    total, slope = synthetic.new_zeros(()), torch.zeros_like(synthetic)
    shared = ((counts > 0) & (real_counts > 0)).nonzero()[:, 0].tolist()
    for group in _groups(shared, counts.tolist(), chunk):
        rows = torch.isin(labels, torch.tensor(group, device=labels.device)).nonzero()[:, 0]
        with torch.enable_grad():
            images = synthetic.detach()[rows].requires_grad_()
            means = _class_sums(network.embed(images), labels[rows], classes)[group] / counts[group][:, None]
            loss = (means - wanted[group]).square().sum()
            (slope[rows],) = torch.autograd.grad(loss, images)
        total += loss.detach()
    return known_gradient(synthetic, total, slope)


def _class_sums(values: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    return functional.one_hot(labels, classes).to(values.dtype).T @ values


def _groups(classes: list[int], counts: list[int], chunk: int) -> list[list[int]]:
    """Classes one after the other, as many together as hold no more than `chunk` pictures."""
    groups: list[list[int]] = []
    size = 0
    for label in classes:
        if groups and size + counts[label] <= chunk:
            groups[-1].append(label)
            size += counts[label]
        else:
            groups.append([label])
            size = counts[label]
    return groups


class DistributionMatching(Utility):
    """Distribution matching.

    Args:
        network: its shape.
        batch_real: real pictures of each class per iteration; the paper takes 256.
        dsa: augmentation, or None.

    Raises:
        UsageError: a batch of less than one picture, or a network that does not fit.
    """

    def __init__(self, network: NetworkConfig, batch_real: int = 256, dsa: DsaConfig | None = DsaConfig()):  # noqa: B008
        problems = matching_problems(network)
        if batch_real < 1:
            problems.append(f"batch_real: {batch_real} must be at least 1")
        if problems:
            raise UsageError(problems)
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
