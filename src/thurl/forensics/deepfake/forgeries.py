"""One forged face: a donor's region laid into a real picture, and where donors come from.

    out = M * donor + (1 - M) * real

with M the dilated, jittered and feathered region and the donor's colours matched to the real face's in the ring around
it (in the region itself where that is the skin). "Semantics-Oriented Multitask Learning for DeepFake Detection" (arXiv
2408.16305) widens its training set with altered eyes, mouths and noses but publishes no procedure: this one is ours.
Donors made of the face itself follow the idea of self-blended images (arXiv 2204.08376).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thurl.errors import DataError
from thurl.forensics.deepfake.regions import eye_distance, feather, jitter, region_mask
from thurl.forensics.lab import match_colours
from thurl.forensics.pixels import bilinear_resize, sample_bilinear
from thurl.restoration.degradation import jpeg


__all__ = [
    "Blend",
    "blend_regions",
    "change",
    "expression_donor",
    "relit_donor",
    "self_donor",
    "warped_donor",
]

Picture = NDArray[np.uint8]
Points = NDArray[np.float64]

_RING = 0.12  # in distances between the eyes
_FEATHER_EYES = 80.0  # pixels between the eyes that the feather's pixels are meant for
_REGION_POINTS = {
    "eye": slice(36, 48),
    "eyebrow": slice(17, 27),
    "nose": slice(27, 36),
    "mouth": slice(48, 68),
    "lip": slice(48, 68),
}


@dataclass(frozen=True)
class Blend:
    """How a region is laid in.

    Args:
        dilation: of the region, in distances between the eyes.
        jitter: largest displacement of its border, in distances between the eyes.
        feather: standard deviation of the border in pixels where the eyes are 80 pixels apart, more or less in
            proportion elsewhere.
        colour: how far the donor's colours are moved to the real face's, from 0 to 1.
        seed: of the jitter.
    """

    dilation: float
    jitter: float
    feather: float
    colour: float
    seed: int


def blend_regions(
    real: Picture, landmarks: Points, donor: NDArray[np.floating], regions: Sequence[str], blend: Blend
) -> tuple[Picture, NDArray[np.float64]]:
    """A real face with regions of a donor that lies pixel on pixel over it.

    Args:
        real: (H, W, 3) uint8.
        landmarks: (68, 2) or (81, 2) in pixels of `real`.
        donor: (H, W, 3) in [0, 255].
        regions: of `thurl.forensics.deepfake.regions.REGIONS`, one or more.
        blend: how.

    Returns:
        (H, W, 3) uint8, and the mask M, (H, W) in [0, 1]; 0 means that the pixel is the real one.

    Raises:
        DataError: landmarks that cannot be used, or pictures of two sizes.
    """
    if donor.shape != real.shape:
        raise DataError(f"the donor has the shape {donor.shape}, the face {real.shape}; they must lie pixel on pixel")
    height, width = real.shape[:2]
    eyes = eye_distance(landmarks)

    def union(dilation: float) -> NDArray[np.float64]:
        masks = [region_mask(landmarks, region, height, width, dilation=dilation) for region in regions]
        return np.maximum.reduce(masks)

    mask = union(blend.dilation)
    ring = (union(blend.dilation + _RING) >= 0.5) & (mask < 0.5)
    mask = jitter(mask, blend.jitter * eyes, 0.25 * eyes, np.random.default_rng(blend.seed))
    # Around the skin lies what is no skin.
    where = mask >= 0.5 if "skin" in regions or not ring.any() else ring
    matched = match_colours(donor, real, where, blend.colour)
    mask = feather(mask, blend.feather * eyes / _FEATHER_EYES)
    # What is less than half a step of the written mask is no alteration.
    mask = np.where(mask < 0.5 / 255, 0, mask)
    mixed = mask[..., None] * matched + (1 - mask[..., None]) * real
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), mask


def change(real: Picture, forged: Picture, mask: NDArray[np.float64]) -> tuple[float, float]:
    """Mean absolute change in grey values where the mask is above one half, and where it is 0.

    A mean over no pixel is 0.
    """
    difference = np.abs(forged.astype(np.float64) - real).mean(axis=2)
    inside, outside = mask > 0.5, mask == 0
    return (
        float(difference[inside].mean()) if inside.any() else 0.0,
        float(difference[outside].mean()) if outside.any() else 0.0,
    )


def warped_donor(
    picture: Picture, points: Points, landmarks: Points, size: tuple[int, int], regions: Sequence[str] = ()
) -> NDArray[np.float32]:
    """Another face laid over this one: the affine map that fits its landmarks best, those of the regions above all.

    Args:
        picture: (H, W, 3) uint8, the other face, of any size.
        points: its landmarks, (68, 2) or more.
        landmarks: those of this face.
        size: (height, width) of this face's picture.
        regions: whose landmarks count four times.

    Returns:
        (height, width, 3) in [0, 255]; beyond the other picture's border its border.
    """
    weights = np.zeros(68)
    # The jaw says where the skin ends; for what lies inside, the parts around it are the better guide.
    weights[0 if "skin" in regions else 17 :] = 1
    for region in regions:
        if region in _REGION_POINTS:
            weights[_REGION_POINTS[region]] = 4
    here = np.column_stack([landmarks[:68], np.ones(68)]) * weights[:, None]
    matrix, *_ = np.linalg.lstsq(here, points[:68] * weights[:, None], rcond=None)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    across, along = (x * a + y * b + c for a, b, c in matrix.T)
    return _sampled(picture, across, along)


def self_donor(real: Picture, landmarks: Points, rng: np.random.Generator) -> NDArray[np.float64]:
    """The same face a little moved, in other colours, resampled and compressed.

    Args:
        real: (H, W, 3) uint8.
        landmarks: (68, 2) or more; the face is turned around their middle.
        rng: always used the same number of times.
    """
    eyes = eye_distance(landmarks)
    angle, grown = np.deg2rad(rng.uniform(-6, 6)), rng.uniform(0.94, 1.06)
    shift = rng.uniform(-0.05, 0.05, 2) * eyes
    gain, bias = rng.uniform(0.92, 1.08, 3), rng.uniform(-10, 10, 3)
    factor, quality = rng.uniform(1.0, 2.0), int(rng.integers(40, 91))
    height, width = real.shape[:2]
    middle = landmarks[:68].mean(0)
    y, x = np.mgrid[0:height, 0:width] - (middle + shift)[::-1, None, None]
    cosine, sine = np.cos(angle) / grown, np.sin(angle) / grown
    moved = _sampled(real, cosine * x + sine * y + middle[0], cosine * y - sine * x + middle[1])
    small = bilinear_resize(moved, max(round(height / factor), 1), max(round(width / factor), 1))
    coloured = bilinear_resize(small, height, width) * gain + bias
    packed = jpeg(np.clip(np.rint(coloured), 0, 255).astype(np.uint8), quality)
    return np.asarray(packed, dtype=np.float64)


def expression_donor(real: Picture, landmarks: Points, rng: np.random.Generator) -> NDArray[np.float32]:
    """The same face with another mouth: its corners raised or lowered and the lips drawn apart or together.

    Args:
        real: (H, W, 3) uint8.
        landmarks: (68, 2) or more.
        rng: always used the same number of times.
    """
    eyes = eye_distance(landmarks)
    lifted = rng.choice((-1, 1)) * rng.uniform(0.06, 0.14) * eyes
    opened, widened = rng.uniform(-0.25, 0.45), rng.uniform(-0.12, 0.2)
    along = landmarks[54] - landmarks[48]
    reach = float(np.hypot(*along)) / 2
    along = along / max(2 * reach, 1e-9)
    middle = landmarks[48:60].mean(0)
    y, x = np.mgrid[0 : real.shape[0], 0 : real.shape[1]]
    # Coordinates along and across the mouth, in half widths of it.
    right = ((x - middle[0]) * along[0] + (y - middle[1]) * along[1]) / reach
    down = ((y - middle[1]) * along[0] - (x - middle[0]) * along[1]) / reach
    near = np.exp(-((right / 1.3) ** 4) - ((down / 0.9) ** 4))
    right_from = right * (1 - near * widened / (1 + widened))
    down_from = down * (1 - near * opened / (1 + opened)) + near * (lifted / reach) * (right**2 - 0.4)
    return _sampled(
        real,
        middle[0] + reach * (right_from * along[0] - down_from * along[1]),
        middle[1] + reach * (right_from * along[1] + down_from * along[0]),
    )


def relit_donor(real: Picture, landmarks: Points, rng: np.random.Generator) -> NDArray[np.float64]:
    """The same face under light from another side and of another colour.

    Args:
        real: (H, W, 3) uint8.
        landmarks: (68, 2) or more.
        rng: always used the same number of times.
    """
    eyes = eye_distance(landmarks)
    strength = rng.choice((-1, 1)) * rng.uniform(0.2, 0.35)
    tint = rng.uniform(0.9, 1.1, 3)
    middle = landmarks[27:36].mean(0)
    across = np.tanh((np.arange(real.shape[1]) - middle[0]) / eyes)
    return np.clip(real * (1 + strength * across)[None, :, None] * tint, 0, 255)


def _sampled(picture: NDArray[np.generic], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
    height, width = picture.shape[:2]
    return sample_bilinear(picture, np.clip(y, 0, height - 1), np.clip(x, 0, width - 1))
