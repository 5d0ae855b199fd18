"""From latents to pictures: a learned upsampling joins the levels, a small network mixes them into channels.

Source: official code of arXiv 2507.17221. Latents enter as integers, not divided by the gain. Pictures are meant to
lie in [0, 1] and are not clamped here; what a file stores for them is `thurl.distillation.integer`.

Features are (S, channels, B, h, w): a layer is then one batched matrix product over slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812

from thurl.distillation.geometry import KERNEL
from thurl.distillation.mixing import mix
from thurl.distillation.neighbours import neighbours


__all__ = ["bicubic_kernel", "synthesise", "upsample", "upsample_pyramid"]

_HALF = (9 / 256, 27 / 256, -67 / 256, -225 / 256)
_WINDOW = tuple((row, column) for row in range(5) for column in range(5))
_SMALL = 64  # pixels, up to which a picture is upsampled by one matrix product: fewer steps than by windows
_AROUND = tuple((row, column) for row in range(3) for column in range(3))


def bicubic_kernel() -> torch.Tensor:
    """(8, 8) float32, the upsampling kernel at the start; its four phases sum to 1, so that constants stay."""
    line = torch.tensor([*_HALF, *_HALF[::-1]])
    return torch.outer(line, line)


def upsample(features: torch.Tensor, kernel: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Twice the size, by a transposed convolution of stride 2 on pictures with repeated borders, then cropped.

    Args:
        features: (S, M, h, w).
        kernel: (S, 8, 8), shared by all pictures of a slice.
        size: height and width to crop to, at most 2h and 2w.

    Returns:
        (S, M, *size).
    """
    slices, count, height, width = features.shape
    if height * width <= _SMALL:
        whole = torch.bmm(features.flatten(2), _matrix(kernel, height, width)).view(slices, count, 2 * height, -1)
        return whole[..., : size[0], : size[1]]
    windows = neighbours(F.pad(features, (2, 2, 2, 2), mode="replicate"), _WINDOW, (height, width))
    filters = F.pad(kernel.flatten(1), (0, 1))[:, _phases(kernel.device)]
    phases = torch.bmm(filters, windows.flatten(2)).view(slices, 2, 2, count, height, width)
    whole = phases.permute(0, 3, 4, 1, 5, 2).reshape(slices, count, 2 * height, 2 * width)
    return whole[..., : size[0], : size[1]]


def upsample_pyramid(levels: Sequence[torch.Tensor], kernel: torch.Tensor) -> torch.Tensor:
    """All levels at full size, joined step by step from the coarsest.

    Args:
        levels: (S, B, h, w), the finest first.
        kernel: (S, 8, 8).

    Returns:
        (S, L, B, H, W); channel l is level l.
    """
    joined = levels[-1].unsqueeze(1)
    for level in reversed(levels[:-1]):
        size = (level.shape[-2], level.shape[-1])
        larger = upsample(joined.flatten(1, 2), kernel, size).unflatten(1, joined.shape[1:3])
        joined = torch.cat([level.unsqueeze(1), larger], dim=1)
    return joined


def synthesise(features: torch.Tensor, network: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pictures from upsampled latents.

    Args:
        features: (S, L, B, H, W), see `upsample_pyramid`.
        network: weight (S, out, in, k, k) and bias (S, out) of each convolution: 1x1 ones with ReLU between, the last
            of them giving the channels of the pictures, then two residual 3x3 ones, ReLU after the first.

    Returns:
        (S, B, channels, H, W), about [0, 1], not clamped.
    """
    slices, _, count, height, width = features.shape
    layers = list(zip(network[::2], network[1::2], strict=True))
    hidden = mix(features.flatten(2), [part for w, b in layers[:-2] for part in (w.flatten(2), b)])
    for index, (weight, bias) in enumerate(layers[-2:]):
        pictures = F.pad(hidden.view(slices, -1, height, width), (1, 1, 1, 1), mode="replicate")
        windows = neighbours(pictures, _AROUND, (height, width)).view(slices, -1, hidden.shape[2])
        filters = weight.permute(0, 1, 3, 4, 2).flatten(2)  # the windows come shift by shift, then channel by channel
        hidden = hidden + torch.baddbmm(bias[:, :, None], filters, windows)
        if index == 0:
            hidden = hidden.relu()
    return hidden.view(slices, -1, count, height, width).transpose(1, 2)


def _matrix(kernel: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(S, h w, 4 h w): the upsampling of a small picture as a matrix."""
    return (kernel.flatten(1) @ _uses(height, width, kernel.dtype, kernel.device)).view(
        len(kernel), height * width, 4 * height * width
    )


@cache
def _uses(height: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(64, 4 (h w)^2): how often a place of the kernel joins a pixel to one of the larger picture."""

    def line(length: int) -> torch.Tensor:
        uses = torch.zeros(KERNEL, length, 2 * length, dtype=dtype)
        for after in range(2 * length):
            for tap in range((after + 1) % 2, KERNEL, 2):
                before = (after + KERNEL // 2 - 1 - tap) // 2
                uses[tap, min(max(before, 0), length - 1), after] += 1  # the border is repeated
        return uses

    with torch.inference_mode(False):  # what is kept must serve training later
        uses = torch.einsum("ahy,bwx->abhwyx", line(height), line(width))
        return uses.reshape(KERNEL**2, -1).to(device)


@cache
def _phases(device: torch.device) -> torch.Tensor:
    """(4, 25) places in the kernel, by parity of row and column of the result and by window; 64 where it has none."""
    taps = [[KERNEL // 2 - 1 + parity - 2 * (window - 2) for window in range(5)] for parity in range(2)]
    places = [
        [row * KERNEL + column if max(row, column) < KERNEL and min(row, column) >= 0 else KERNEL**2
         for row in taps[i] for column in taps[j]]
        for i in range(2)
        for j in range(2)
    ]  # fmt: skip
    with torch.inference_mode(False):
        return torch.tensor(places, device=device)
