"""Networks of a slice as range-coded integers: per group a step, and the cheaper of two codes.

A group is either exponential Golomb codes (size, then sign) of the best order, or Laplace-distributed with mean 0 and
one of 32 scales 2^((i - 8) / 2). Of a wide distribution the last bits are written as they are, so that what remains
fits the table of `thurl.distillation.laplace`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.coded import GROUPS, CodedGroup, group_shapes
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.golomb import decode_golomb, encode_golomb, golomb_bits
from thurl.distillation.laplace import LOWEST_SCALE, decode_differences, difference_bits, encode_differences, table_row
from thurl.distillation.range_coder import Decoder, Encoder, Integers
from thurl.errors import DataError


__all__ = ["GOLOMB_ORDERS", "WIDTHS", "choose_code", "decode_nets", "encode_nets"]

GOLOMB_ORDERS = 13
WIDTHS = 32
"""Scales of Laplace codes."""

# Values whose escapes follow together; keeps the rows of distributions small.
_GROUP = 4096
_EXPONENT_BITS = 5
_ORDER_BITS = 4
_WIDTH_BITS = 5


def choose_code(values: Integers) -> tuple[bool, int, float]:
    """The cheaper code of integers (n,), at most 65535 in size.

    Returns:
        whether it is the Laplace code, its parameter (scale or order), its bits with those of the parameter.
    """
    size = np.abs(values)
    signs = np.count_nonzero(values)
    golomb = [float(golomb_bits(size, order).sum()) + signs + _ORDER_BITS for order in range(GOLOMB_ORDERS)]
    laplace = [_laplace_bits(values, width) + _WIDTH_BITS for width in range(WIDTHS)]
    if min(laplace) < min(golomb):
        return True, int(np.argmin(laplace)), min(laplace)
    return False, int(np.argmin(golomb)), min(golomb)


def encode_nets(encoder: Encoder, nets: dict[str, CodedGroup]) -> None:
    """Write all groups, in the order of `GROUPS`."""
    for name in GROUPS:
        group = nets[name]
        values = np.concatenate([value.ravel() for value in group.values]).astype(np.int64)
        laplace, parameter, _ = choose_code(values)
        head = [group.exponent, int(laplace), parameter]
        encoder.encode_uniform(np.array(head), np.array(_head_bits(laplace)))
        if laplace:
            shift, row = _split(parameter)
            shifted = values + ((1 << shift) >> 1)
            high = shifted >> shift
            encode_differences(encoder, high, np.full(len(high), row), _GROUP)
            encoder.encode_uniform(shifted - (high << shift), np.full(len(high), shift))
        else:
            encode_golomb(encoder, np.abs(values), np.full(len(values), parameter))
            signed = values[values != 0]
            encoder.encode_uniform((signed < 0).astype(np.int64), np.ones(len(signed), np.int64))


def decode_nets(decoder: Decoder, config: CodecConfig) -> dict[str, CodedGroup]:
    """Read what `encode_nets` wrote.

    Raises:
        DataError: codes that no encoder writes.
    """
    nets = {}
    for name, shapes in group_shapes(config).items():
        sizes = [int(np.prod(shape)) for shape in shapes]
        exponent, laplace = decoder.decode_uniform(np.array([_EXPONENT_BITS, 1])).tolist()
        (parameter,) = decoder.decode_uniform(np.array(_head_bits(bool(laplace))[2:])).tolist()
        if exponent > 16 or (not laplace and parameter >= GOLOMB_ORDERS):
            raise DataError(f"{name}: a step or code that no encoder writes; the file is damaged: copy it again")
        count = sum(sizes)
        if laplace:
            shift, row = _split(parameter)
            groups = [min(_GROUP, count - start) for start in range(0, count, _GROUP)]
            high = np.concatenate([decode_differences(decoder, np.full(size, row)) for size in groups])
            low = decoder.decode_uniform(np.full(count, shift))
            values = (high << shift) + low - ((1 << shift) >> 1)
        else:
            values = decode_golomb(decoder, np.full(count, parameter))
            signed = values != 0
            negative = decoder.decode_uniform(np.ones(np.count_nonzero(signed), np.int64))
            values[signed] *= 1 - 2 * negative
        if np.abs(values).max() > 65535:
            raise DataError(f"{name}: a value above 65535; the file is damaged: copy it again")
        parts = np.split(values.astype(np.int32), np.cumsum(sizes)[:-1])
        nets[name] = CodedGroup(exponent, tuple(part.reshape(s) for part, s in zip(parts, shapes, strict=True)))
    return nets


def _head_bits(laplace: bool) -> list[int]:
    return [_EXPONENT_BITS, 1, _WIDTH_BITS if laplace else _ORDER_BITS]


def _split(width: int) -> tuple[int, int]:
    """Bits that are written as they are, and the row of the table for the rest, whose scale is below 3."""
    shift = max(0, (width - 8) // 2 - 1)
    # Half steps of log2 in 16ths of the natural logarithm: 16 ln(2) / 2 = 5.545.
    scale = (5545 * (width - 8 - 2 * shift) + 500) // 1000
    return shift, int(table_row(0, scale - LOWEST_SCALE))


def _laplace_bits(values: NDArray[np.int64], width: int) -> float:
    shift, row = _split(width)
    high = (values + ((1 << shift) >> 1)) >> shift
    return float(difference_bits(high, np.full(len(high), row)).sum()) + shift * len(values)
