"""Regions of a face from its landmarks, as masks that are dilated, jittered and feathered.

68 points in the iBUG order, of which the first 68 of 81 are the same; the rest, on the forehead, only widen the skin.
Lengths are shares of the distance between the eyes, so that a face of 48 pixels and one of 300 are treated alike.

Which shapes the paper's own expansion uses is not published; these are ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from thurl.errors import DataError


__all__ = ["LANDMARK_COUNTS", "REGIONS", "eye_distance", "feather", "jitter", "region_mask"]

LANDMARK_COUNTS = (68, 81)
"""Numbers of points that can be used."""

_PARTS = {
    "eye": (slice(36, 42), slice(42, 48)),
    "eyebrow": (slice(17, 22), slice(22, 27)),
    "nose": (slice(27, 36),),
    "mouth": (slice(48, 60),),
    "lip": (slice(48, 60),),
}
REGIONS = (*_PARTS, "skin")
"""Names of the regions. The mouth is what the lips enclose and the lips, the lips are those alone."""

_INNER_MOUTH = slice(60, 68)
_OVERSAMPLING = 4
_CLOSEST_EYES = 4.0


def eye_distance(landmarks: NDArray[np.floating], where: str = "face") -> float:
    """Distance between the middles of the eyes in pixels.

    Args:
        landmarks: (68, 2) or (81, 2).
        where: what the message calls the face.

    Raises:
        DataError: another number of points, or a face whose eyes are closer than 4 pixels.
    """
    if landmarks.ndim != 2 or landmarks.shape[1] != 2 or landmarks.shape[0] not in LANDMARK_COUNTS:
        raise DataError(f"{where}: landmarks of shape {landmarks.shape}; (68, 2) or (81, 2) are needed")
    left, right = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    distance = float(np.hypot(*(right - left)))
    if not distance >= _CLOSEST_EYES:
        raise DataError(f"{where}: {distance:.1f} pixels between the eyes; a region needs {_CLOSEST_EYES:g} or more")
    return distance


def region_mask(
    landmarks: NDArray[np.floating], region: str, height: int, width: int, *, dilation: float = 0.0
) -> NDArray[np.float64]:
    """A region, with its border dilated.

    Args:
        landmarks: (68, 2) or (81, 2), x and y in pixels.
        region: one of `REGIONS`.
        height, width: of the picture.
        dilation: in distances between the eyes. The skin is eroded by what the other regions are dilated by.

    Returns:
        (height, width) in [0, 1], the share of every pixel that is covered.

    Raises:
        DataError: see `eye_distance`.
    """
    radius = dilation * eye_distance(landmarks)
    if region == "skin":
        mask = _filled(landmarks[_hull(landmarks)], height, width)
        for other in _PARTS:
            mask = np.minimum(mask, 1 - region_mask(landmarks, other, height, width, dilation=dilation))
        return mask
    mask = np.zeros((height, width))
    for part in _PARTS[region]:
        points = landmarks[part]
        # Eyes and lips are outlines; brows and the nose are lines, whose hull is the region.
        outline = points if region in ("eye", "mouth", "lip") else points[_hull(points)]
        mask = np.maximum(mask, _filled(outline, height, width))
    mask = _dilated(mask, radius)
    if region == "lip":
        mask = np.minimum(mask, 1 - _filled(landmarks[_INNER_MOUTH], height, width))
    return mask


def jitter(mask: NDArray[np.float64], reach: float, scale: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A mask bent by a smooth random displacement.

    Args:
        mask: (H, W) in [0, 1].
        reach: largest displacement in pixels.
        scale: length in pixels over which the displacement changes.
        rng: always used the same number of times.
    """
    noise = rng.normal(size=(2, *mask.shape))
    if reach <= 0:
        return mask
    field = ndimage.gaussian_filter(noise, (0, scale, scale), mode="reflect")
    field *= reach / max(float(np.abs(field).max()), 1e-12)
    place = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]] + field
    return np.clip(ndimage.map_coordinates(mask, place, order=1, mode="nearest"), 0, 1)


def feather(mask: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """A mask with a Gaussian border, whose largest value stays what it was; 0 beyond three standard deviations."""
    peak = float(mask.max())
    if sigma <= 0 or peak == 0:
        return mask
    soft = ndimage.gaussian_filter(mask, sigma, mode="constant", truncate=3.0)
    return soft * (peak / float(soft.max()))


def _dilated(mask: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Grown by a radius in pixels, whole or not, with a border one pixel wide."""
    peak = float(mask.max())
    if radius <= 0 or peak == 0:
        return mask
    # Half of the peak, not of one: a thin line in a small picture fills no pixel.
    away = ndimage.distance_transform_edt(mask < peak / 2)
    return np.maximum(mask, np.clip(radius + 1 - away, 0, 1))


def _filled(points: NDArray[np.floating], height: int, width: int) -> NDArray[np.float64]:
    """A polygon, drawn finer and averaged."""
    image = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    fine = (points + 0.5) * _OVERSAMPLING
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in fine], fill=255)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float64) / 255


def _hull(points: NDArray[np.floating]) -> NDArray[np.intp]:
    try:
        return ConvexHull(points).vertices
    except QhullError:
        # All on one line: drawn as it is, and the dilation gives it a width.
        return np.arange(len(points))
