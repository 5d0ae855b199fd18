"""Alignment of a face for AdaFace: similarity transform from five points and a bilinear warp, as in NTIRE 2025.

The organisers' code follows MATLAB's `cp2tform`: the least squares is solved in the inverse direction, so errors are
measured in pixels of the picture, not of the template. With template points (X, Y) and landmarks (u, v),

    minimise over p, q, s, t   sum |(p X + q Y + s, p Y - q X + t) - (u, v)|^2

and invert the result. A fit in the forward direction gives other matrices on landmarks that are not exactly similar to
the template. The same is done against the template mirrored in x, and the candidate with the smaller residual in the
template's plane wins. Official code mirrors the template in place, so it measures both residuals against the mirrored
one; here each candidate is measured against the true template.

The warp rounds as OpenCV's `warpAffine` does (fixed point, 1/32 pixel), so that results agree to the grey level
without OpenCV being there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thurl.errors import DataError


__all__ = ["CROP", "TEMPLATE", "align_face", "fit_alignment", "warp_affine"]

CROP = 112
"""Width and height of an aligned face, in pixels."""

TEMPLATE: NDArray[np.float64] = np.array(
    [
        [38.29459953, 51.69630051],
        [73.53179932, 51.50139999],
        [56.02519989, 71.73660278],
        [41.54930115, 92.3655014],
        [70.72990036, 92.20410156],
    ]
)
"""(5, 2) x and y in the 112x112 crop: left eye, right eye, nose, left and right corner of the mouth, seen by the
viewer. The 96x112 template of the face recognition literature, moved right by 8 pixels."""
TEMPLATE.flags.writeable = False

# OpenCV's fixed point: matrix entries with 10 binary digits, positions with 5.
_MATRIX_BITS = 10
_POSITION_BITS = 5
_SMALLEST_SCALE = 1e-8


def fit_alignment(points: NDArray[np.floating], template: NDArray[np.floating] = TEMPLATE) -> NDArray[np.float64]:
    """Matrices that take pictures to the template.

    Args:
        points: (..., 5, 2) landmarks in pixels of the picture, in the order of `TEMPLATE`. Any number of points of two
            or more will do, as many as the template has.
        template: (5, 2) target points.

    Returns:
        (..., 2, 3) float64; `matrix @ (x, y, 1)` is the position in the crop.

    Raises:
        DataError: points that are not finite, or that all coincide.
    """
    u = np.asarray(points, dtype=np.float64)
    target = np.asarray(template, dtype=np.float64)
    if u.shape[-2:] != target.shape or target.ndim != 2 or target.shape[-1] != 2:
        raise DataError(f"landmarks have the shape {u.shape}: (..., {target.shape[0]}, 2) is needed")
    if not np.isfinite(u).all():
        raise DataError("a landmark is not a finite number; correct the landmark file")
    plain, plain_error = _candidate(u, target, mirrored=False)
    mirrored, mirrored_error = _candidate(u, target, mirrored=True)
    if np.isinf(np.minimum(plain_error, mirrored_error)).any():
        raise DataError("the landmarks of a face coincide; correct the landmark file")
    return np.where((plain_error <= mirrored_error)[..., None, None], plain, mirrored)


def warp_affine(image: NDArray[np.uint8], matrix: NDArray[np.floating], size: int = CROP) -> NDArray[np.uint8]:
    """Bilinear warp with a black border.

    Args:
        image: (H, W, C) uint8.
        matrix: (2, 3), takes positions of the picture to positions of the result.
        size: width and height of the result, in pixels.

    Returns:
        (size, size, C) uint8.

    Raises:
        DataError: a matrix that cannot be inverted, or a picture of another kind.
    """
    if image.ndim != 3 or image.dtype != np.uint8:
        raise DataError(f"a picture of shape {image.shape} and type {image.dtype}: (H, W, C) of uint8 is needed")
    backward = _inverse(np.asarray(matrix, dtype=np.float64))
    fine = 1 << _MATRIX_BITS
    steps = np.arange(size, dtype=np.float64)
    half = 1 << (_MATRIX_BITS - _POSITION_BITS - 1)
    # (size, size) positions in 1/32 pixel: one part per column, one per row, each rounded by itself.
    x = _fixed(backward[0, 1] * steps + backward[0, 2], fine)[:, None] + half + _fixed(backward[0, 0] * steps, fine)
    y = _fixed(backward[1, 1] * steps + backward[1, 2], fine)[:, None] + half + _fixed(backward[1, 0] * steps, fine)
    x, y = x >> (_MATRIX_BITS - _POSITION_BITS), y >> (_MATRIX_BITS - _POSITION_BITS)
    one = 1 << _POSITION_BITS
    left, top, right_share, lower_share = x >> _POSITION_BITS, y >> _POSITION_BITS, x & (one - 1), y & (one - 1)
    total = np.zeros((size, size, image.shape[2]), dtype=np.int64)
    for down in (0, 1):
        for across in (0, 1):
            weight = (lower_share if down else one - lower_share) * (right_share if across else one - right_share)
            total += weight[..., None] * _pixels(image, top + down, left + across)
    shift = 2 * _POSITION_BITS
    return ((total + (1 << (shift - 1))) >> shift).astype(np.uint8)


def align_face(image: NDArray[np.uint8], points: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Crop of 112x112 pixels in which the five points lie near the template.

    Args:
        image: (H, W, 3) uint8, RGB; the channels keep their order.
        points: (5, 2) landmarks in pixels.

    Returns:
        (112, 112, 3) uint8.

    Raises:
        DataError: as `fit_alignment`.
    """
    return warp_affine(image, fit_alignment(points))


