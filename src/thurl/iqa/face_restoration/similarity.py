"""Distances between a restored picture and its original (GT) or its degraded input (LQ): batched, differentiable.

PSNR; SSIM (Wang et al. 2004) with the Gaussian window of 11 pixels; MS-SSIM (Wang et al. 2003); agreement with the
input after both are averaged down, where the input can still be trusted; shift of the mean colour in CIE Lab.
SSIM is the mean over positions at which the window lies inside the picture, as in the authors' code and in
scikit-image with `gaussian_weights=True, use_sample_covariance=False`; tests hold the two together.
Luma is that of ITU-R BT.601 in [16, 235]/255, MATLAB's `rgb2ycbcr`, on which the field reports PSNR and SSIM of Y.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from thurl.errors import DataError


__all__ = ["box_downsample", "colour_shift", "luma", "ms_ssim", "psnr", "ssim", "to_lab"]

WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_LEVELS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = (WINDOW - 1) * 2 ** (len(_LEVELS) - 1) + 1
"""Smallest width and height for MS-SSIM, in pixels: the window must fit into the coarsest of five scales."""


def luma(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) RGB in [0, 1] to (B, 1, H, W), Y of BT.601 in [16, 235]/255."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=pictures.dtype, device=pictures.device) / 255.0
    return (pictures * weights[:, None, None]).sum(dim=1, keepdim=True) + 16.0 / 255.0


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite for equal pictures.

    Args:
        a, b: (B, C, H, W) in [0, 1].

    Returns:
        (B,).
    """
    _same_shape(a, b)
    return -10.0 * torch.log10(((a - b) ** 2).flatten(1).mean(dim=1))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity, mean over channels and positions.

    Args:
        a, b: (B, C, H, W) in [0, 1], width and height 11 or more.

    Returns:
        (B,) in [-1, 1], 1 for equal pictures.
    """
    return _ssim_parts(a, b)[0]


def ms_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multi-scale structural similarity: five scales, each the 2x2 mean of the one before.

    Negative contrast terms count as 0: a power of them is not defined.

    Args:
        a, b: (B, C, H, W) in [0, 1], width and height 161 or more.

    Returns:
        (B,) in [0, 1].
    """
    if min(a.shape[-2:]) < MS_SSIM_SIDE:
        raise DataError(f"{a.shape[-1]}x{a.shape[-2]} pixels: MS-SSIM needs {MS_SSIM_SIDE} or more on both sides")
    result = torch.ones(a.shape[0], dtype=a.dtype, device=a.device)
    for level, weight in enumerate(_LEVELS):
        full, contrast = _ssim_parts(a, b)
        part = full if level == len(_LEVELS) - 1 else contrast
        result = result * part.clamp_min(0.0) ** weight
        a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
    return result


def box_downsample(pictures: torch.Tensor, factor: int, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Mean over boxes.

    Args:
        pictures: (B, C, H, W).
        factor: size of the box in pixels.
        size: picture size (H, W) to which `factor` refers, when `pictures` have another one (an input that was stored
            smaller than its restoration).

    Returns:
        (B, C, size[0] // factor, size[1] // factor).
    """
    height, width = size or pictures.shape[-2:]
    if min(height, width) < factor:
        raise DataError(f"{width}x{height} pixels: nothing is left at 1/{factor} of the size")
    return functional.interpolate(pictures, size=(height // factor, width // factor), mode="area")


def colour_shift(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance of the mean colours in CIE Lab (D65); about 2 is the least that is seen on large areas.

    Args:
        a, b: (B, 3, H, W) and (B, 3, h, w) sRGB in [0, 1].

    Returns:
        (B,), 0 or more.
    """
    difference = to_lab(a).flatten(2).mean(dim=2) - to_lab(b).flatten(2).mean(dim=2)
    return torch.linalg.vector_norm(difference, dim=1)


def to_lab(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) sRGB in [0, 1] to CIE 1976 L*a*b* under D65, 2 degrees; L in [0, 100]."""
    linear = torch.where(
        pictures > 0.04045, ((pictures.clamp_min(0.0) + 0.055) / 1.055).clamp_min(1e-12) ** 2.4, pictures / 12.92
    )
    to_xyz = torch.tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
        dtype=pictures.dtype,
        device=pictures.device,
    )
    white = torch.tensor([0.95047, 1.0, 1.08883], dtype=pictures.dtype, device=pictures.device)
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz, linear) / white[:, None, None]
    f = torch.where(xyz > 0.008856, xyz.clamp_min(1e-12) ** (1 / 3), 7.787 * xyz + 16.0 / 116.0)
    x, y, z = f.unbind(dim=1)
    return torch.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], dim=1)


def _ssim_parts(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and its contrast-structure part, (B,) each."""
    _same_shape(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise DataError(f"{a.shape[-1]}x{a.shape[-2]} pixels: SSIM needs {WINDOW} or more on both sides")
    c1, c2 = _K1**2, _K2**2
    count = a.shape[1]
    moments = _blur(torch.cat([a, b, a * a, b * b, a * b], dim=1))
    mean_a, mean_b, aa, bb, ab = (moments[:, i * count : (i + 1) * count] for i in range(5))
    contrast = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    full = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast
    return full.flatten(1).mean(dim=1), contrast.flatten(1).mean(dim=1)


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Gaussian window over the positions where it fits."""
    steps = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-(steps**2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    channels = x.flatten(0, 1)[:, None]
    channels = functional.conv2d(functional.conv2d(channels, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return channels.view(*x.shape[:2], *channels.shape[-2:])


def _same_shape(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape:
        raise DataError(
            f"pictures of {a.shape[-1]}x{a.shape[-2]} and {b.shape[-1]}x{b.shape[-2]} pixels: the sizes must be equal"
        )
