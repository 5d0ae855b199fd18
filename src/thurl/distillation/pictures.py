"""Labelled pictures of one size, and batches of the real ones by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from thurl.errors import DataError, UsageError


__all__ = ["STATISTICS", "PictureSet", "RealBatches", "area_resize", "normalise", "split_pictures", "statistics"]

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
}
"""Mean and standard deviation per channel, of pixels in [0, 1], that published results normalise with."""


@dataclass(frozen=True)
class PictureSet:
    """Pictures and what is needed to train on them.

    Args:
        images: uint8 (N, channels, H, W), 1 or 3 channels.
        labels: int64 (N,), 0 to the number of classes - 1; every class has a picture.
        classes: names, at least two.
        mean, std: per channel, of pixels in [0, 1].

    Raises:
        DataError: all of it that does not hold.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        shape, problems = tuple(self.images.shape), []
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
            raise DataError(f"pictures {shape} of {self.images.dtype}: uint8 (N, 1 or 3, H, W) is needed")
        if self.labels.dtype != torch.int64 or tuple(self.labels.shape) != shape[:1]:
            raise DataError(
                f"labels {tuple(self.labels.shape)} of {self.labels.dtype}: int64, one for each of {shape[0]} "
                "pictures, is needed"
            )
        if len(self.classes) < 2:
            problems.append(f"one class ({', '.join(self.classes)}): at least two are needed to learn anything")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.classes):
            problems.append(
                f"labels {int(self.labels.min())} to {int(self.labels.max())}: {len(self.classes)} classes have names"
            )
        elif empty := [name for name, count in zip(self.classes, self.counts, strict=True) if not count]:
            problems.append(f"classes without a picture: {', '.join(empty)}; add pictures or leave the class out")
        if len(self.mean) != shape[1] or len(self.std) != shape[1] or not all(value > 0 for value in self.std):
            problems.append(
                f"mean {self.mean} and std {self.std}: one per channel ({shape[1]}), std above 0, is needed"
            )
        if problems:
            raise DataError("\n".join(problems))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def counts(self) -> list[int]:
        """Pictures of each class."""
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    def normalised(self, device: torch.device | str | None = None) -> torch.Tensor:
        """float32 (N, channels, H, W)."""
        return normalise(self.images.to(device), self.mean, self.std)

    def subset(self, indices: torch.Tensor) -> PictureSet:
        """The pictures at `indices`, int64, in their order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def draw(self, per_class: int, generator: torch.Generator) -> PictureSet:
        """`per_class` random pictures of each class without repetition, class after class.

        Raises:
            DataError: classes with fewer pictures.
        """
        short = [
            f"{name} has {count}"
            for name, count in zip(self.classes, self.counts, strict=True)
            if count < max(1, per_class)
        ]
        if short or per_class < 1:
            raise DataError(f"{per_class} pictures of each class are wanted: {', '.join(short) or 'at least 1'}")
        return self.subset(_draw(self.labels, len(self.classes), per_class, generator))


class RealBatches:
    """Real pictures as the utility losses draw them.

    Args:
        pictures: all of them.
        device: where the pictures are kept, as uint8, and batches are made.
    """

    def __init__(self, pictures: PictureSet, device: torch.device | str = "cpu"):
        self.pictures, self.device = pictures, device
        self._images = pictures.images.to(device)

    @property
    def classes(self) -> int:
        """Their number."""
        return len(self.pictures.classes)

    def draw(self, per_class: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pictures of every class without repetition; all of a class that has no more than `per_class`.

        Returns:
            Normalised float32 (N, channels, H, W) and int64 labels (N,), class after class.
        """
        chosen = _draw(self.pictures.labels, self.classes, per_class, generator)
        images = self._images[chosen.to(self.device)]
        labels = self.pictures.labels[chosen].to(self.device)
        return normalise(images, self.pictures.mean, self.pictures.std), labels


def _draw(labels: torch.Tensor, classes: int, per_class: int, generator: torch.Generator) -> torch.Tensor:
    """Indices of the first `per_class` of each class in a random order, class after class."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels, minlength=classes)
    within = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return order[within < per_class]


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(..., channels, H, W): uint8, or floating pixels in [0, 1], to `(x - mean) / std`; float32 from uint8."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    shift = torch.tensor(mean, device=images.device, dtype=pixels.dtype)[:, None, None]
    return (pixels - shift) / torch.tensor(std, device=images.device, dtype=pixels.dtype)[:, None, None]


def statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 (N, channels, H, W), in units of [0, 1].

    A channel that is the same everywhere has the deviation 1 / 255, so that nothing is divided by 0.
    """
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    deviation = pixels.std(dim=1, correction=0).clamp(min=1 / 255)
    return tuple(round(v, 4) for v in pixels.mean(dim=1).tolist()), tuple(round(v, 4) for v in deviation.tolist())


def area_resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pictures made smaller: each pixel is the mean over its area, parts of pixels counted as such.

    Args:
        images: uint8 (N, channels, H, W).

    Returns:
        uint8 (N, channels, height, width), rounded.

    Raises:
        UsageError: a larger size is wanted than there is.
    """
    found = images.shape[-2:]
    if height > found[0] or width > found[1] or min(height, width) < 1:
        raise UsageError(f"size: {height}x{width} must be at least 1 and at most the pictures' {found[0]}x{found[1]}")
    if (height, width) == tuple(found):
        return images
    rows, columns = _area(found[0], height), _area(found[1], width)
    parts = [(rows @ part.float() @ columns.T).round().to(torch.uint8) for part in images.split(4096)]
    return torch.cat(parts)


def _area(size: int, wanted: int) -> torch.Tensor:
    """(wanted, size): the part of each pixel that falls into each new one, rows summing to 1."""
    step = size / wanted
    start = torch.arange(wanted, dtype=torch.float64)[:, None] * step
    pixel = torch.arange(size, dtype=torch.float64)
    overlap = torch.minimum(start + step, pixel + 1) - torch.maximum(start, pixel)
    return (overlap.clamp(min=0) / step).float()


def split_pictures(
    pictures: PictureSet, train: int, test: int, generator: torch.Generator
) -> tuple[PictureSet, PictureSet]:
    """Random disjoint parts with `train` and `test` pictures of each class.

    Raises:
        DataError: classes with fewer than both together.
    """
    drawn = pictures.draw(train + test, generator)
    within = torch.arange(len(drawn)) % (train + test)
    if min(train, test) < 1:
        raise DataError(f"{train} pictures to train and {test} to test with, of each class: at least 1 is needed")
    return drawn.subset((within < train).nonzero()[:, 0]), drawn.subset((within >= train).nonzero()[:, 0])
