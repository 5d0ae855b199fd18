"""Clean-ups without learning: what a trained model has to beat.

Each has one strength. `tune` picks the best one on pictures that are not the test pictures, so that the comparison is
with the strongest simple clean-up, not with an arbitrary one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thurl.errors import MissingRequirementError, UsageError
from thurl.messages import nearest
from thurl.restoration.degradation import resize


__all__ = [
    "CLEANUPS",
    "Cleanup",
    "bicubic",
    "clean_up",
    "gaussian",
    "median",
    "noise_level",
    "non_local_means",
    "tune",
]


def bicubic(pictures: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """Shrink by the factor `strength` (bicubic, averaging over dropped pixels) and enlarge again.

    Args:
        pictures: (N, H, W, 3) float32 in [0, 255].
        strength: above 1.
    """
    height, width = pictures.shape[1:3]
    small = max(1, round(height / strength)), max(1, round(width / strength))
    return np.stack([resize(resize(picture, small, "bicubic"), (height, width), "bicubic") for picture in pictures])


def gaussian(pictures: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """Gaussian filter of standard deviation `strength` in pixels; shapes as in `bicubic`."""
    from scipy import ndimage

    return ndimage.gaussian_filter(pictures, (0, strength, strength, 0))


def median(pictures: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """Median over squares of side `strength`, a whole number, per channel; shapes as in `bicubic`."""
    from scipy import ndimage

    side = round(strength)
    return ndimage.median_filter(pictures, (1, side, side, 1))


def non_local_means(pictures: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """Non-local means of scikit-image: patches of 5, distance 6, cut-off `strength` times the estimated noise.

    Buades et al., "A non-local algorithm for image denoising" (2005). Shapes as in `bicubic`.

    Raises:
        MissingRequirementError: scikit-image is not installed.
    """
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError:
        raise MissingRequirementError(
            "the clean-up `nlm` needs scikit-image: pip install thurl[vision], or leave it out of "
            "`evaluation.cleanups`"
        ) from None
    cleaned = []
    for picture in pictures / 255:
        cut = strength * max(
            noise_level(picture), 1e-3
        )  # a flat picture has none, and a cut-off of 0 would divide by it
        cleaned.append(
            denoise_nl_means(picture, patch_size=5, patch_distance=6, h=cut, fast_mode=True, channel_axis=2)
        )
    return 255 * np.stack(cleaned).astype(np.float32)


def noise_level(picture: NDArray[np.float32]) -> float:
    """Standard deviation of the noise in an (H, W, C) picture, in its own unit; 0 for pictures of one row or column.

    Median of the absolute diagonal Haar coefficients over 0.6745 (Donoho and Johnstone, 1994), mean over channels.
    """
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    if not height or not width:
        return 0.0
    even, odd = picture[0:height:2], picture[1:height:2]
    diagonal = (even[:, 0:width:2] - even[:, 1:width:2] - odd[:, 0:width:2] + odd[:, 1:width:2]) / 2
    return float(np.median(np.abs(diagonal), axis=(0, 1)).mean() / 0.6745)


@dataclass(frozen=True)
class Cleanup:
    """A function of (pictures, strength), and the strengths to choose from."""

    function: Callable[[NDArray[np.float32], float], NDArray[np.float32]]
    strengths: tuple[float, ...]


CLEANUPS: Mapping[str, Cleanup] = {
    "bicubic": Cleanup(bicubic, (1.25, 1.5, 2.0, 3.0, 4.0)),
    "gaussian": Cleanup(gaussian, (0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0)),
    "median": Cleanup(median, (3.0, 5.0, 7.0)),
    "nlm": Cleanup(non_local_means, (0.4, 0.6, 0.8, 1.0, 1.3)),
}


def clean_up(pictures: NDArray[np.uint8], name: str, strength: float) -> NDArray[np.uint8]:
    """Apply a clean-up.

    Args:
        pictures: (N, H, W, 3) uint8.
        name: of `CLEANUPS`.
        strength: in the unit of that clean-up.

    Returns:
        the same shape, uint8.

    Raises:
        UsageError: an unknown name.
    """
    if name not in CLEANUPS:
        raise UsageError(f"clean-up {name!r} is none of {', '.join(CLEANUPS)}{nearest(name, CLEANUPS)}")
    cleaned = CLEANUPS[name].function(pictures.astype(np.float32), strength)
    return np.clip(np.rint(cleaned), 0, 255).astype(np.uint8)


def tune(degraded: NDArray[np.uint8], clean: NDArray[np.uint8], names: Sequence[str]) -> dict[str, float]:
    """The strength of each clean-up with the highest mean PSNR.

    Args:
        degraded, clean: (N, H, W, 3) uint8.
        names: of `CLEANUPS`.
    """
    return {
        name: max(CLEANUPS[name].strengths, key=lambda strength: _mean_psnr(clean_up(degraded, name, strength), clean))
        for name in names
    }


def _mean_psnr(pictures: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
    """Up to a constant; a perfect picture counts as one that is a hundredth of a grey value off."""
    errors = np.square(pictures.astype(np.float32) - clean).mean(axis=(1, 2, 3))
    return float(-np.log10(np.maximum(errors, 1e-4)).mean())
