"""CIELAB colours in numpy, both ways, and one face's colours made to fit another's.

sRGB, white of D65 (2 degree observer).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


__all__ = ["lab_to_rgb", "match_colours", "rgb_to_lab"]

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)
_FROM_XYZ = np.linalg.inv(_TO_XYZ)
_KNEE = 6 / 29
# A flat patch has no contrast to stretch: the noise of one grey level must not become a pattern.
_STRETCH = (0.7, 1.4)


def rgb_to_lab(pixels: NDArray[np.number]) -> NDArray[np.float64]:
    """Lightness in [0, 100] and two colour axes of (..., 3) sRGB in [0, 255]."""
    values = np.asarray(pixels, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((np.maximum(values, 0) + 0.055) / 1.055) ** 2.4)
    share = linear @ _TO_XYZ.T / _WHITE
    root = np.where(share > _KNEE**3, np.cbrt(share), share / (3 * _KNEE**2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab_to_rgb(lab: NDArray[np.floating]) -> NDArray[np.float64]:
    """sRGB in [0, 255] of (..., 3) CIELAB; colours that sRGB does not have are cut off."""
    lightness, a, b = np.moveaxis(np.asarray(lab, dtype=np.float64), -1, 0)
    y = (lightness + 16) / 116
    root = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    share = np.where(root > _KNEE, root**3, 3 * _KNEE**2 * (root - 4 / 29))
    linear = np.clip((share * _WHITE) @ _FROM_XYZ.T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def match_colours(
    donor: NDArray[np.number], target: NDArray[np.number], where: NDArray[np.bool_], strength: float = 1.0
) -> NDArray[np.float64]:
    """The donor with mean and standard deviation of each CIELAB axis moved towards the target's.

    Args:
        donor, target: (H, W, 3) in [0, 255].
        where: (H, W), the pixels that both are measured in; nothing is changed where it is empty.
        strength: 0 leaves the donor, 1 moves it all the way.

    Returns:
        (H, W, 3) in [0, 255], all pixels changed alike.
    """
    if not where.any() or strength == 0:
        return np.asarray(donor, dtype=np.float64)
    own, wanted = rgb_to_lab(donor), rgb_to_lab(target)
    own_mean, own_spread = own[where].mean(0), own[where].std(0)
    mean, spread = wanted[where].mean(0), wanted[where].std(0)
    stretch = np.clip(spread / np.maximum(own_spread, 1e-6), *_STRETCH)
    moved = (own - own_mean) * stretch + mean
    return lab_to_rgb(own + strength * (moved - own))
