"""Whole numbers in float64: sums of products that are exact in any order, on any machine, with any number of threads.

A number is stored as an integer times 2^-12. A layer multiplies by weights that are integers times a power of two, so
every product and every partial sum is a whole number of a known unit. While all of them stay below 2^53 of that unit,
float64 represents each exactly, and neither the order of a sum nor a fused multiply-add can change the result; layers
whose sums could reach 2^52 are refused. After each layer numbers are rounded to the unit again, halves upwards, and
held to `LIMIT`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.coded import CodedGroup
from thurl.errors import DataError


__all__ = ["BITS", "LARGEST_LATENT", "LIMIT", "Layer", "rounded"]

BITS = 12
"""Numbers are multiples of 2 to the power of minus this."""

LARGEST_LATENT = 4095
"""Latents are at most this in size."""

LIMIT = float(2 ** (BITS + 12) - 1)
"""Largest number after a layer, in units of 2^-12: just below 4096."""

_EXACT = 2.0**52

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A linear map whose output is in the same unit as its input.

    Args:
        weight: float64 (out, in), multiples of 2^-bits.
        bias: float64 (out,), in units of 2^-12 and multiples of 2^-bits of it; holds the half that rounding needs.
    """

    weight: Floats
    bias: Floats

    @classmethod
    def of(
        cls,
        weight: NDArray[np.int32],
        weight_exponent: int,
        bias: NDArray[np.int32] | None = None,
        bias_exponent: int = 0,
        *,
        identity: NDArray[np.float64] | None = None,
        finer: int = 0,
        what: str = "layer",
    ) -> Layer:
        """Put a layer of a network into whole numbers.

        Args:
            weight: int32 (out, in), times 2^-weight_exponent.
            bias: int32 (out,), times 2^-bias_exponent.
            identity: (out, in) of zeros and ones, added to the weights: the way around a residual layer.
            finer: the output is coarser than the input by so many bits: its unit is 2^-(12 - finer).
            what: what messages call the layer.

        Raises:
            DataError: sums could reach 2^52, beyond which they are not exact.
        """
        scale = 2.0**-finer
        matrix = weight.astype(np.float64) * 2.0**-weight_exponent
        if identity is not None:
            matrix = matrix + identity
        offset = np.zeros(len(matrix)) if bias is None else bias.astype(np.float64) * 2.0 ** (BITS - bias_exponent)
        unit = finer + max(weight_exponent, bias_exponent - BITS, 1)
        layer = cls(matrix * scale, offset * scale + 0.5)
        largest = np.abs(layer.weight).sum(1) * (LIMIT + 1) + np.abs(layer.bias)
        if largest.max() * 2.0**unit >= _EXACT:
            raise DataError(
                f"{what}: weights of {np.abs(matrix).sum(1).max():.4g} in all for an output, in steps of "
                f"2^-{weight_exponent}: sums could leave the whole numbers that float64 holds. Quantise coarser, "
                "or train with smaller weights"
            )
        return layer

    def __call__(self, values: Floats) -> Floats:
        """Rounded sums (out, n) for `values` (in, n) of at most `LIMIT` + 1; not yet held to `LIMIT`."""
        sums = self.weight @ values
        sums += self.bias[:, None]
        return np.floor(sums, out=sums)


def rounded(group: CodedGroup, position: int) -> NDArray[np.int32]:
    """Tensor `position` of a group as a matrix: (out, everything else), or (out,) for biases."""
    value = group.values[position]
    return value.reshape(len(value), -1) if value.ndim > 1 else value
