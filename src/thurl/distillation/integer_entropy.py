"""The entropy network in whole numbers: the same probabilities wherever a file is read.

Input is the latents as they are; the mean comes out in 64ths, the logarithm of the scale in 16ths, and
`thurl.distillation.laplace` turns both into frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.coded import CodedGroup, CodedSlice
from thurl.distillation.context import REACH, context_offsets
from thurl.distillation.fixed_point import BITS, LARGEST_LATENT, LIMIT, Layer, rounded
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.laplace import FRACTIONS, LOWEST_SCALE, SCALES, difference_bits, table_row
from thurl.errors import DataError


__all__ = ["EntropyNetwork", "LevelPlan", "level_blocks", "slice_bits"]

Integers = NDArray[np.int64]

# Columns of contexts that are predicted in one call while writing.
_COLUMNS = 2**15


class EntropyNetwork:
    """Predicts distributions of latents from their contexts.

    Args:
        config: shapes.
        weight, bias: the groups `arm_weight` and `arm_bias`.

    Raises:
        DataError: weights so large that sums would not be exact.
    """

    def __init__(self, config: CodecConfig, weight: CodedGroup, bias: CodedGroup) -> None:
        eye = np.eye(config.context)
        self._hidden = [
            Layer.of(
                rounded(weight, i), weight.exponent, rounded(bias, i), bias.exponent, identity=eye,
                what=f"entropy network, hidden layer {i + 1}",
            )
            for i in range(config.depth)
        ]  # fmt: skip
        last = "entropy network, last layer"
        outputs, offsets = rounded(weight, config.depth), rounded(bias, config.depth)
        exponents = weight.exponent, bias.exponent
        mean = Layer.of(outputs[:1], exponents[0], offsets[:1], exponents[1], finer=BITS - 6, what=last)
        scale = Layer.of(outputs[1:], exponents[0], offsets[1:], exponents[1], finer=BITS - 4, what=last)
        # 4, which is 64 in 16ths, is taken off the network's scale before it is held to the range of the table.
        self._zero = 64 + LOWEST_SCALE
        edge = float(FRACTIONS * LARGEST_LATENT)
        self._least = np.array([[-edge], [self._zero]])
        self._most = np.array([[edge], [self._zero + SCALES - 1.0]])
        # One product for both: rows of a matrix know nothing of each other.
        self._last = Layer(np.concatenate([mean.weight, scale.weight]), np.concatenate([mean.bias, scale.bias]))

    def predict(self, contexts: NDArray[np.float64]) -> tuple[Integers, Integers]:
        """Distributions of n latents.

        Args:
            contexts: float64 (context, n), latents at the offsets of `context_offsets`, 0 outside the grid.

        Returns:
            rows of `thurl.distillation.laplace.excess_table` (n,), and the whole parts of the means (n,).
        """
        values = contexts * 2.0**BITS
        for layer in self._hidden:
            values = layer(values)
            np.maximum(values, 0.0, out=values)
            np.minimum(values, LIMIT, out=values)
        outputs = self._last(values)
        np.maximum(outputs, self._least, out=outputs)
        np.minimum(outputs, self._most, out=outputs)
        mean, scale = outputs.astype(np.int64)
        whole = (mean + FRACTIONS // 2) >> 6
        return table_row(mean - FRACTIONS * whole, scale - self._zero), whole


class LevelPlan:
    """Where the latents of one level and their neighbours lie in a grid with a margin of zeros.

    The grid is float64 (cells, samples); all samples of a position are one row.
    """

    def __init__(self, config: CodecConfig, size: tuple[int, int], samples: int) -> None:
        height, width = size
        stride = width + 2 * REACH
        self.grid = np.zeros(((height + REACH) * stride, samples))
        rows, columns = np.divmod(np.arange(height * width), width)
        self.cells = (rows + REACH) * stride + columns + REACH
        self.offsets = np.array([row * stride + column for row, column in context_offsets(config.context)])

    def fill(self, latents: NDArray[np.int32]) -> None:
        """Put latents (samples, height, width) into the grid."""
        self.grid[self.cells] = latents.reshape(len(latents), -1).T

    def latents(self, size: tuple[int, int]) -> NDArray[np.int32]:
        """Latents (samples, height, width) of the grid."""
        return np.ascontiguousarray(self.grid[self.cells].T).astype(np.int32).reshape(-1, *size)


def level_blocks(coded: CodedSlice) -> Iterator[tuple[int, Integers, Integers]]:
    """All latents of a slice in the order of the file: level (coarse to fine), raster position, sample.

    Yields:
        blocks of whole positions: the level, differences (n,) to the whole parts of the means, rows of the table (n,).

    Raises:
        DataError: latents that the format does not hold, weights that are too large.
    """
    for level, latents in enumerate(coded.latents):
        largest = int(np.abs(latents.astype(np.int64)).max(initial=0))
        if largest > LARGEST_LATENT:
            raise DataError(
                f"level {level} has a latent of size {largest}: at most {LARGEST_LATENT} can be stored; train with a "
                "smaller gain"
            )
    network = EntropyNetwork(coded.config, coded.nets["arm_weight"], coded.nets["arm_bias"])
    samples = len(coded.labels)
    step = max(1, _COLUMNS // samples)
    for level in reversed(range(coded.config.levels)):
        plan = LevelPlan(coded.config, coded.config.level_sizes[level], samples)
        plan.fill(coded.latents[level])
        for start in range(0, len(plan.cells), step):
            cells = plan.cells[start : start + step]
            contexts = plan.grid[plan.offsets[:, None] + cells].reshape(len(plan.offsets), -1)
            rows, whole = network.predict(contexts)
            values = plan.grid[cells].reshape(-1).astype(np.int64)
            yield level, values - whole, rows


def slice_bits(coded: CodedSlice) -> float:
    """Bits of the latents of a slice from the integer probabilities that the file is written with.

    The file has them rounded up to words of 32 bits, and at most one word more.

    Raises:
        DataError: see `level_blocks`.
    """
    return float(sum(difference_bits(differences, rows).sum() for _, differences, rows in level_blocks(coded)))
