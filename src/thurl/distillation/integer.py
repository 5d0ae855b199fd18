"""Pictures of a coded data set in whole numbers: the same 8-bit values on every machine.

Upsampling and synthesis of Bao et al., "Dataset Distillation as Data Compression" (arXiv 2507.17221), with numbers
rounded to 2^-12 after every layer (`thurl.distillation.fixed_point`). These pictures, not those of the trained float
networks, are the data set: what is evaluated is what is shipped. docs/ddr_format.md says how far both are apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.coded import CodedGroup, CodedSlice
from thurl.distillation.fixed_point import BITS, LARGEST_LATENT, LIMIT, Floats, Layer, rounded
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.integer_entropy import slice_bits
from thurl.errors import DataError


__all__ = ["decode_images", "slice_bits"]

# Numbers of one layer that are held at a time.
_BLOCK = 2**22


def decode_images(coded: CodedSlice) -> NDArray[np.uint8]:
    """The pictures of a slice: uint8 (samples, channels, height, width).

    Raises:
        DataError: weights or latents so large that sums would not be exact.
    """
    config, samples = coded.config, len(coded.labels)
    if any(np.abs(level.astype(np.int64)).max(initial=0) > LARGEST_LATENT for level in coded.latents):
        raise DataError(f"a latent is above {LARGEST_LATENT} in size; train with a smaller gain")
    upsampling = _upsampling(coded.nets["upsampling_weight"])
    pointwise, residual = _synthesis(config, coded.nets["synthesis_weight"], coded.nets["synthesis_bias"])
    images = np.empty((samples, config.channels, config.height, config.width), np.uint8)
    step = max(1, _BLOCK // (max(16, *config.widths) * config.height * config.width))
    for start in range(0, samples, step):
        part = slice(start, start + step)
        values = _pyramid([level[part] for level in coded.latents], upsampling)
        count = values.shape[1]
        values = values.reshape(len(values), -1)
        for layer in pointwise[:-1]:
            values = _held(np.maximum(layer(values), 0.0))
        values = _held(pointwise[-1](values))
        grid = values.reshape(config.channels, count, config.height, config.width)
        first, second = residual
        grid = _held(np.maximum(_convolved(grid, first), 0.0))
        grid = _held(_convolved(grid, second))
        # Halves upwards once more; 255 times a number below 4096 is far from 2^53.
        pixels = np.floor(grid * (255 * 2.0**-BITS) + 0.5)
        images[part] = np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 0, 2, 3)
    return images


def _upsampling(group: CodedGroup) -> list[list[Layer]]:
    """Layers (1, 16) by parity of the row and of the column: outputs from 4 x 4 neighbours.

    The transposed convolution has stride 2 and a kernel of 8; after it 3 cells are cut at the start, so output 2 m
    takes the odd places of the kernel from inputs m + 1 to m - 2, and 2 m + 1 the even ones from m + 2 to m - 1.
    """
    kernel = group.values[0].reshape(8, 8)
    return [
        [
            Layer.of(kernel[1 - row :: 2, 1 - column :: 2].reshape(1, 16), group.exponent, what="upsampling kernel")
            for column in (0, 1)
        ]
        for row in (0, 1)
    ]


def _synthesis(config: CodecConfig, weight: CodedGroup, bias: CodedGroup) -> tuple[list[Layer], list[Layer]]:
    count = len(config.widths) + 1
    # The middle of each 3 x 3 window of the same channel: the way around a residual layer.
    around = np.zeros((config.channels, config.channels, 9))
    around[np.arange(config.channels), np.arange(config.channels), 4] = 1
    layers = [
        Layer.of(
            rounded(weight, i), weight.exponent, rounded(bias, i), bias.exponent,
            identity=around.reshape(config.channels, -1) if i >= count else None,
            what=f"synthesis, layer {i + 1}",
        )
        for i in range(count + 2)
    ]  # fmt: skip
    return layers[:count], layers[count:]


def _pyramid(latents: list[NDArray[np.int32]], layers: list[list[Layer]]) -> Floats:
    """(levels, samples, height, width) in units of 2^-12, the finest level first, all of the finest size."""
    grid = latents[-1].astype(np.float64)[None] * 2.0**BITS
    for level in latents[-2::-1]:
        height, width = level.shape[1:]
        grid = _upsampled(grid, layers)[:, :, :height, :width]
        grid = np.concatenate([level.astype(np.float64)[None] * 2.0**BITS, grid])
    return grid


def _upsampled(grid: Floats, layers: list[list[Layer]]) -> Floats:
    channels, samples, height, width = grid.shape
    out = np.empty((channels, samples, height, 2, width, 2))
    for parity, of_row in enumerate(layers):
        rows = [grid[:, :, _clipped(height, 1 + parity - i)] for i in range(4)]
        for side, layer in enumerate(of_row):
            columns = [_clipped(width, 1 + side - j) for j in range(4)]
            window = np.stack([row[..., column].reshape(-1) for row in rows for column in columns])
            out[:, :, :, parity, :, side] = _held(layer(window)).reshape(channels, samples, height, width)
    return out.reshape(channels, samples, 2 * height, 2 * width)


def _convolved(grid: Floats, layer: Layer) -> Floats:
    """A 3 x 3 convolution of (channels, samples, height, width) whose edge is repeated outwards."""
    channels, samples, height, width = grid.shape
    window = np.stack(
        [grid[:, :, _clipped(height, i)][..., _clipped(width, j)] for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=1
    )
    return layer(window.reshape(channels * 9, -1)).reshape(-1, samples, height, width)


def _clipped(size: int, shift: int) -> NDArray[np.int64]:
    return np.clip(np.arange(size) + shift, 0, size - 1)


def _held(values: Floats) -> Floats:
    return np.clip(values, -LIMIT, LIMIT, out=values)
