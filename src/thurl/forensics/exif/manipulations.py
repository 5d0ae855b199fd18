"""Local edits of a face that the encoder learns to spot: a mouth, eye or nose turned round, or the whole face warped.

Papers: arXiv 2501.02207 and 2507.22824; what the edits are exactly comes from the official script, which makes four
copies of every photograph beforehand. Here they are made while training, from a seeded generator.

| name | edit | official index | coarse | mouth, eye, nose |
|---|---|---|---|---|
| photograph | none | 0 | 0 | 0 0 0 |
| mouth_rotated | mouth turned by 180 degrees | 1 | 1 | 1 0 0 |
| mouth_mirrored | mouth mirrored left to right | 2 | 1 | 1 0 0 |
| eye_mirrored | the eye on the picture's right mirrored | 3 | 1 | 0 1 0 |
| warp | a 4x4 grid of the whole picture jittered | 4 | 1 | 1 1 1 |
| nose_rotated | nose turned by 180 degrees; exists in the script, not used by it | - | 1 | 0 0 1 |

Deliberate differences: the official copies pass through one more resize than the photographs, which is a cue of its
own, so `resample` sends photographs the same way (`match_resampling` of the data set). A region that falls outside the
picture is replaced by the warp, as officially a region without a contour. The 4x4 warp is computed on its triangles
directly; the official one is a library's, with the same jitter and clipping and a grid that ends one pixel later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from thurl.forensics.pixels import bilinear_resize, blend_weights, diamond_around_line, sample_bilinear
from thurl.forensics.weights import draw_name


__all__ = [
    "MANIPULATIONS",
    "OFFICIAL_WEIGHTS",
    "PHOTOGRAPH",
    "RATIOS",
    "WORK_SIZE",
    "draw_manipulation",
    "editable",
    "labels_of",
    "manipulate",
    "region_box",
    "region_mask",
    "resample",
    "warp",
]

PHOTOGRAPH = "photograph"
MANIPULATIONS = ("mouth_rotated", "mouth_mirrored", "eye_mirrored", "nose_rotated", "warp")

WORK_SIZE = 224
"""Side in pixels of the picture that is edited; all sizes below are meant for it."""

RATIOS = (0.75, 1.0, 1.0, 1.0)
"""Strengths of the blend, one drawn with equal chances."""

OFFICIAL_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {PHOTOGRAPH: 4.0, "mouth_rotated": 1.0, "mouth_mirrored": 1.0, "eye_mirrored": 1.0, "warp": 1.0}
)
"""Half photographs, one eighth of each edit."""

# Region, flipped axes, pixels the flipped block is larger by on each side, first blur of the mask.
_EDITS = {
    "mouth_rotated": ("mouth", (0, 1), 5, (91, 7.0)),
    "mouth_mirrored": ("mouth", (1,), 5, (91, 7.0)),
    "eye_mirrored": ("eye", (1,), 5, (91, 7.0)),
    "nose_rotated": ("nose", (0, 1), 3, (15, 2.0)),
}
_REGIONS = ("mouth", "eye", "nose")
_TOUCHED = {
    PHOTOGRAPH: (0, 0, 0),
    "mouth_rotated": (1, 0, 0),
    "mouth_mirrored": (1, 0, 0),
    "eye_mirrored": (0, 1, 0),
    "nose_rotated": (0, 0, 1),
    "warp": (1, 1, 1),
}
_GRID = 4
_WARP_SCALE = (0.04, 0.05)


def labels_of(name: str, regions: int = 3) -> tuple[int, tuple[int, ...]]:
    """Labels of the face tasks.

    Args:
        name: "photograph" or one of `MANIPULATIONS`.
        regions: 3 for mouth, eye and nose; 2 for mouth and eye, as in the official labels, where a nose edit is
            manipulated in no region.

    Returns:
        0 (photographic) or 1 (manipulated), the label of the coarse task and of the one-class method; and 0 or 1 for
        each region.
    """
    touched = _TOUCHED[name]
    return int(name != PHOTOGRAPH), touched[:regions]


def draw_manipulation(rng: np.random.Generator, weights: Mapping[str, float] = OFFICIAL_WEIGHTS) -> str:
    """One name, with chances proportional to `weights` (numbers of 0 or more, not all 0)."""
    return draw_name(rng, weights)


def manipulate(
    image: np.ndarray,
    name: str,
    rng: np.random.Generator,
    *,
    landmarks: Sequence[Sequence[float]] | np.ndarray | None = None,
    ratio: float | None = None,
) -> tuple[np.ndarray, str]:
    """A face with one edit.

    Args:
        image: (H, W, 3) uint8; `WORK_SIZE` squared for the official look.
        name: one of `MANIPULATIONS`.
        rng: the ratio's and the warp's; used the same number of times for every name.
        landmarks: 68 points (x, y) in pixels of `image`. Without them every edit is the warp.
        ratio: strength of the blend in (0, 1]; drawn from `RATIOS` when `None`. The warp has none.

    Returns:
        (H, W, 3) uint8, and the name of the edit that was made: "warp" when the region could not be edited.
    """
    drawn = float(rng.choice(RATIOS))
    jitter = _jitter(rng)
    ratio = drawn if ratio is None else ratio
    box = None if landmarks is None else _box_of(name, landmarks, *image.shape[:2])
    if box is None:
        return warp(image, jitter), "warp"
    _, axes, grow, (kernel, sigma) = _EDITS[name]
    height, width = image.shape[:2]
    left, top = max(box[0] - grow, 0), max(box[1] - grow, 0)
    right, bottom = min(box[2] + grow, width), min(box[3] + grow, height)
    edited = image.astype(np.float64)
    block = np.flip(image[top:bottom, left:right], axes)
    window = (left, top, right, bottom)
    weight = blend_weights(box, height, width, kernel=kernel, sigma=sigma, window=window)[..., None] * ratio
    edited[top:bottom, left:right] = weight * block + (1 - weight) * image[top:bottom, left:right]
    return edited.astype(np.uint8), name  # truncated, as officially


def editable(landmarks: Sequence[Sequence[float]] | np.ndarray, name: str, height: int, width: int) -> bool:
    """Whether `manipulate` makes this edit with these landmarks, and not the warp instead."""
    return name == "warp" or _box_of(name, landmarks, height, width) is not None


def _box_of(
    name: str, landmarks: Sequence[Sequence[float]] | np.ndarray, height: int, width: int
) -> tuple[int, int, int, int] | None:
    if name == "warp":
        return None
    return region_box(np.asarray(landmarks, dtype=np.float64), _EDITS[name][0], height, width)


def region_box(landmarks: np.ndarray, region: str, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Bounding box (left, top, right, bottom; right and bottom exclusive) of a region.

    Args:
        landmarks: (68, 2), x and y in pixels.
        region: "mouth", "eye" (the one on the picture's right) or "nose".
        height, width: of the picture; the box is cut at its borders.

    Returns:
        `None` when nothing of the region lies inside, or a landmark is not finite.
    """
    line = _line(landmarks, region)
    if line is None:
        return None
    (x0, y0), (x1, y1), radius = line
    left, right = max(min(x0, x1) - radius, 0), min(max(x0, x1) + radius + 1, width)
    top, bottom = max(min(y0, y1) - radius, 0), min(max(y0, y1) + radius + 1, height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def region_mask(landmarks: np.ndarray, region: str, height: int, width: int) -> np.ndarray:
    """The region whose box is edited: (height, width) bool, empty where `region_box` is `None`."""
    line = _line(landmarks, region)
    if line is None:
        return np.zeros((height, width), bool)
    start, end, radius = line
    return diamond_around_line(start, end, radius, height, width)


def warp(image: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """Piecewise affine warp: each point of a regular 4x4 grid shows what lay at a displaced point.

    Args:
        image: (H, W, C) uint8.
        jitter: (4, 4, 2), displacements down and right as shares of height and width. Displaced points are kept
            inside the picture.

    Returns:
        (H, W, C) uint8, bilinear, rounded.
    """
    height, width = image.shape[:2]
    rows, columns = np.linspace(0, height - 1, _GRID), np.linspace(0, width - 1, _GRID)
    shown = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1) + jitter * (height, width)
    shown = np.clip(shown, 0, (height - 1, width - 1))
    place = _grid_weights(height, width) @ shown.reshape(-1, 2).astype(np.float32)
    return np.rint(sample_bilinear(image, *place.reshape(height, width, 2).transpose(2, 0, 1))).astype(np.uint8)


@lru_cache(maxsize=4)
def _grid_weights(height: int, width: int) -> np.ndarray:
    """(height * width, 16) float32: how every pixel is made of the grid's points.

    Each cell is cut along one diagonal; a place inside its triangle is a mean of the three corners.
    """
    y = np.arange(height) * (_GRID - 1) / max(height - 1, 1)
    x = np.arange(width) * (_GRID - 1) / max(width - 1, 1)
    row, column = np.minimum(y.astype(int), _GRID - 2), np.minimum(x.astype(int), _GRID - 2)
    down, over = (n.ravel() for n in np.meshgrid(y - row, x - column, indexing="ij"))
    first = (row[:, None] * _GRID + column[None, :]).ravel()
    weights = np.zeros((height * width, _GRID * _GRID), np.float32)
    upper = down + over <= 1
    pixels = np.arange(height * width)
    weights[pixels, first] = np.where(upper, 1 - down - over, 0)
    weights[pixels, first + _GRID + 1] = np.where(upper, 0, down + over - 1)
    weights[pixels, first + _GRID] = np.where(upper, down, 1 - over)
    weights[pixels, first + 1] = np.where(upper, over, 1 - down)
    return weights


def resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """One step of the official chain (face to `WORK_SIZE`, later back): bilinear, cut to whole numbers.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (height, width, 3) uint8; the same picture when the size is right already.
    """
    if image.shape[:2] == (height, width):
        return image
    # Sums of whole numbers times weights may fall a hair short of a whole number.
    return (bilinear_resize(image, height, width) + np.float32(1e-3)).astype(np.uint8)


def _jitter(rng: np.random.Generator) -> np.ndarray:
    scale = rng.uniform(*_WARP_SCALE)
    return rng.normal(0.0, scale, (_GRID, _GRID, 2))


def _line(landmarks: np.ndarray, region: str) -> tuple[tuple[int, int], tuple[int, int], int] | None:
    """Both ends of a region's line in whole pixels, and how many steps the region reaches beyond it."""
    if region not in _REGIONS:
        raise ValueError(f"region={region!r} is none of {', '.join(_REGIONS)}")
    # Points far away would only cost memory: the picture lies elsewhere.
    if not np.isfinite(landmarks).all() or np.abs(landmarks).max() > 1e5:
        return None
    if region == "nose":
        # Both centres in whole pixels before they are averaged, as officially; it moves the line by up to one pixel.
        left, right = np.floor((landmarks[36] + landmarks[39]) / 2), np.floor((landmarks[42] + landmarks[45]) / 2)
        start, end = landmarks[33], np.floor((left + right) / 2)
        length = float(np.hypot(*(right - left)))
        grow = length / 4
    elif region == "mouth":
        start, end = landmarks[48], landmarks[54]
        length = float(np.hypot(*(end - start)))
        grow = length / 3
    else:
        start, end = landmarks[42], landmarks[45]
        length = float(np.hypot(*(end - start)))
        grow = length / 4
    times = 2 * int(grow) if region == "eye" else int(grow)
    # The line itself is two pixels thick: one more step on each side.
    return (int(start[0]), int(start[1])), (int(end[0]), int(end[1])), times + 1
