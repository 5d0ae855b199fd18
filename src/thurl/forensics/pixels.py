"""Picture arithmetic that gives the same bytes everywhere: resizing, blurring and region masks in plain numpy.

The official manipulations were made with OpenCV and scikit-image. What they do is written out here with the same
borders and roundings, so that results agree to one grey level without either package and do not change with their
versions (OpenCV 4 and 5 differ from each other by as much).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage


__all__ = ["bilinear_resize", "blend_weights", "diamond_around_line", "sample_bilinear"]

# Fractional bits of OpenCV's Gaussian blur of 8-bit pictures.
_BITS = 8
_ERODE_RADIUS = 7
_FEATHER = (51, 10.0)


def bilinear_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation at pixel centres without anti-aliasing, mirrored at the borders.

    scikit-image's `resize` with its defaults does the same when it enlarges.

    Args:
        image: (H, W, C), any number type.
        height, width: of the result.

    Returns:
        (height, width, C), float32.
    """
    pixels = image.astype(np.float32)
    if (height, width) == image.shape[:2]:
        return pixels
    low, high, part = _axis(image.shape[0], height)
    above = pixels[low]
    pixels = above + (pixels[high] - above) * part[:, None, None]
    low, high, part = _axis(image.shape[1], width)
    before = pixels.take(low, axis=1)
    return before + (pixels.take(high, axis=1) - before) * part[None, :, None]


@lru_cache(maxsize=64)
def _axis(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of both neighbours and the weight of the second, for every pixel of the result."""
    place = (np.arange(after) + 0.5) * (before / after) - 0.5
    low = np.floor(place).astype(np.intp)
    part = place - low

    def mirrored(index: np.ndarray) -> np.ndarray:
        index = np.abs(index)
        return np.clip(np.where(index > before - 1, 2 * (before - 1) - index, index), 0, before - 1)

    return mirrored(low), mirrored(low + 1), part.astype(np.float32)


def sample_bilinear(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values between pixels.

    Args:
        image: (H, W, C), any number type.
        rows, columns: places of one shape in pixels, in [0, H-1] and [0, W-1].

    Returns:
        The places' shape and C, float32.
    """
    height, width, channels = image.shape
    pixels = image.reshape(-1, channels).astype(np.float32)
    row, column = rows.ravel(), columns.ravel()
    top = np.clip(row.astype(np.intp), 0, max(height - 2, 0))
    left = np.clip(column.astype(np.intp), 0, max(width - 2, 0))
    down = (row - top).astype(np.float32)[:, None]
    over = (column - left).astype(np.float32)[:, None]
    first = top * width + left
    right, below = int(width > 1), width * int(height > 1)
    upper = pixels.take(first, axis=0)
    upper += (pixels.take(first + right, axis=0) - upper) * over
    lower = pixels.take(first + below, axis=0)
    lower += (pixels.take(first + (below + right), axis=0) - lower) * over
    upper += (lower - upper) * down
    return upper.reshape(*rows.shape, channels)


def blend_weights(
    box: tuple[int, int, int, int],
    height: int,
    width: int,
    *,
    kernel: int = 91,
    sigma: float = 7.0,
    window: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Soft mask of a rectangle: rounded by a blur, shrunk, feathered, scaled to a maximum of 1.

    Args:
        box: (left, top, right, bottom), right and bottom exclusive, inside the picture and not empty.
        height, width: of the picture.
        kernel, sigma: size and standard deviation in pixels of the first blur.
        window: part of the picture that is wanted, in the form of `box` and around it; all of it when `None`.

    Returns:
        (rows, columns) of the window, float64 in [0, 1].
    """
    left, top, right, bottom = box
    # The blur of a rectangle is a product. In whole numbers: the official one rounds an 8-bit picture of 0 and 1.
    weights = _whole_kernel(kernel, sigma)
    rows = ndimage.correlate1d(_interval(top, bottom, height), weights, mode="mirror")
    columns = ndimage.correlate1d(_interval(left, right, width), weights, mode="mirror")
    # Nothing lies outside the box, so the erosion needs no more than a margin of it.
    reach = _ERODE_RADIUS + 1
    near = (slice(max(top - reach, 0), bottom + reach), slice(max(left - reach, 0), right + reach))
    full = np.zeros((height, width))
    patch = np.outer(rows[near[0]], columns[near[1]]) >= 1 << (2 * _BITS - 1)
    core = ndimage.binary_erosion(patch, _ellipse(_ERODE_RADIUS), border_value=1)
    full[near] = core if core.any() else patch
    x0, y0, x1, y1 = (0, 0, width, height) if window is None else window
    feather = _gaussian(*_FEATHER)
    half = len(feather) // 2
    padded = np.pad(full, half, mode="reflect")[y0 : y1 + 2 * half, x0 : x1 + 2 * half]
    soft = ndimage.correlate1d(padded, feather, axis=0, mode="constant")[half:-half]
    soft = ndimage.correlate1d(soft, feather, axis=1, mode="constant")[:, half:-half]
    return soft / soft.max()


def diamond_around_line(
    start: tuple[int, int], end: tuple[int, int], radius: int, height: int, width: int
) -> np.ndarray:
    """Pixels at most `radius` steps (left, right, up, down) from a line of one pixel.

    A line two pixels thick that is dilated `radius - 1` times with a 3x3 cross is the same.

    Args:
        start, end: (x, y) of the line's ends, inside or outside the picture.
        radius: whole number of 0 or more.

    Returns:
        (height, width), bool.
    """
    (x0, y0), (x1, y1) = start, end
    steps = max(abs(x1 - x0), abs(y1 - y0), 1)
    share = np.arange(steps + 1) / steps
    xs = np.floor(x0 + (x1 - x0) * share + 0.5).astype(np.intp)
    ys = np.floor(y0 + (y1 - y0) * share + 0.5).astype(np.intp)
    # On a margin that the line and its diamond fit into, since the line may leave the picture.
    pad = radius + 1
    low_x, low_y = min(0, xs.min()) - pad, min(0, ys.min()) - pad
    size = (max(height, ys.max() + 1) + pad - low_y, max(width, xs.max() + 1) + pad - low_x)
    line = np.ones(size, bool)
    line[ys - low_y, xs - low_x] = False
    steps_away = ndimage.distance_transform_cdt(line, metric="taxicab")
    return steps_away[-low_y : height - low_y, -low_x : width - low_x] <= radius


def _interval(start: int, end: int, length: int) -> np.ndarray:
    inside = np.zeros(length, np.int64)
    inside[start:end] = 1
    return inside


@lru_cache(maxsize=8)
def _gaussian(size: int, sigma: float) -> np.ndarray:
    x = np.arange(size) - (size - 1) / 2
    weights = np.exp(-x * x / (2 * sigma * sigma))
    return weights / weights.sum()


@lru_cache(maxsize=8)
def _whole_kernel(size: int, sigma: float) -> np.ndarray:
    """Gaussian in 256ths that add up to 256: each weight's rounding error goes to the next, the rest to the middle."""
    exact = _gaussian(size, sigma) * (1 << _BITS)
    half = size // 2
    whole = np.zeros(size, np.int64)
    error = 0.0
    for i in range(half):
        value = exact[i] + error
        whole[i] = whole[size - 1 - i] = round(value)
        error = value - whole[i]
    whole[half] = (1 << _BITS) - whole.sum()
    return whole


@lru_cache(maxsize=8)
def _ellipse(radius: int) -> np.ndarray:
    y = np.arange(-radius, radius + 1)
    reach = np.rint(np.sqrt(radius * radius - y * y))
    return np.abs(y)[None, :] <= reach[:, None]
