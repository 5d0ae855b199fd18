"""Real pictures as a coded data set, without distillation: the codec alone, fitted to them and put into integers.

What the warm-up of a distillation does, for `thurl distill encode`: many small pictures of a class share a decoder, so
a set takes fewer bits than its pictures one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from thurl.distillation.coded import CodedDataset, CodedSlice
from thurl.distillation.ddr import rate
from thurl.distillation.geometry import CONTEXTS, DECODERS, CodecConfig
from thurl.distillation.integer import decode_images
from thurl.distillation.post_quantisation import post_quantise
from thurl.distillation.slices import plan_slices
from thurl.distillation.warm_up import WarmUpConfig, warm_up
from thurl.errors import DataError, UsageError
from thurl.messages import nearest


__all__ = ["EncodedPictures", "EncodingConfig", "encode_pictures", "fit_pictures"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodingConfig:
    """How to code pictures.

    Args:
        decoder: name of the synthesis, one of `thurl.distillation.geometry.DECODERS`.
        context, depth: of the entropy network, see `CodecConfig`.
        shared: one decoder for all classes; cheaper when there are few pictures.
        slice_size: pictures that share a decoder, at most.
        max_mse: how far rounding the networks may move the pictures, mean squared error in [0, 1].
        bits_per_class: size to reach, all counted; None: `warm_up.rate_weight` says how much bits matter.
        trials: fits to reach `bits_per_class` with.
        warm_up: of the fit.

    Raises:
        UsageError: a value outside its range.
    """

    decoder: str = "v0-0"
    context: int = 8
    depth: int = 2
    shared: bool = False
    slice_size: int = 1000
    max_mse: float = 5e-5
    bits_per_class: float | None = None
    trials: int = 6
    warm_up: WarmUpConfig = field(default_factory=lambda: WarmUpConfig(rate_weight=0.01, straight_through=0.1))

    def __post_init__(self) -> None:
        problems = []
        if self.decoder not in DECODERS:
            known = ", ".join(DECODERS)
            problems.append(f"decoder: {self.decoder!r} must be one of {known}{nearest(self.decoder, DECODERS)}")
        if self.bits_per_class is not None and not self.bits_per_class >= 1:
            problems.append(f"bits_per_class: {self.bits_per_class} must be 1 or more")
        if self.context not in CONTEXTS:
            problems.append(f"context: {self.context} must be one of {', '.join(map(str, CONTEXTS))}")
        if not 1 <= self.depth <= 16:
            problems.append(f"depth: {self.depth} must be 1 to 16")
        if self.trials < 1:
            problems.append(f"trials: {self.trials} must be 1 or more")
        if problems:
            raise UsageError(problems)

    def codec(self, images: NDArray[np.uint8]) -> CodecConfig:
        """Shapes for pictures (N, channels, H, W)."""
        _, channels, height, width = images.shape
        return CodecConfig(height, width, channels, self.context, self.depth, DECODERS[self.decoder])


@dataclass(frozen=True)
class EncodedPictures:
    """A coded data set of real pictures.

    Args:
        dataset: its integers.
        order: int64 (N,), the place among the given pictures of each sample.
    """

    dataset: CodedDataset
    order: NDArray[np.int64]

    def psnr(self, images: NDArray[np.uint8]) -> float:
        """Peak signal-to-noise ratio in dB of the decoded pictures against the given ones, over all of them together.

        Infinite where they are equal.
        """
        decoded = np.concatenate([decode_images(part) for part in self.dataset.slices])
        error = np.square(decoded.astype(np.float64) - images[self.order]).mean()
        return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def encode_pictures(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    classes: tuple[str, ...],
    config: EncodingConfig,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> EncodedPictures:
    """Code pictures at a given weight of bits, or at the size that `config.bits_per_class` asks for.

    The size falls as the weight rises, roughly as a power of it: each trial takes the weight that the trials before
    make likely. Of those that fit into the size the largest is kept; one less than 3 % below it is the last.

    Args:
        images: uint8 (N, channels, H, W).
        labels: (N,), 0 to the number of classes - 1.
        classes: names.
        config: see there.
        seed: of the fit; the same on every device up to rounding.
        device: to fit on.
        progress: called with iterations done and in all; with a size to reach, it may end before.

    Raises:
        DataError: pictures that do not fit, or a size that no trial reached.
    """
    if config.bits_per_class is None:
        return fit_pictures(images, labels, classes, config, seed=seed, device=device, progress=progress)
    target = config.bits_per_class
    tried: list[tuple[float, float]] = []
    best: tuple[float, EncodedPictures] | None = None
    weight = max(config.warm_up.rate_weight, 1e-6)
    for trial in range(config.trials):
        report = None if progress is None else _part(progress, trial, config.trials)
        one = replace(config, warm_up=replace(config.warm_up, rate_weight=weight))
        found = fit_pictures(images, labels, classes, one, seed=seed, device=device, progress=report)
        bits = rate(found.dataset).total_bits / len(classes)
        tried.append((weight, bits))
        if bits <= target and (best is None or bits > best[0]):
            best = bits, found
        if 0.97 * target <= bits <= target:
            break
        weight = _next_weight(tried, target)
    if best is None:
        least = min(bits for _, bits in tried)
        raise DataError(
            f"{target:.0f} bits per class were not reached in {len(tried)} trials, the least were {least:.0f}: take "
            "fewer pictures per class, a smaller decoder or one decoder for all classes"
        )
    return best[1]


def fit_pictures(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    classes: tuple[str, ...],
    config: EncodingConfig,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> EncodedPictures:
    """Code pictures once, see `encode_pictures`; `bits_per_class` and `trials` do not matter here."""
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels) or not len(images):
        raise DataError(f"pictures {images.shape} of {images.dtype}: uint8 (N, channels, H, W), one label for each")
    shapes = config.codec(images)
    generator = torch.Generator().manual_seed(seed)
    real = torch.from_numpy(images)
    found: list[tuple[CodedSlice, NDArray[np.int64]]] = []
    plans = plan_slices(np.asarray(labels), config.slice_size, shared=config.shared)
    for number, plan in enumerate(plans):
        target = real[torch.from_numpy(plan)].float().div(255).to(device)
        report = None if progress is None else _part(progress, number, len(plans))
        codec = warm_up(shapes, target, config.warm_up, generator, progress=report)
        found += zip(codec.coded(np.asarray(labels)[plan], post_quantise(codec, config.max_mse)), plan, strict=True)
    # Classes in order need no labels in the file.
    found.sort(key=lambda pair: int(pair[0].labels[0]))
    mean, std = _statistics(images)
    dataset = CodedDataset(tuple(part for part, _ in found), classes, mean, std)
    return EncodedPictures(dataset, np.concatenate([places for _, places in found]))


def _statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in units of [0, 1], four digits."""
    axes = (0, 2, 3)
    # A channel that is the same everywhere must not lead to a division by 0.
    deviation = np.maximum(images.std(axis=axes, dtype=np.float64), 1)
    mean = images.mean(axis=axes, dtype=np.float64)
    return tuple(round(v / 255, 4) for v in mean.tolist()), tuple(round(v / 255, 4) for v in deviation.tolist())


def _part(progress: Progress, number: int, parts: int) -> Progress:
    return lambda done, total: progress(number * total + done, parts * total)


def _next_weight(tried: list[tuple[float, float]], target: float) -> float:
    """The weight at which a line through the logarithms of the trials meets the target, or a little less."""
    goal = np.log(0.985 * target)
    points = sorted((float(np.log(bits)), float(np.log(weight))) for weight, bits in tried)
    above = [point for point in points if point[0] > goal]
    below = [point for point in points if point[0] <= goal]
    if above and below:
        (high, less), (low, more) = above[0], below[-1]
        share = (goal - low) / (high - low)
        return float(np.exp(more + share * (less - more)))
    # One side only: along the line of the two nearest; bits have been seen to fall with about the square root of the
    # weight, which serves for the first. Never further than 30 times.
    bits, weight = above[0] if above else below[-1]
    slope = -0.5
    if len(points) > 1:
        other = above[1] if above else below[-2]
        if other[1] != weight:
            slope = min((other[0] - bits) / (other[1] - weight), -0.05)
    return float(np.exp(weight + np.clip((goal - bits) / slope, -3.4, 3.4)))
