"""Accounting of bits: what a class costs, as codec, as pixels, with its labels, and what integers cost in a file.

Source: arXiv 2507.17221 and its official code. "bpc" is bits per class, "bpp" bits per pixel of a picture (all
channels), kB is 1024 bytes. The paper counts baselines of pixels at 32 bits per value; 16 and 8 are the honest rows
beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


__all__ = [
    "GOLOMB_ORDERS",
    "best_golomb",
    "bits_per_class",
    "exp_golomb_bits",
    "kib",
    "label_bits",
    "pixel_bits",
    "rate_multiplier",
]

GOLOMB_ORDERS = range(13)
"""Orders k of the Exp-Golomb codes that are tried."""


def bits_per_class(bpp: float, samples: int, height: int, width: int) -> float:
    """Bits of a class from bits per pixel.

    Args:
        bpp: bits of latents and networks over all pixels of the class.
        samples: of the class.
        height, width: of a picture.
    """
    return bpp * samples * height * width


def pixel_bits(images: int, height: int, width: int, channels: int, bits_per_value: int = 32) -> int:
    """Bits of pictures stored as pixels: 32 (float, as in the paper), 16 or 8 per value."""
    return images * height * width * channels * bits_per_value


def label_bits(samples: int, classes: int, bits_per_logit: int) -> int:
    """Bits of soft labels; hard ones implied by the order of samples cost nothing: `bits_per_logit` 0."""
    return samples * classes * bits_per_logit


def kib(bits: float) -> float:
    """1024 bytes as unit."""
    return bits / 8192


def rate_multiplier(lr_it: float, ldb_it: float, ldb: float) -> float:
    """Lambda of `rate + lambda * loss` from the three factors of the official command line."""
    return lr_it / (ldb_it * ldb)


def exp_golomb_bits(values: ArrayLike, order: int) -> NDArray[np.int64]:
    """Length of each integer's Exp-Golomb code with a bit for the sign of those that are not 0.

    Args:
        values: integers of any shape, below 2^52 in size.
        order: k, 0 to 12.

    Returns:
        int64 of the same shape: `2 floor(log2(|v| / 2^k + 1)) + k + 1 + [v != 0]`, computed on integers.
    """
    size = np.abs(np.asarray(values, dtype=np.int64))
    # frexp of an integer below 2^53 is exact: the exponent is its number of bits.
    digits = np.frexp((size + (1 << order)).astype(np.float64))[1].astype(np.int64) - 1 - order
    return 2 * digits + order + 1 + (size != 0)


def best_golomb(values: Sequence[NDArray[np.integer]]) -> tuple[int, int]:
    """Order with the shortest codes for all tensors together, and its bits; the lower order on a tie."""
    flat = np.concatenate([np.ravel(value) for value in values])
    totals = [int(exp_golomb_bits(flat, order).sum()) for order in GOLOMB_ORDERS]
    best = int(np.argmin(totals))
    return best, totals[best]
