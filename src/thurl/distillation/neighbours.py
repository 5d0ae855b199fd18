"""Shifted copies of pictures, the one access pattern of all filters here.

A filter of its own for every slice is then one batched matrix product. A grouped convolution computes the same, but
on a CPU several times slower, above all backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


__all__ = ["neighbours"]

Offsets = tuple[tuple[int, int], ...]


def neighbours(padded: torch.Tensor, offsets: Sequence[tuple[int, int]], size: tuple[int, int]) -> torch.Tensor:
    """Windows of a picture, one per offset. Linear, and differentiable as often as wanted.

    Args:
        padded: (S, M, H, W), pictures with their border.
        offsets: K pairs (row, column) of a window's first pixel, 0 or more.
        size: height h and width w of a window; every window lies inside the picture.

    Returns:
        (S, K, M, h, w): entry k is `padded[:, :, row_k : row_k + h, column_k : column_k + w]`.
    """
    return _Gather.apply(padded, tuple(offsets), tuple(size))


def _gather(padded: torch.Tensor, offsets: Offsets, size: tuple[int, int]) -> torch.Tensor:
    height, width = size
    windows = padded.new_empty(padded.shape[0], len(offsets), padded.shape[1], height, width)
    for k, (row, column) in enumerate(offsets):
        windows[:, k].copy_(padded[:, :, row : row + height, column : column + width])
    return windows


def _scatter(windows: torch.Tensor, offsets: Offsets, border: tuple[int, int]) -> torch.Tensor:
    """Adjoint of `_gather`. Autograd's own would fill a whole picture with zeros for each of the windows."""
    height, width = windows.shape[-2:]
    padded = windows.new_zeros(windows.shape[0], windows.shape[2], *border)
    for k, (row, column) in enumerate(offsets):
        padded[:, :, row : row + height, column : column + width] += windows[:, k]
    return padded


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, offsets: Offsets, size: tuple[int, int]) -> torch.Tensor:
        ctx.offsets, ctx.border = offsets, tuple(padded.shape[-2:])
        return _gather(padded, offsets, size)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _Scatter.apply(gradients[0], ctx.offsets, ctx.border), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, windows: torch.Tensor, offsets: Offsets, border: tuple[int, int]) -> torch.Tensor:
        ctx.offsets, ctx.size = offsets, tuple(windows.shape[-2:])
        return _scatter(windows, offsets, border)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _Gather.apply(gradients[0], ctx.offsets, ctx.size), None, None
