"""What a utility loss is, and what the shipped ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from thurl.distillation.pictures import RealBatches


__all__ = ["Utility", "class_means", "known_gradient"]


class Utility(ABC):
    """A loss over the pictures of a synthetic set, small when they are as useful as real ones.

    A trainer calls `loss`, `backward` on the result, changes the pictures, then calls `update`. What a loss remembers
    between calls (a network under training, a learned rate) belongs in `state_dict`; all it draws comes from the
    generator, whose state the trainer saves. A run that goes on from both is then the uninterrupted one, bit by bit.
    """

    @abstractmethod
    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, real: RealBatches, generator: torch.Generator
    ) -> torch.Tensor:
        """One loss.

        Args:
            images: (N, channels, H, W), the whole synthetic set, normalised, floating.
            labels: int64 (N,).
            real: draws normalised real pictures by class.
            generator: on the CPU.

        Returns:
            A scalar, differentiable in `images`.
        """

    def update(self, scale: float = 1.0) -> None:  # noqa: B027, most have nothing to do here
        """Step what the loss itself learns, after `backward`; most learn nothing.

        Args:
            scale: what the loss was multiplied by before `backward`.
        """

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts, lists and tensors, which `thurl.training.state_files.save_state` writes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but {', '.join(state)} was saved")


def class_means(values: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Mean of the rows of each class.

    Args:
        values: (N, F).
        labels: int64 (N,).

    Returns:
        (classes, F); NaN for a class without rows.
    """
    of_class = torch.nn.functional.one_hot(labels, classes).to(values.dtype)
    counts = of_class.sum(dim=0)[:, None]
    # Not 0 / 0, whose gradient would be NaN for all classes.
    return ((of_class.T @ values) / counts.clamp(min=1)).where(counts > 0, torch.nan)


def known_gradient(images: torch.Tensor, value: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """The scalar `value` as a function of `images` with the gradient `slope`, of their shape.

    For sums whose parts have been differentiated one after the other, so that one graph at a time was in memory.
    """
    return _KnownGradient.apply(images, value, slope)


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, value: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outside: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return outside * slope, None, None
