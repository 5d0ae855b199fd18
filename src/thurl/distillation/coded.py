"""A distilled data set as integers: what the file stores, and what every decoder turns into the same pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.geometry import CodecConfig
from thurl.errors import DataError


__all__ = ["GROUPS", "CodedDataset", "CodedGroup", "CodedSlice", "group_shapes"]

Integers = NDArray[np.int32]

GROUPS = ("arm_weight", "arm_bias", "upsampling_weight", "synthesis_weight", "synthesis_bias")
"""The tensors of a slice's networks by their step: with two dimensions or more weights, else biases."""


@dataclass(frozen=True)
class CodedGroup:
    """Quantised tensors with one step.

    Args:
        exponent: a value is its integer times `2 ** -exponent`; 0 to 16.
        values: int32 tensors in the order of the shapes in `CodecConfig`, at most 65535 in size.
    """

    exponent: int
    values: tuple[Integers, ...]


@dataclass(frozen=True)
class CodedSlice:
    """Samples that share a decoder.

    Args:
        config: shapes.
        labels: int32 (samples,), class of each sample.
        latents: int32 (samples, height, width) per level, the finest first.
        nets: one group for each name in `GROUPS`.

    Raises:
        DataError: shapes or ranges do not fit the configuration.
    """

    config: CodecConfig
    labels: Integers
    latents: tuple[Integers, ...]
    nets: dict[str, CodedGroup]

    def __post_init__(self) -> None:
        count = len(self.labels)
        if count == 0 or self.labels.ndim != 1:
            raise DataError(f"labels of shape {self.labels.shape}: a slice needs one label for each of its samples")
        wanted = [(count, *size) for size in self.config.level_sizes]
        found = [level.shape for level in self.latents]
        if found != wanted:
            raise DataError(f"latents of shapes {found}: {wanted} are needed for {count} samples of this size")
        if set(self.nets) != set(GROUPS):
            raise DataError(f"networks {sorted(self.nets)}: {sorted(GROUPS)} are needed")
        for name, shapes in group_shapes(self.config).items():
            group = self.nets[name]
            if [value.shape for value in group.values] != shapes:
                raise DataError(f"{name} of shapes {[v.shape for v in group.values]}: {shapes} are needed")
            if not 0 <= group.exponent <= 16:
                raise DataError(f"{name}: step 2^-{group.exponent} must be between 1 and 2^-16")
            if any(np.abs(value.astype(np.int64)).max(initial=0) > 65535 for value in group.values):
                raise DataError(f"{name}: a quantised value is above 65535 in size")


@dataclass(frozen=True)
class CodedDataset:
    """A whole distilled data set.

    Args:
        slices: all of one picture size and number of channels.
        classes: names, one per label.
        mean, std: per channel, of the normalisation that classifiers are trained with (pictures lie in [0, 1]).
        hints: how to train on it, JSON values only: `lr`, `epochs`, `augmentation`, `network`.
        soft_labels: float16 (samples, classes) logits in the order of the samples, or None for hard labels.
    """

    slices: tuple[CodedSlice, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hints: dict[str, Any] = field(default_factory=dict)
    soft_labels: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        if not self.slices:
            raise DataError("a data set without slices: at least one is needed")
        sizes = {(s.config.height, s.config.width, s.config.channels) for s in self.slices}
        if len(sizes) > 1:
            raise DataError(f"slices of different pictures {sorted(sizes)}: all must be of one size")
        labels = self.labels
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise DataError(f"labels {labels.min()} to {labels.max()}: {len(self.classes)} classes have names")
        if self.soft_labels is not None and self.soft_labels.shape != (len(labels), len(self.classes)):
            raise DataError(f"soft labels of shape {self.soft_labels.shape}: one row per sample and column per class")

    @property
    def labels(self) -> Integers:
        """int32 (samples,), slice after slice."""
        return np.concatenate([s.labels for s in self.slices])


def group_shapes(config: CodecConfig) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of each group of `GROUPS`, in order."""
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in GROUPS}
    for net in ("arm", "upsampling", "synthesis"):
        for shape in getattr(config, f"{net}_shapes"):
            found[f"{net}_{'weight' if len(shape) >= 2 else 'bias'}"].append(shape)
    return found