def _candidate(
    points: NDArray[np.float64], template: NDArray[np.float64], *, mirrored: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix (..., 2, 3) and its residual (...) in the template's plane."""
    xy = template * np.array([-1.0, 1.0]) if mirrored else template
    centre, middle = xy.mean(axis=0), points.mean(axis=-2, keepdims=True)
    a, b = xy - centre, points - middle
    spread = (a**2).sum()
    p = (b * a).sum(axis=(-2, -1)) / spread
    q = (b[..., 0] * a[:, 1] - b[..., 1] * a[:, 0]).sum(axis=-1) / spread
    size = np.maximum(p**2 + q**2, _SMALLEST_SCALE**2)
    flat = p**2 + q**2 <= _SMALLEST_SCALE**2  # landmarks that coincide, or are the other candidate's mirror image
    # (u, v) = [[p, q], [-q, p]] (X, Y) + (s, t), hence (X, Y) = [[p, -q], [q, p]] / (p^2 + q^2) ((u, v) - (s, t)).
    rotation = np.stack([np.stack([p, -q], -1), np.stack([q, p], -1)], -2) / size[..., None, None]
    back = np.stack([np.stack([p, q], -1), np.stack([-q, p], -1)], -2)
    offset = middle[..., 0, :] - back @ centre
    matrix = np.concatenate([rotation, -(rotation @ offset[..., None])], axis=-1)
    if mirrored:
        matrix = matrix * np.array([[-1.0], [1.0]])
    moved = points @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]
    return matrix, np.where(flat, np.inf, np.sqrt(((moved - template) ** 2).sum(axis=(-2, -1))))


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    if matrix.shape != (2, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :2])) < 1e-12:
        raise DataError("the alignment matrix cannot be inverted; are the landmarks those of a face?")
    inverse = np.linalg.inv(matrix[:, :2])
    return np.concatenate([inverse, -(inverse @ matrix[:, 2:])], axis=1)


def _fixed(values: NDArray[np.float64], one: int) -> NDArray[np.int64]:
    # Far outside any picture a position need not be exact, but it must not overflow.
    return np.rint(np.clip(values * one, -(2.0**40), 2.0**40)).astype(np.int64)


def _pixels(image: NDArray[np.uint8], row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
    height, width = image.shape[:2]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    found = image[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)].astype(np.int64)
    return found * inside[..., None]
