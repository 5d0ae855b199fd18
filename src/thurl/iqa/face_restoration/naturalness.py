"""Natural scene statistics: the features of NIQE and BRISQUE, and a model of undistorted pictures that users fit.

Mittal, Soundararajan, Bovik: "Making a completely blind image quality analyzer" (2013), and Mittal, Moorthy, Bovik:
"No-reference image quality assessment in the spatial domain" (2012). Luma, rounded to whole grey values, is normalised
by its local mean and deviation (Gaussian window of 7 pixels, sigma 7/6); its distribution and that of products of
neighbours are fitted by generalised Gaussians on two scales: 36 numbers per patch (NIQE, blocks of 96 pixels) or per
picture (BRISQUE).

The released pristine model of NIQE and the regression of BRISQUE are not shipped. `fit_pristine` fits a Gaussian to
undistorted pictures of one's own, and both distances refer to that: comparable under the same model only, and not with
published NIQE or BRISQUE values. The BRISQUE distance is ours: the distance of the picture's features from those of
the pristine pictures, instead of a regression to opinions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch.nn import functional

from thurl.errors import DataError
from thurl.iqa.face_restoration.similarity import luma


__all__ = ["BLOCK", "FEATURES", "PristineModel", "brisque_distance", "brisque_features", "fit_pristine",
           "niqe_distance", "niqe_features"]  # fmt: skip

BLOCK = 96
"""Side of NIQE's patches in pixels."""

FEATURES = 36
"""Numbers per patch or picture: 18 on each of two scales."""

SHARP_ENOUGH = 0.75
"""Patches of pristine pictures count when they are this sharp, as a share of the picture's sharpest (the paper's)."""

_SHRINKAGE = 1e-3  # of the BRISQUE covariance towards its diagonal: one row per picture is few for 36 dimensions
_ROUNDING = 1e-9
Array = NDArray[np.float64]


@dataclass(frozen=True)
class PristineModel:
    """Gaussians of the features of undistorted pictures.

    Attributes:
        niqe_mean, niqe_cov: (36,) and (36, 36), over patches.
        brisque_mean, brisque_cov: (36,) and (36, 36), over pictures; None in a model converted from NIQE's release.
        pictures, patches: how many are behind them.
    """

    niqe_mean: Array
    niqe_cov: Array
    brisque_mean: Array | None
    brisque_cov: Array | None
    pictures: int
    patches: int


