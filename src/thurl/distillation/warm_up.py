"""Start of a distilled data set: every slice is first fitted to real pictures, as an image codec.

Source: official code of arXiv 2507.17221. Per slice: mean squared error + `rate_weight` * bits per pixel, several
random candidates for a number of iterations, the best of them for as many again, and the winner is kept. Deliberate
differences: candidates of all slices train at once, as further slices; candidates are compared by what will be
shipped, that is with hard rounding; a survivor keeps the moments of its optimiser ([unknown] officially).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from thurl.distillation.codec import LatentCodec
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.slices import clip_gradients
from thurl.errors import DataError, UsageError


__all__ = ["WarmUpConfig", "slice_losses", "warm_up"]


@dataclass(frozen=True)
class WarmUpConfig:
    """How to fit a codec to real pictures; the defaults are the official values where there are such.

    Args:
        iterations: of every candidate, and again of those that are kept.
        candidates: random starts of each slice.
        keep: candidates that train on; the best of them is the result.
        rate_weight: of bits per pixel against mean squared error, 0 or more. The official values are 0.1 (trajectory
            matching) and 1e-6 (the other two).
        lr: of Adam.
        clip: largest norm of a slice's gradient.
        temperature: of the soft rounding.
        noise: parameter a of the Kumaraswamy noise.
        straight_through: share of the last iterations that train with hard rounding (officially none), 0 to 1.
        latents_at_once: saves memory, see `LatentCodec.forward`.

    Raises:
        UsageError: a value outside its range.
    """

    iterations: int = 400
    candidates: int = 5
    keep: int = 2
    rate_weight: float = 0.1
    lr: float = 1e-2
    clip: float = 0.1
    temperature: float = 0.3
    noise: float = 2.0
    straight_through: float = 0.0
    latents_at_once: int | None = None

    def __post_init__(self) -> None:
        problems = []
        for name in ("iterations", "candidates", "keep"):
            if getattr(self, name) < 1:
                problems.append(f"{name}: {getattr(self, name)} must be 1 or more")
        if self.keep > self.candidates:
            problems.append(f"keep: {self.keep} must be at most the number of candidates, {self.candidates}")
        for name in ("lr", "clip", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                problems.append(f"{name}: {getattr(self, name)} must be above 0")
        if not 0 <= self.rate_weight < math.inf:
            problems.append(f"rate_weight: {self.rate_weight} must be 0 or more")
        if not 1 <= self.noise < 64:
            problems.append(f"noise: {self.noise} must be 1 to 64")
        if not 0 <= self.straight_through <= 1:
            problems.append(f"straight_through: {self.straight_through} must be 0 to 1")
        if self.latents_at_once is not None and self.latents_at_once < 1:
            problems.append(f"latents_at_once: {self.latents_at_once} must be 1 or more")
        if problems:
            raise UsageError(problems)


def slice_losses(images: torch.Tensor, bits: torch.Tensor, target: torch.Tensor, rate_weight: float) -> torch.Tensor:
    """Mean squared error plus weighted bits per pixel, of each slice.

    Args:
        images, target: (S, B, channels, H, W).
        bits: (S, B).
        rate_weight: see `WarmUpConfig`.

    Returns:
        (S,).
    """
    error = (images - target).square().mean(dim=(1, 2, 3, 4))
    return error + rate_weight * bits.mean(dim=1) / math.prod(target.shape[-2:])


def warm_up(
    config: CodecConfig,
    images: torch.Tensor,
    settings: WarmUpConfig,
    generator: torch.Generator,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> LatentCodec:
    """A codec of real pictures.

    Args:
        config: shapes.
        images: float (S, B, channels, H, W) in [0, 1], the pictures of each slice; left as they are. The codec comes
            to be on their device.
        settings: see there.
        generator: of the first values and the noise, on the CPU: the same run on every device.
        progress: called after every iteration with its number, from 1, and how many there are.

    Raises:
        DataError: pictures of another shape, not finite or outside [0, 1]; or no candidate of a slice stayed finite.
    """
    _check_images(config, images)
    images = images.to(torch.float32)
    slices, samples = images.shape[:2]
    total = 2 * settings.iterations
    codec = LatentCodec(config, slices * settings.candidates, samples, generator=generator).to(images.device)
    optimizer = torch.optim.Adam(codec.parameters(), lr=settings.lr)
    stages = ((0, settings.candidates, settings.keep), (settings.iterations, settings.keep, 1))
    for done, candidates, keep in stages:
        target = images.repeat_interleave(candidates, dim=0)
        for iteration in range(done, done + settings.iterations):
            hard = iteration >= total * (1 - settings.straight_through)
            _step(codec, optimizer, target, settings, None if hard else generator)
            if progress is not None:
                progress(iteration + 1, total)
        decoded = codec.hard(latents_at_once=settings.latents_at_once)
        losses = slice_losses(decoded.images, decoded.bits, target, settings.rate_weight)
        codec, optimizer = _survivors(codec, optimizer, losses.view(slices, candidates), keep)
    return codec


def _step(
    codec: LatentCodec,
    optimizer: torch.optim.Optimizer,
    target: torch.Tensor,
    settings: WarmUpConfig,
    generator: torch.Generator | None,
) -> None:
    """One update; without a generator with hard rounding."""
    noise = None if generator is None else codec.draw_noise("kumaraswamy", settings.noise, generator)
    output = codec(noise, settings.temperature, latents_at_once=settings.latents_at_once)
    optimizer.zero_grad(set_to_none=True)
    # Slices share nothing, so the gradient of the sum is that of each slice alone.
    slice_losses(output.images, output.bits, target, settings.rate_weight).sum().backward()
    clip_gradients(codec.parameters(), settings.clip)
    optimizer.step()


def _survivors(
    codec: LatentCodec, optimizer: torch.optim.Optimizer, losses: torch.Tensor, keep: int
) -> tuple[LatentCodec, torch.optim.Optimizer]:
    """The `keep` best candidates of each slice, with the state of the optimiser."""
    slices, candidates = losses.shape
    ranked = losses.nan_to_num(nan=math.inf, posinf=math.inf)
    if ranked.min(dim=1).values.isinf().any():
        broken = ranked.min(dim=1).values.isinf().nonzero().flatten().tolist()
        raise DataError(f"slices {broken}: no candidate of the warm-up stayed finite; lower its `lr`")
    best = ranked.argsort(dim=1, stable=True)[:, :keep]
    rows = (best + candidates * torch.arange(slices, device=best.device)[:, None]).flatten()
    kept = codec.select(rows)
    moved = torch.optim.Adam(kept.parameters(), lr=optimizer.param_groups[0]["lr"])
    for old, new in zip(codec.parameters(), kept.parameters(), strict=True):
        state = optimizer.state[old]
        moved.state[new] = {name: value[rows] if value.ndim else value.clone() for name, value in state.items()}
    return kept, moved


def _check_images(config: CodecConfig, images: torch.Tensor) -> None:
    wanted = (config.channels, config.height, config.width)
    if images.ndim != 5 or tuple(images.shape[2:]) != wanted or 0 in images.shape:
        raise DataError(f"images of shape {tuple(images.shape)}: (slices, samples, {', '.join(map(str, wanted))})")
    if not images.is_floating_point():
        raise DataError(f"images of type {images.dtype}: floats in [0, 1] are needed; divide bytes by 255")
    if not ((images >= 0) & (images <= 1)).all():  # also false for NaN
        raise DataError("images outside [0, 1] or not finite: the warm-up takes them without normalisation")
