"""Differentiable Siamese augmentation (Zhao and Bilen 2021, arXiv 2102.08259), as dataset distillation uses it.

One operation per batch, drawn from six; its numbers are drawn per picture, or once for a whole batch and its real or
synthetic partner. A draw is data of its own: applied twice, it does the same to both. All randomness comes from an
explicit `torch.Generator` on the CPU, so the draws are those of any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from thurl.errors import UsageError


__all__ = ["OPERATIONS", "Draw", "DsaConfig", "augment", "augment_classes", "augment_pair", "draw"]

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""Names and order of the official strategy."""


@dataclass(frozen=True)
class DsaConfig:
    """Strengths; the defaults are those of the official code. At 0 (`scale` at 1) an operation changes nothing.

    Args:
        operations: drawn from with equal chance.
        brightness: added, within +- half of it.
        saturation: factor about the mean over channels, 1 +- this.
        contrast: factor about the mean of the picture, 1 +- this.
        crop: largest shift as a part of the side; zeros come in at the border.
        cutout: side of the zeroed square as a part of the picture's side.
        flip: chance of a mirrored picture.
        scale: largest factor of either axis, at least 1; the smallest is its inverse.
        rotate: largest angle in degrees, either way.

    Raises:
        UsageError: an unknown operation or a value outside its range.
    """

    operations: tuple[str, ...] = OPERATIONS
    brightness: float = 1.0
    saturation: float = 1.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0

    def __post_init__(self) -> None:
        problems = []
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or not self.operations:
            problems.append(f"operations: {list(self.operations)} must be some of {', '.join(OPERATIONS)}")
        for name in ("saturation", "contrast", "crop", "cutout", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name}: {getattr(self, name)} must be between 0 and 1")
        if not self.brightness >= 0:
            problems.append(f"brightness: {self.brightness} must be at least 0")
        if not 1 <= self.scale <= 4:
            problems.append(f"scale: {self.scale} must be between 1 and 4")
        if not 0 <= self.rotate <= 180:
            problems.append(f"rotate: {self.rotate} must be between 0 and 180 degrees")
        if problems:
            raise UsageError(problems)


@dataclass(frozen=True)
class Draw:
    """One operation and its random numbers.

    Attributes:
        operation: one of `OPERATIONS`.
        numbers: float32 (1, 3) for all pictures of any batch, or (N, 3) for one batch of N; in [0, 1).
    """

    operation: str
    numbers: torch.Tensor


def draw(config: DsaConfig, generator: torch.Generator, count: int | None = None) -> Draw:
    """Draw an operation, and its numbers once (`count` None) or for each of `count` pictures.

    The generator moves on by as much whatever the operation.
    """
    at = int(torch.randint(len(config.operations), (1,), generator=generator))
    return Draw(config.operations[at], torch.rand(1 if count is None else count, 3, generator=generator))


def augment(images: torch.Tensor, drawn: Draw, config: DsaConfig) -> torch.Tensor:
    """Apply a draw.

    Args:
        images: (N, channels, H, W), floating, usually normalised; zeros come in at borders and cutouts.
        drawn: of one row, or of N.

    Returns:
        A tensor of the same shape and dtype, differentiable in `images`.

    Raises:
        ValueError: the draw is for another number of pictures.
    """
    if len(drawn.numbers) not in (1, len(images)):
        raise ValueError(f"a draw for {len(drawn.numbers)} pictures does not fit a batch of {len(images)}")
    numbers = drawn.numbers.to(images.device, images.dtype).expand(len(images), -1)
    return _APPLY[drawn.operation](images, numbers, config)


