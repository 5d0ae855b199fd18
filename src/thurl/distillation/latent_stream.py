"""Latents of a slice in one range-coded stream: level (coarse to fine), raster position, sample.

Contexts never cross samples, so all samples of a position are predicted in one call, which is what makes reading fast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.coded import CodedGroup, CodedSlice
from thurl.distillation.fixed_point import LARGEST_LATENT
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.integer_entropy import EntropyNetwork, LevelPlan, level_blocks
from thurl.distillation.laplace import decode_differences, encode_differences
from thurl.distillation.range_coder import Decoder, Encoder
from thurl.errors import DataError


__all__ = ["decode_latents", "encode_latents"]


def encode_latents(encoder: Encoder, coded: CodedSlice) -> None:
    """Write the latents of a slice.

    Raises:
        DataError: latents or weights that the format does not hold.
    """
    for _, differences, rows in level_blocks(coded):
        encode_differences(encoder, differences, rows, len(coded.labels))


def decode_latents(
    decoder: Decoder, config: CodecConfig, samples: int, nets: dict[str, CodedGroup]
) -> tuple[NDArray[np.int32], ...]:
    """Read what `encode_latents` wrote: int32 (samples, height, width) per level, the finest first.

    Raises:
        DataError: data that no encoder writes.
    """
    network = EntropyNetwork(config, nets["arm_weight"], nets["arm_bias"])
    levels = []
    for size in reversed(config.level_sizes):
        plan = LevelPlan(config, size, samples)
        for cell in plan.cells.tolist():
            rows, whole = network.predict(plan.grid[cell + plan.offsets])
            plan.grid[cell] = decode_differences(decoder, rows) + whole
            # At once: a value that no latent has must not become the context of others.
            if np.abs(plan.grid[cell]).max() > LARGEST_LATENT:
                raise DataError(f"a latent above {LARGEST_LATENT} in size; the file is damaged: copy it again")
        levels.append(plan.latents(size))
    return tuple(reversed(levels))
