"""Trajectory matching (Cazenavette et al. 2022, arXiv 2203.11932).

A student starts where an expert stood after some epoch of training on real pictures, takes `syn_steps` steps of SGD on
the synthetic set, and should end where the expert was `expert_epochs` later. The gradient passes through all steps, to
the pictures and to the learning rate, which is learned. Experts and start epochs are drawn with equal chance; the
official code takes the experts in shuffled turns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional

from thurl.distillation.convnet import Classifier
from thurl.distillation.dsa import DsaConfig, augment, draw
from thurl.distillation.experts import Experts
from thurl.distillation.networks import build_network
from thurl.distillation.pictures import RealBatches
from thurl.distillation.utility.base import Utility
from thurl.errors import DataError, UsageError


__all__ = ["TrajectoryMatching", "trajectory_distance", "unroll"]

Parameters = dict[str, torch.Tensor]


def unroll(
    network: Classifier,
    start: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    lr: torch.Tensor,
    steps: Sequence[torch.Tensor],
    dsa: DsaConfig | None = None,
    generator: torch.Generator | None = None,
) -> Parameters:
    """Parameters after plain SGD on cross-entropy, differentiable in `images` and `lr`.

    Args:
        network: its shape; its own parameters are not used.
        start: parameters by name.
        images: (N, channels, H, W), normalised.
        labels: int64 (N,).
        lr: scalar.
        steps: int64 indices of the pictures of each step.
        dsa: augmentation of each step's pictures, drawn from `generator`.
    """
    parameters = {name: value.detach().requires_grad_() for name, value in start.items()}
    for rows in steps:
        chosen = rows.to(images.device)
        batch = images[chosen]
        if dsa is not None:
            assert generator is not None, "augmentation draws from a generator"
            batch = augment(batch, draw(dsa, generator, len(batch)), dsa)
        loss = functional.cross_entropy(functional_call(network, parameters, (batch,)), labels[chosen])
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        parameters = {
            name: value - lr * gradient for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
        }
    return parameters


def trajectory_distance(
    end: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Squared distance from `end` to `target`, over that from `start` to `target`; 1 for one that stood still."""

    def squared(one: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([(one[name] - value).square().sum() for name, value in target.items()]).sum()

    return squared(end) / squared(start)


class TrajectoryMatching(Utility):
    """Trajectory matching.

    Args:
        experts: folder written by `thurl.distillation.experts.train_experts`; its network is the student's.
        syn_steps: steps of the student per loss.
        expert_epochs: epochs of the expert they are to be worth.
        max_start_epoch: start epochs are drawn below it.
        batch: synthetic pictures per step; None for all.
        lr: of the student at the beginning.
        lr_lr: of the SGD with momentum 0.5 that learns it.
        min_lr: which it does not fall below.
        dsa: augmentation of the student's batches, or None.

    Raises:
        UsageError: a value outside its range, or experts that are too short.
        DataError: the folder cannot be used.
    """

    def __init__(
        self,
        experts: str | os.PathLike[str],
        syn_steps: int = 40,
        expert_epochs: int = 2,
        max_start_epoch: int = 20,
        batch: int | None = None,
        lr: float = 0.01,
        lr_lr: float = 1e-5,
        min_lr: float = 1e-3,
        dsa: DsaConfig | None = DsaConfig(),  # noqa: B008
    ):
        self.experts = Experts(experts)
        problems = [
            f"{name}: {value} must be at least 1"
            for name, value in (("syn_steps", syn_steps), ("expert_epochs", expert_epochs),
                                ("max_start_epoch", max_start_epoch), ("batch", 1 if batch is None else batch))
            if value < 1
        ]  # fmt: skip
        if max_start_epoch - 1 + expert_epochs > self.experts.epochs:
            problems.append(
                f"max_start_epoch {max_start_epoch} and expert_epochs {expert_epochs} need "
                f"{max_start_epoch - 1 + expert_epochs} epochs; the experts in {experts} have {self.experts.epochs}"
            )
        if not 0 < min_lr <= lr:
            problems.append(f"lr: {lr} must be at least min_lr, {min_lr}, which must be above 0")
        if problems:
            raise UsageError(problems)
        self.syn_steps, self.expert_epochs, self.max_start_epoch = syn_steps, expert_epochs, max_start_epoch
        self.batch, self.lr_lr, self.min_lr, self.dsa = batch, lr_lr, min_lr, dsa
        self.lr = torch.tensor(float(lr), requires_grad=True)
        self._velocity = torch.zeros(())
        self._network = build_network(self.experts.network, 0)

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, real: RealBatches, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Utility.loss`; the real pictures are those of the experts."""
        self.experts.check(real.pictures)
        expert = int(torch.randint(len(self.experts), (1,), generator=generator))
        epoch = int(torch.randint(self.max_start_epoch, (1,), generator=generator))
        start, target = (
            {
                name: value.to(images.device, images.dtype)
                for name, value in self.experts.parameters(expert, at).items()
            }
            for at in (epoch, epoch + self.expert_epochs)
        )
        lr = self.lr.to(images.device, images.dtype)
        steps = self._steps(len(images), generator)
        end = unroll(self._network, start, images, labels, lr, steps, self.dsa, generator)
        return trajectory_distance(end, start, target)

    def _steps(self, count: int, generator: torch.Generator) -> list[torch.Tensor]:
        steps: list[torch.Tensor] = []
        while len(steps) < self.syn_steps:
            steps += torch.randperm(count, generator=generator).split(self.batch or count)
        return steps[: self.syn_steps]

    def update(self, scale: float = 1.0) -> None:
        """Step the learned rate.

        Args:
            scale: what the loss was multiplied by before `backward`.

        Raises:
            DataError: the gradient is not finite.
        """
        if self.lr.grad is None:
            return
        gradient = self.lr.grad / scale
        if not bool(gradient.isfinite()):
            raise DataError(
                f"trajectory matching: the gradient of the learned rate is {float(gradient)} at a rate of "
                f"{float(self.lr.detach()):.3g}; lower lr, lr_lr or syn_steps"
            )
        self._velocity = 0.5 * self._velocity + gradient
        with torch.no_grad():
            self.lr -= self.lr_lr * self._velocity
            self.lr.clamp_(min=self.min_lr)
        self.lr.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The learned rate and its momentum."""
        return {"lr": self.lr.detach().clone(), "velocity": self._velocity.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.lr = state["lr"].clone().requires_grad_()
        self._velocity = state["velocity"].clone()