def augment_classes(
    images: torch.Tensor, labels: torch.Tensor, drawn: Sequence[Draw], config: DsaConfig
) -> torch.Tensor:
    """Apply one shared draw per class: all classes with the same operation at once.

    Args:
        images: (N, channels, H, W).
        labels: int64 (N,), each an index into `drawn`.
        drawn: one draw of one row per class.

    Returns:
        (N, channels, H, W) in the order given.
    """
    numbers = torch.cat([one.numbers for one in drawn]).to(images.device)
    kinds = torch.tensor([OPERATIONS.index(one.operation) for one in drawn], device=images.device)[labels]
    places, parts = [], []
    for index, operation in enumerate(OPERATIONS):
        chosen = (kinds == index).nonzero()[:, 0]
        if len(chosen):
            places.append(chosen)
            parts.append(augment(images[chosen], Draw(operation, numbers[labels[chosen]]), config))
    return torch.cat(parts)[torch.cat(places).argsort()] if parts else images


def augment_pair(
    real: torch.Tensor,
    real_labels: torch.Tensor,
    synthetic: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    config: DsaConfig,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and synthetic pictures, each class of both under one draw of its own; see `augment_classes`."""
    drawn = [draw(config, generator) for _ in range(classes)]
    return augment_classes(real, real_labels, drawn, config), augment_classes(synthetic, labels, drawn, config)


def _column(numbers: torch.Tensor, index: int) -> torch.Tensor:
    return numbers[:, index, None, None, None]


def _color(images: torch.Tensor, numbers: torch.Tensor, config: DsaConfig) -> torch.Tensor:
    images = images + config.brightness * (_column(numbers, 0) - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (1 + config.saturation * (2 * _column(numbers, 1) - 1))
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return middle + (images - middle) * (1 + config.contrast * (2 * _column(numbers, 2) - 1))


def _integers(numbers: torch.Tensor, count: int) -> torch.Tensor:
    # The minimum guards against a product rounded up to `count` in a short dtype.
    return (numbers * count).long().clamp(max=count - 1)


def _crop(images: torch.Tensor, numbers: torch.Tensor, config: DsaConfig) -> torch.Tensor:
    height, width = images.shape[-2:]
    down, right = int(height * config.crop + 0.5), int(width * config.crop + 0.5)
    padded = functional.pad(images, (right, right, down, down))
    rows = _integers(numbers[:, 0], 2 * down + 1)[:, None] + torch.arange(height, device=images.device)
    columns = _integers(numbers[:, 1], 2 * right + 1)[:, None] + torch.arange(width, device=images.device)
    every = torch.arange(len(images), device=images.device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _cutout(images: torch.Tensor, numbers: torch.Tensor, config: DsaConfig) -> torch.Tensor:
    hidden = []
    for axis, side in enumerate(images.shape[-2:]):
        size = int(side * config.cutout + 0.5)
        # The square's middle is any pixel, so a part of it may lie outside. Even sizes have one more place.
        first = _integers(numbers[:, axis], side + 1 - size % 2)[:, None] - size // 2
        place = torch.arange(side, device=images.device)
        hidden.append((place >= first) & (place < first + size))
    return images.masked_fill((hidden[0][:, :, None] & hidden[1][:, None, :])[:, None], 0)


def _flip(images: torch.Tensor, numbers: torch.Tensor, config: DsaConfig) -> torch.Tensor:
    return torch.where(_column(numbers, 0) < config.flip, images.flip(-1), images)


def _scale(images: torch.Tensor, numbers: torch.Tensor, config: DsaConfig) -> torch.Tensor:
    low = 1 / config.scale
    factors = low + numbers[:, :2] * (config.scale - low)
    zero = torch.zeros_like(factors[:, 0])
    return _affine(images, torch.stack([factors[:, 0], zero, zero, factors[:, 1]], dim=1))


def _rotate(images: torch.Tensor, numbers: torch.Tensor, config: DsaConfig) -> torch.Tensor:
    angle = (2 * numbers[:, 0] - 1) * (config.rotate * torch.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    return _affine(images, torch.stack([cosine, -sine, sine, cosine], dim=1))


def _affine(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    theta = functional.pad(matrix.view(-1, 2, 2), (0, 1))
    grid = functional.affine_grid(theta, list(images.shape), align_corners=True)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


_APPLY = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}
