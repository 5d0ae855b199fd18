"""Trajectory matching (Cazenavette et al. 2022, arXiv 2203.11932).

A student starts where an expert stood after some epoch of training on real pictures, takes `syn_steps` steps of SGD on
the synthetic set, and should end where the expert was `expert_epochs` later. The exact gradient passes through all
steps, one at a time, to the pictures and to the learning rate, which is learned. Experts and start epochs are drawn
with equal chance; the official code takes the experts in shuffled turns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional

from thurl.distillation.classifier_training import batches
from thurl.distillation.convnet import Classifier
from thurl.distillation.dsa import Draw, DsaConfig, augment, draw
from thurl.distillation.experts import Experts
from thurl.distillation.networks import build_network
from thurl.distillation.pictures import RealBatches
from thurl.distillation.utility.base import Utility
from thurl.errors import DataError, UsageError


__all__ = ["TrajectoryMatching", "trajectory_distance", "unroll"]


def unroll(
    network: Classifier,
    start: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    lr: torch.Tensor,
    rows: Sequence[torch.Tensor],
    draws: Sequence[Draw] | None = None,
    dsa: DsaConfig | None = None,
) -> dict[str, torch.Tensor]:
    """Parameters after plain SGD on cross-entropy, differentiable in `images` and `lr`.

    Memory is that of one step, however many there are; the way back computes every step's gradient a second time.

    Args:
        network: its shape; its own parameters are not used.
        start: parameters by name.
        images: (N, channels, H, W), normalised.
        labels: int64 (N,).
        lr: scalar.
        rows: int64 indices of the pictures of each step.
        draws: augmentation of each step's pictures with the strengths of `dsa`; both or neither.

    Raises:
        ValueError: one of `draws` and `dsa` without the other.
    """
    if (draws is None) != (dsa is None):
        raise ValueError("`draws` need the strengths in `dsa`, and the other way round; give both or neither")
    steps = _Steps(network, start, labels, [one.to(images.device) for one in rows], draws, dsa)
    return dict(zip(start, _Unroll.apply(images, lr, steps), strict=True))


class _Steps:
    """What the steps of a student are, but for the pictures and the rate."""

    def __init__(
        self,
        network: Classifier,
        start: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
        rows: list[torch.Tensor],
        draws: Sequence[Draw] | None,
        dsa: DsaConfig | None,
    ):
        self.network, self.names, self.rows = network, list(start), rows
        self.start = [value.detach() for value in start.values()]
        self._labels, self._draws, self._dsa = labels, draws, dsa

    def gradients(
        self, index: int, parameters: Sequence[torch.Tensor], images: torch.Tensor, create_graph: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """Of the loss of step `index` on its pictures, by parameter."""
        if self._draws is not None and self._dsa is not None:
            images = augment(images, self._draws[index], self._dsa)
        logits = functional_call(self.network, dict(zip(self.names, parameters, strict=True)), (images,))
        loss = functional.cross_entropy(logits, self._labels[self.rows[index]])
        return torch.autograd.grad(loss, parameters, create_graph=create_graph)


class _Unroll(torch.autograd.Function):
    """SGD steps with the graph of one step at a time; in between only parameters are kept.

    The way back is the adjoint of the way there. With g the gradient of a step and a the adjoint behind it, the one in
    front is `a - lr * d<g, a>/d parameters`; the pictures get `-lr * d<g, a>/d pictures`, the rate gets `-<g, a>`.
    """

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, lr: torch.Tensor, steps: _Steps) -> tuple[torch.Tensor, ...]:
        parameters = steps.start
        ctx.visited, ctx.steps, ctx.images, ctx.lr = [], steps, images.detach(), lr.detach()
        for index, rows in enumerate(steps.rows):
            ctx.visited.append(parameters)
            with torch.enable_grad():
                gradients = steps.gradients(index, _leaves(parameters), ctx.images[rows])
            parameters = [value - ctx.lr * gradient for value, gradient in zip(parameters, gradients, strict=True)]
        return tuple(parameters) if steps.rows else tuple(value.clone() for value in parameters)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *adjoint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        of_images, of_lr = torch.zeros_like(ctx.images), torch.zeros_like(ctx.lr)
        for index, rows in reversed(list(enumerate(ctx.steps.rows))):
            with torch.enable_grad():
                parameters, images = _leaves(ctx.visited[index]), ctx.images[rows].requires_grad_()
                gradients = ctx.steps.gradients(index, parameters, images, create_graph=True)
                along = torch.stack([(g * a).sum() for g, a in zip(gradients, adjoint, strict=True)]).sum()
                *turns, to_images = torch.autograd.grad(along, [*parameters, images], materialize_grads=True)
            of_lr -= along.detach()
            of_images.index_add_(0, rows, -ctx.lr * to_images)
            adjoint = tuple(a - ctx.lr * turn for a, turn in zip(adjoint, turns, strict=True))
        return of_images, of_lr, None


def _leaves(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [value.detach().requires_grad_() for value in values]


def trajectory_distance(
    end: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Squared distance from `end` to `target`, over that from `start` to `target`; 1 for one that stood still.

    Not finite if `start` is `target`.
    """

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
        rows = self._rows(len(images), generator)
        draws = None if self.dsa is None else [draw(self.dsa, generator, len(one)) for one in rows]
        end = unroll(self._network, start, images, labels, lr, rows, draws, self.dsa)
        return trajectory_distance(end, start, target)

    def _rows(self, count: int, generator: torch.Generator) -> list[torch.Tensor]:
        rows: list[torch.Tensor] = []
        while len(rows) < self.syn_steps:
            rows += batches(count, self.batch or count, generator)
        return rows[: self.syn_steps]

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
