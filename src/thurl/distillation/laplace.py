"""Integer Laplace distributions: tables that every machine computes alike, and coding with them.

A distribution is a mean, a whole number plus a fraction in 64ths, and one of `SCALES` scales: scale number s is
exp((s - 73) / 16), from exp(-4.5625) to exp(5). The symbol is the difference d to the whole number. Differences of at
most `REACH` have a frequency of their own; what is beyond shares an escape, behind which an exponential Golomb code
follows. Frequencies come from integers alone: see `_tails`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.golomb import decode_golomb, encode_golomb, golomb_bits
from thurl.distillation.range_coder import PRECISION, Decoder, Encoder, Floats, Integers
from thurl.errors import DataError


__all__ = ["ESCAPE", "FRACTIONS", "LOWEST_SCALE", "REACH", "SCALES", "decode_differences", "difference_bits",
           "encode_differences", "excess_table", "table_row"]  # fmt: skip

# Least frequency, out of 2^24. Training counts no symbol with more than 16 bits, and so leaves some that its network
# all but excludes: without this floor they would cost far more than was counted.
_FLOOR = 2**8

FRACTIONS = 64
"""Means are multiples of one over this."""

SCALES = 154
LOWEST_SCALE = -73
"""The logarithm of scale number s is (s + this) / 16."""

REACH = 16
ESCAPE = 2 * REACH + 1
"""The symbol that says: further away than `REACH`. Symbol i below it is the difference i - `REACH`."""


def table_row(fraction: Integers | int, scale: Integers | int) -> Integers:
    """The row of `excess_table` for fractions of the mean, -32 to 31 (in 64ths), and numbers of scales."""
    return np.asarray((fraction + FRACTIONS // 2) * SCALES + scale)


@lru_cache(maxsize=1)
def excess_table() -> Floats:
    """Frequencies minus 1 of all distributions: float32 (64 * 154, 34), rows by `table_row`, for the range coder."""
    tails = _tails()
    fraction = np.arange(FRACTIONS)[:, None, None] - FRACTIONS // 2
    scale = np.arange(SCALES)[None, :, None]
    edge = np.arange(-REACH, REACH + 2)[None, None, :]
    # Where the symbol d begins, relative to the mean, in 64ths.
    distance = FRACTIONS * edge - FRACTIONS // 2 - fraction
    tail = tails[scale, np.abs(distance)]
    below = np.where(distance < 0, tail, 2**31 - tail)
    free = 2**PRECISION - (ESCAPE + 1) * _FLOOR
    starts = ((below - below[..., :1]) * free) >> 31
    excess = np.empty((FRACTIONS, SCALES, ESCAPE + 1), np.float32)
    excess[..., :-1] = np.diff(starts, axis=-1) + (_FLOOR - 1)
    excess[..., -1] = free - starts[..., -1] + (_FLOOR - 1)
    table = excess.reshape(FRACTIONS * SCALES, ESCAPE + 1)
    table.setflags(write=False)
    return table


def encode_differences(encoder: Encoder, differences: Integers, rows: Integers, group: int) -> None:
    """Write differences (n,) of the distributions `rows` (n,), in groups of `group` at a time: first the symbols of a
    group, then its escaped values.

    Raises:
        DataError: a difference of 2^16 or more in size.
    """
    far = np.abs(differences) > REACH
    symbols = np.where(far, ESCAPE, differences + REACH)
    table = excess_table()
    start = 0
    # Only a group with escapes interrupts the one call for all symbols.
    for last in np.unique(np.flatnonzero(far) // group):
        end = min((last + 1) * group, len(symbols))
        encoder.encode(symbols[start:end], table[rows[start:end]])
        here = slice(last * group, end)
        escaped = far[here]
        encode_golomb(encoder, _beyond(differences[here][escaped]), _orders(rows[here][escaped]))
        start = end
    encoder.encode(symbols[start:], table[rows[start:]])


def decode_differences(decoder: Decoder, rows: Integers) -> Integers:
    """One group of differences (n,) of the distributions `rows` (n,)."""
    found = decoder.decode(excess_table()[rows])
    escaped = found == ESCAPE
    found -= REACH
    if escaped.any():
        beyond = decode_golomb(decoder, _orders(rows[escaped]))
        size = (beyond >> 1) + REACH + 1
        found[escaped] = np.where(beyond & 1, -size, size)
    return found


def difference_bits(differences: Integers, rows: Integers) -> NDArray[np.float64]:
    """Bits of each difference: -log2 of its frequency over 2^24, and those of the code behind an escape."""
    far = np.abs(differences) > REACH
    bits = _bits_table()[rows, np.where(far, ESCAPE, differences + REACH)]
    bits[far] += golomb_bits(_beyond(differences[far]), _orders(rows[far]))
    return bits


def _beyond(differences: Integers) -> Integers:
    """Distance behind `REACH` and sign as one number; the sign is the last bit."""
    return 2 * (np.abs(differences) - REACH - 1) + (differences < 0)


def _orders(rows: Integers) -> Integers:
    """The code's order grows with the scale: 2^(order - 1) is roughly the scale."""
    return np.maximum(0, (rows % SCALES + LOWEST_SCALE) // 11) + 1


@lru_cache(maxsize=1)
def _tails() -> NDArray[np.int64]:
    """(154, n): for distance j / 64 from the mean, the probability beyond it on one side, times 2^31.

    From each number to the next it is multiplied by the scale's factor of 32 bits and rounded, in 64-bit integers:
    no library's exponential is involved, so all machines agree.
    """
    factors = _factors()
    tails = np.empty((SCALES, FRACTIONS * (REACH + 1) + 1), np.uint64)
    tails[:, 0] = 2**30
    for j in range(1, tails.shape[1]):
        tails[:, j] = (tails[:, j - 1] * factors + np.uint64(2**31)) >> np.uint64(32)
    return tails.astype(np.int64)


@lru_cache(maxsize=1)
def _bits_table() -> NDArray[np.float64]:
    return PRECISION - np.log2(excess_table().astype(np.float64) + 1)


def _factors() -> NDArray[np.uint64]:
    """(154,): exp(-1 / (64 scale)) times 2^32, from the file that scripts/laplace_factors.py writes."""
    text = resources.files(__package__).joinpath("laplace_factors.json").read_text(encoding="utf-8")
    factors = np.array(json.loads(text), np.uint64)
    if factors.shape != (SCALES,):
        raise DataError(f"laplace_factors.json holds {factors.shape} numbers, {SCALES} are needed; reinstall thurl")
    return factors
