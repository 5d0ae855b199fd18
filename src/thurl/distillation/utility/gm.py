"""Gradient matching, also called dataset condensation (Zhao, Mopuri and Bilen 2021, arXiv 2006.05929).

For each class the gradients that a network gets from real and from synthetic pictures are compared, row by row of
every layer. After each comparison the network itself is trained on the synthetic set, and after `outer` of them a new
one is drawn. With `dsa` it is DSA (arXiv 2102.08259).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional

from thurl.distillation.classifier_training import train_epoch
from thurl.distillation.convnet import Classifier
from thurl.distillation.dsa import DsaConfig, augment_pair
from thurl.distillation.networks import NetworkConfig, build_network, draw_network, matching_problems
from thurl.distillation.pictures import RealBatches
from thurl.distillation.utility.base import Utility, known_gradient
from thurl.errors import UsageError


__all__ = ["GradientMatching", "gradient_distance", "gradient_matching_loss"]


def gradient_distance(real: Iterable[torch.Tensor], synthetic: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum over layers and rows (output units) of `1 - cosine`; biases and norms, of one dimension, are left out.

    Args:
        real, synthetic: gradients of the same parameters, (out, ...).
    """
    total = []
    for one, other in zip(real, synthetic, strict=True):
        if one.ndim < 2:
            continue
        one, other = one.flatten(1), other.flatten(1)
        size = one.norm(dim=1) * other.norm(dim=1)
        total.append((1 - (one * other).sum(dim=1) / (size + 1e-6)).sum())
    return torch.stack(total).sum()


def gradient_matching_loss(
    network: Classifier,
    real: torch.Tensor,
    real_labels: torch.Tensor,
    synthetic: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Sum of `gradient_distance` over the classes on both sides, with the gradient in `synthetic`.

    The graph of one class at a time is in memory.

    Args:
        network: with parameters that require a gradient; none flows into them.
        real, synthetic: (N, channels, H, W), normalised; no gradient flows into `real`.
        real_labels, labels: int64 (N,).
    """
    total = synthetic.new_zeros(())
    slope = torch.zeros_like(synthetic)
    for label in sorted(set(labels.tolist()) & set(real_labels.tolist())):
        rows, mine = real_labels == label, (labels == label).nonzero()[:, 0]
        wanted = _gradients(network, real[rows], real_labels[rows])
        with torch.enable_grad():
            images = synthetic.detach()[mine].requires_grad_()
            loss = gradient_distance(wanted, _gradients(network, images, labels[mine], create_graph=True))
            (slope[mine],) = torch.autograd.grad(loss, images)
        total += loss.detach()
    return known_gradient(synthetic, total, slope)


def _gradients(
    network: Classifier, images: torch.Tensor, labels: torch.Tensor, create_graph: bool = False
) -> tuple[torch.Tensor, ...]:
    with torch.enable_grad():
        loss = functional.cross_entropy(network(images), labels)
        return torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)


class GradientMatching(Utility):
    """Gradient matching.

    Args:
        network: its shape.
        batch_real: real pictures of each class per comparison.
        outer: comparisons with one network.
        inner: passes over the synthetic set between two of them.
        lr: of the SGD that trains the network there.
        batch: synthetic pictures per step of it.
        dsa: augmentation of the comparison and of the network's training; the paper's runs have none.

    Raises:
        UsageError: a value outside its range.
    """

    def __init__(
        self,
        network: NetworkConfig,
        batch_real: int = 256,
        outer: int = 50,
        inner: int = 10,
        lr: float = 0.01,
        batch: int = 256,
        dsa: DsaConfig | None = None,
    ):
        problems = [
            f"{name}: {value} must be at least {least}"
            for name, value, least in (("batch_real", batch_real, 1), ("outer", outer, 1), ("inner", inner, 0),
                                       ("batch", batch, 1))
            if value < least
        ]  # fmt: skip
        if not lr > 0:
            problems.append(f"lr: {lr} must be above 0")
        problems += matching_problems(network)
        if problems:
            raise UsageError(problems)
        self.network = network
        self.batch_real, self.outer, self.inner, self.lr, self.batch = batch_real, outer, inner, lr, batch
        self.dsa = dsa
        self._step = 0
        self._current: Classifier | None = None

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, real: RealBatches, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Utility.loss`; the network first learns from the pictures as the last update left them."""
        if self._current is None or self._step % self.outer == 0:
            network = self._current = draw_network(self.network, generator).to(images.device, images.dtype)
        else:
            network = self._current.to(images.device, images.dtype)
            self._train(network, images.detach(), labels, generator)
        self._step += 1
        true, true_labels = real.draw(self.batch_real, generator)
        true = true.to(images.dtype)
        if self.dsa is not None:
            true, images = augment_pair(true, true_labels, images, labels, real.classes, self.dsa, generator)
        return gradient_matching_loss(network, true, true_labels, images, labels)

    def _train(
        self, network: Classifier, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=self.lr)
        for _ in range(self.inner):
            train_epoch(network, optimizer, images, labels, self.batch, self.dsa, generator)

    def state_dict(self) -> dict[str, Any]:
        """The network and the place in its loops."""
        weights = None if self._current is None else {k: v.clone() for k, v in self._current.state_dict().items()}
        return {"step": self._step, "network": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._step = state["step"]
        self._current = None
        if state["network"] is not None:
            self._current = build_network(self.network, 0)
            first = next(iter(state["network"].values()))
            self._current.to(first.dtype).load_state_dict(state["network"])
