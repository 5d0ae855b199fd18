"""What a picture alone tells: sharpness, noise, JPEG blocks, colourfulness, clipping. Batched.

All take RGB in [0, 1] of shape (B, 3, H, W), are computed on grey values 0 to 255 of the luma (BT.601) where nothing
else is said, and return (B,). They describe; none of them is a measure of quality. Noise makes a picture "sharper".
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from thurl.errors import DataError
from thurl.iqa.face_restoration.similarity import luma


__all__ = ["blockiness", "clipping", "colourfulness", "laplacian_variance", "noise_sigma", "tenengrad"]

_BLOCK = 8
# Median of |x| for a standard normal x.
_MAD = 0.6744897501960817
# High-pass filter of the Daubechies wavelet with two vanishing moments, in closed form.
_ROOT = math.sqrt(3.0)
_DB2 = tuple(v / (4 * math.sqrt(2.0)) for v in (1 - _ROOT, _ROOT - 3, 3 + _ROOT, -1 - _ROOT))


def tenengrad(pictures: torch.Tensor) -> torch.Tensor:
    """Mean squared gradient by 3x3 Sobel filters (divided by 8), in grey values squared per pixel."""
    grey = _grey(pictures, 3)
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=grey.dtype, device=grey.device) / 8.0
    gradients = functional.conv2d(grey, torch.stack([sobel, sobel.T])[:, None])
    return (gradients**2).sum(dim=1).flatten(1).mean(dim=1)


def laplacian_variance(pictures: torch.Tensor) -> torch.Tensor:
    """Variance of the response to the 3x3 Laplacian with four neighbours, in grey values squared."""
    grey = _grey(pictures, 3)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=grey.dtype, device=grey.device)
    return functional.conv2d(grey, kernel[None, None]).flatten(1).var(dim=1, unbiased=False)


def noise_sigma(pictures: torch.Tensor) -> torch.Tensor:
    """Standard deviation of white noise in grey values, estimated from the finest diagonal wavelet coefficients.

    Donoho and Johnstone (1994): median |d| / 0.6745 over the coefficients of the db2 wavelet that are not 0, which
    flat areas would otherwise pull down. Mean over the three colour channels.
    """
    _need(pictures, len(_DB2))
    kernel = torch.tensor(_DB2, dtype=pictures.dtype, device=pictures.device)
    channels = (pictures * 255.0).flatten(0, 1)[:, None]
    diagonal = functional.conv2d(channels, (kernel[:, None] * kernel)[None, None], stride=2).flatten(1).abs()
    diagonal = torch.where(diagonal > 1e-9, diagonal, torch.nan)
    sigma = torch.nan_to_num(diagonal.nanmedian(dim=1).values, nan=0.0) / _MAD
    return sigma.view(pictures.shape[0], -1).mean(dim=1)


def blockiness(pictures: torch.Tensor) -> torch.Tensor:
    """Excess of grey-value steps on a grid of 8 pixels over those beside it, without unit.

    For each of the eight positions that the grid can have: how much larger the steps on it are than the mean of the
    steps to both sides, divided by the mean step of the picture. The value is the largest of the eight minus their
    median, mean of both directions: about 0 without blocks, whatever the grid's position after a crop.
    """
    _need(pictures, 4 * _BLOCK)
    grey = luma(pictures) * 255.0
    return (_block_steps(grey) + _block_steps(grey.transpose(2, 3))) / 2


def colourfulness(pictures: torch.Tensor) -> torch.Tensor:
    """Hasler and Suesstrunk (2003), in grey values: 0 for grey pictures, about 80 for very colourful ones."""
    red, green, blue = (pictures * 255.0).flatten(2).unbind(dim=1)
    rg, yb = red - green, (red + green) / 2 - blue
    spread = torch.sqrt(rg.var(dim=1, unbiased=False) + yb.var(dim=1, unbiased=False))
    return spread + 0.3 * torch.sqrt(rg.mean(dim=1) ** 2 + yb.mean(dim=1) ** 2)


def clipping(pictures: torch.Tensor) -> torch.Tensor:
    """Share of the values (three per pixel) that are black or white, in [0, 1]."""
    half = 0.5 / 255.0
    return ((pictures < half) | (pictures > 1.0 - half)).flatten(1).to(pictures.dtype).mean(dim=1)


def _grey(pictures: torch.Tensor, side: int) -> torch.Tensor:
    _need(pictures, side)
    return luma(pictures) * 255.0


def _need(pictures: torch.Tensor, side: int) -> None:
    height, width = pictures.shape[-2:]
    if min(height, width) < side:
        raise DataError(f"{width}x{height} pixels: {side} or more are needed on both sides")


def _block_steps(grey: torch.Tensor) -> torch.Tensor:
    steps = (grey[..., 1:] - grey[..., :-1]).abs().mean(dim=(1, 2))  # (B, W - 1), one number per column boundary
    excess = steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2
    usable = excess.shape[1] // _BLOCK * _BLOCK
    phases = excess[:, :usable].view(grey.shape[0], -1, _BLOCK).mean(dim=1)  # (B, 8)
    # A flat picture has no steps and no blocks.
    scale = steps.mean(dim=1).clamp_min(1e-6)
    return (phases.max(dim=1).values - phases.median(dim=1).values) / scale