def niqe_features(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of all patches.

    Args:
        pictures: (B, 3, H, W) RGB in [0, 1], float64, width and height 96 or more. What is left over at the right and
            lower border is not used.

    Returns:
        (B, P, 36) features, NaN where a patch is flat, and (B, P) sharpness: mean local deviation on the full scale.

    Raises:
        DataError: smaller pictures.
    """
    height, width = pictures.shape[-2:]
    if min(height, width) < BLOCK:
        raise DataError(f"{width}x{height} pixels: NIQE needs {BLOCK} or more on both sides")
    grey = torch.round(luma(pictures) * 255.0)[..., : height // BLOCK * BLOCK, : width // BLOCK * BLOCK]
    parts = []
    for scale in (1, 2):
        normalised, deviation = _normalise(grey)
        patches = _patches(normalised, BLOCK // scale)
        if scale == 1:
            sharpness = _patches(deviation, BLOCK).flatten(2).mean(dim=2)
            grey = _half(grey)
        parts.append(_features(patches.flatten(0, 1)).view(*patches.shape[:2], -1))
    return torch.cat(parts, dim=2), sharpness


def brisque_features(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 36) features of whole pictures; arguments as `niqe_features`, width and height 32 or more."""
    height, width = pictures.shape[-2:]
    if min(height, width) < 32:
        raise DataError(f"{width}x{height} pixels: BRISQUE's features need 32 or more on both sides")
    grey = torch.round(luma(pictures) * 255.0)
    first = _features(_normalise(grey)[0][:, 0])
    return torch.cat([first, _features(_normalise(_half(grey))[0][:, 0])], dim=1)


def fit_pristine(patches: list[Array], sharpness: list[Array], pictures: Array) -> PristineModel:
    """Fit the model to undistorted pictures.

    Args:
        patches: per picture (P, 36) from `niqe_features`.
        sharpness: per picture (P,).
        pictures: (N, 36) from `brisque_features`.

    Raises:
        DataError: fewer than 37 usable patches or fewer than 2 pictures, with which no covariance has full rank.
    """
    chosen = []
    for rows, sharp in zip(patches, sharpness, strict=True):
        keep = (sharp >= SHARP_ENOUGH * sharp.max()) & np.isfinite(rows).all(axis=1)
        chosen.append(rows[keep])
    rows = np.concatenate(chosen) if chosen else np.empty((0, FEATURES))
    whole = pictures[np.isfinite(pictures).all(axis=1)]
    if len(rows) <= FEATURES or len(whole) < 2:
        raise DataError(
            f"{len(rows)} sharp patches of {len(whole)} pictures: more than {FEATURES} patches of 2 pictures or more "
            "are needed; the paper uses 125 pictures"
        )
    return PristineModel(*_moments(rows), *_moments(whole), pictures=len(whole), patches=len(rows))


def niqe_distance(features: torch.Tensor, model: PristineModel) -> torch.Tensor:
    """NIQE (2013, Eq. 10): distance of the picture's Gaussian from the pristine one; 0 or more, lower is better.

    Args:
        features: (B, P, 36) from `niqe_features`. Flat patches (NaN) are left out as the authors' code does: from the
            covariance as a whole, from the mean value by value.

    Returns:
        (B,), NaN for pictures with fewer than two patches that are not flat.
    """
    values = []
    for rows in features.cpu().numpy().astype(np.float64):
        whole = rows[np.isfinite(rows).all(axis=1)]
        if len(whole) < 2:
            values.append(math.nan)
            continue
        difference = np.nanmean(rows, axis=0) - model.niqe_mean
        values.append(_mahalanobis(difference, (np.cov(whole, rowvar=False) + model.niqe_cov) / 2))
    return torch.tensor(values, dtype=torch.float64)


def brisque_distance(features: torch.Tensor, model: PristineModel) -> torch.Tensor:
    """Distance of BRISQUE features from those of pristine pictures, divided by sqrt(36); lower is better.

    Args:
        features: (B, 36) from `brisque_features`.

    Returns:
        (B,): about 1 for pictures such as those of the model; NaN for flat pictures.

    Raises:
        DataError: a model without these features.
    """
    if model.brisque_mean is None or model.brisque_cov is None:
        raise DataError("the pristine model has no BRISQUE features; fit one with `thurl faces fit-niqe`")
    diagonal = np.diag(np.diag(model.brisque_cov))
    # Few pictures leave directions without any spread: shrunk in proportion to what 36 dimensions need.
    share = max(_SHRINKAGE, min(1.0, FEATURES / max(model.pictures - 1, 1)))
    cov = (1 - share) * model.brisque_cov + share * diagonal
    rows = features.cpu().numpy().astype(np.float64) - model.brisque_mean
    values = [_mahalanobis(row, cov) / FEATURES**0.5 if np.isfinite(row).all() else math.nan for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def _moments(rows: Array) -> tuple[Array, Array]:
    return rows.mean(axis=0), np.asarray(np.cov(rows, rowvar=False), dtype=np.float64)


def _mahalanobis(difference: Array, cov: Array) -> float:
    squared = float(difference @ np.linalg.pinv(cov, hermitian=True) @ difference)
    return math.sqrt(max(squared, 0.0)) if not math.isnan(squared) else math.nan


def _normalise(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Locally normalised grey values and the local deviation, (B, 1, H, W) each; borders are repeated."""
    steps = torch.arange(7, dtype=grey.dtype, device=grey.device) - 3
    kernel = torch.exp(-(steps**2) / (2 * (7 / 6) ** 2))
    kernel = kernel / kernel.sum()

    def blur(x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x, (3, 3, 3, 3), mode="replicate")
        return functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, 1, 7)), kernel.view(1, 1, 7, 1))

    mean = blur(grey)
    deviation = torch.sqrt((blur(grey**2) - mean**2).abs())
    difference = grey - mean
    # Rounding of the blur must not give flat areas signs, which the fit counts.
    difference = torch.where(difference.abs() < _ROUNDING, 0.0, difference)
    return difference / (deviation + 1.0), deviation


def _half(grey: torch.Tensor) -> torch.Tensor:
    """Half the size, bicubic with anti-aliasing (the kernel of MATLAB's imresize)."""
    size = (grey.shape[-2] // 2, grey.shape[-1] // 2)
    return functional.interpolate(grey, size=size, mode="bicubic", align_corners=False, antialias=True)


def _patches(x: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 1, H, W) to (B, P, side, side), H and W multiples of `side`."""
    blocks = x[:, 0].unfold(1, side, side).unfold(2, side, side)
    return blocks.reshape(x.shape[0], -1, side, side)


def _features(patches: torch.Tensor) -> torch.Tensor:
    """(N, h, w) normalised values to (N, 18)."""
    shape, left, right = _fit(patches.flatten(1))
    parts = [shape, (left + right) / 2]
    for rows, columns in ((0, 1), (1, 0), (1, 1), (1, -1)):
        products = patches * torch.roll(patches, (rows, columns), dims=(1, 2))
        shape, left, right = _fit(products.flatten(1))
        mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        parts += [shape, mean, left, right]
    return torch.stack(parts, dim=1)


def _fit(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Asymmetric generalised Gaussian of rows (N, M) by moments: shape, left and right scale, (N,) each; NaN for rows
    that are flat or have one sign only."""
    shapes, ratios = _table()
    negative, positive = x < 0, x > 0
    left = torch.sqrt((x**2 * negative).sum(dim=1) / negative.sum(dim=1))
    right = torch.sqrt((x**2 * positive).sum(dim=1) / positive.sum(dim=1))
    skew = left / right
    ratio = x.abs().mean(dim=1) ** 2 / (x**2).mean(dim=1)
    ratio = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    # The table rises with the shape: the nearest entry is one of the two neighbours.
    upper = torch.searchsorted(ratios, torch.nan_to_num(ratio)).clamp(1, len(ratios) - 1)
    nearest = torch.where(ratio - ratios[upper - 1] <= ratios[upper] - ratio, upper - 1, upper)
    shape = torch.where(ratio.isfinite(), shapes[nearest], torch.nan)
    scale = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return shape, left * scale, right * scale


@lru_cache(maxsize=1)
def _table() -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes 0.2 to 10 in steps of 0.001 and the moment ratio of each."""
    shapes = np.arange(0.2, 10.001, 0.001)
    ratios = np.exp(2 * gammaln(2 / shapes) - gammaln(1 / shapes) - gammaln(3 / shapes))
    return torch.from_numpy(shapes), torch.from_numpy(ratios)
