"""Training a classifier on pictures that lie in memory: what evaluation, experts and gradient matching share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from thurl.distillation.convnet import Classifier
from thurl.distillation.dsa import DsaConfig, augment, draw


__all__ = ["accuracy", "batches", "train_epoch", "train_step"]


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices 0 to `count` - 1 in a random order, int64, `size` at a time; the last batch takes what is left."""
    yield from torch.randperm(count, generator=generator).split(size)


def train_step(
    network: Classifier,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    dsa: DsaConfig | None,
    generator: torch.Generator,
) -> None:
    """One step of cross-entropy on one batch, augmented by one operation with numbers for each picture.

    Args:
        images: (N, channels, H, W), normalised.
        labels: int64 (N,), or floating (N, classes) probabilities.
    """
    if dsa is not None:
        images = augment(images, draw(dsa, generator, len(images)), dsa)
    optimizer.zero_grad()
    functional.cross_entropy(network(images), labels).backward()
    optimizer.step()


def train_epoch(
    network: Classifier,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch: int,
    dsa: DsaConfig | None,
    generator: torch.Generator,
) -> None:
    """One pass over all pictures in a random order; arguments as for `train_step`."""
    for rows in batches(len(images), batch, generator):
        chosen = rows.to(images.device)
        train_step(network, optimizer, images[chosen], labels[chosen], dsa, generator)


@torch.no_grad()
def accuracy(network: Classifier, images: torch.Tensor, labels: torch.Tensor, batch: int = 500) -> float:
    """Part of the pictures that get their label, 0 to 1; NaN if a logit is not finite. Batch norm is in its test mode.

    Args:
        images: (N, channels, H, W), normalised.
        labels: int64 (N,).
    """
    was_training = network.training
    network.eval()
    right, finite = 0, True
    for part, truth in zip(images.split(batch), labels.split(batch), strict=True):
        logits = network(part)
        finite = finite and bool(logits.isfinite().all())
        right += int((logits.argmax(dim=1) == truth).sum())
    network.train(was_training)
    return right / len(images) if finite else float("nan")
