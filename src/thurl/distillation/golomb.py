"""Exponential Golomb codes through the range coder: for the weights of networks and for rare large values."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.range_coder import PRECISION, Decoder, Encoder, Floats, Integers
from thurl.errors import DataError


__all__ = ["MAX_BITS", "decode_golomb", "encode_golomb", "golomb_bits"]

MAX_BITS = 17
"""A code has at most so many bits behind its prefix."""

_PREFIXES = 17


def golomb_bits(values: Integers, order: Integers | int) -> NDArray[np.int64]:
    """Bits of the code of each value: 2 floor(log2(value / 2^order + 1)) + order + 1.

    Args:
        values: int, any shape, at least 0; `value + 2 ** order` below 2^18.
        order: at least 0, one for all or of the shape of `values`.
    """
    prefix, _, mantissa = _parts(values, order)
    return prefix + 1 + mantissa


def encode_golomb(encoder: Encoder, values: Integers, order: Integers) -> None:
    """Write values (n,): first all prefixes, then what is behind them. Exactly `golomb_bits` in the long run.

    Raises:
        DataError: a value too large for the code.
    """
    if not len(values):
        return
    prefix, rest, bits = _parts(values, order)
    if prefix.max() >= _PREFIXES or bits.max() > MAX_BITS:
        raise DataError(f"a value of {values.max()} to be written: the code ends at 2^{MAX_BITS}")
    encoder.encode(prefix, _prefix_rows(len(values)))
    encoder.encode_uniform(rest, bits)


def decode_golomb(decoder: Decoder, order: Integers) -> Integers:
    """Values (n,) of the orders (n,).

    Raises:
        DataError: a prefix that no encoder writes.
    """
    if not len(order):
        return np.zeros(0, np.int64)
    prefix = decoder.decode(_prefix_rows(len(order)))
    bits = prefix + order
    if prefix.max() >= _PREFIXES or bits.max() > MAX_BITS:
        raise DataError(f"a code longer than {MAX_BITS} bits; the file is damaged: copy or write it again")
    return np.left_shift(1, bits) + decoder.decode_uniform(bits) - np.left_shift(1, order)


def _parts(values: Integers, order: Integers | int) -> tuple[Integers, Integers, Integers]:
    """Prefix, what is behind it, and in how many bits."""
    shifted = np.asarray(values, np.int64) + np.left_shift(1, np.asarray(order, np.int64))
    # frexp is exact: these integers are far below 2^53.
    bits = np.frexp(shifted.astype(np.float64))[1].astype(np.int64) - 1
    return bits - order, shifted - np.left_shift(1, bits), bits


@lru_cache(maxsize=1)
def _prefix_row() -> Floats:
    """Prefix n has the probability 2^-(n + 1), hence costs n + 1 bits; the last symbol is never written."""
    row = np.left_shift(1, PRECISION - 1 - np.arange(_PREFIXES + 1))
    row[-1] = 2**PRECISION - row[:-1].sum()
    return (row - 1).astype(np.float32)


def _prefix_rows(count: int) -> Floats:
    return np.ascontiguousarray(np.broadcast_to(_prefix_row(), (count, _PREFIXES + 1)))
