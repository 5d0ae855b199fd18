"""How much a `.ddr` file may ask for: checked before memory is taken or time is spent."""

from __future__ import annotations

import math
import stat
from collections.abc import Sequence
from pathlib import Path

from thurl.distillation.ddr_header import SlicePlan
from thurl.distillation.geometry import CodecConfig
from thurl.errors import DataError


__all__ = ["MAX_BYTES", "check_size", "decoding_work", "read_content"]

MAX_BYTES = 2**29
"""Largest size of all pictures, 8 bits per value, that is read or written unless asked for more."""

_MAX_PARAMETERS = 2**20
_MAX_WORK = 2**46


def decoding_work(config: CodecConfig) -> int:
    """Multiplications to decode one sample: entropy network for each latent, upsampling, synthesis for each pixel."""
    sizes = config.level_sizes
    arm = config.latents * sum(math.prod(shape) for shape in config.arm_shapes if len(shape) > 1)
    # Level l holds the enlarged channels of all coarser ones; 4 x 4 of the kernel meet each of their pixels.
    upsampling = 16 * sum(h * w * (config.levels - 1 - level) for level, (h, w) in enumerate(sizes))
    weights = sum(math.prod(shape) for shape in config.synthesis_shapes if len(shape) > 1)
    return arm + upsampling + config.height * config.width * weights


def check_size(plans: Sequence[SlicePlan], max_bytes: int, name: str) -> None:
    """Refuse what would fill the memory or never end, before anything of that size exists.

    Args:
        plans: of all slices.
        max_bytes: largest size of all pictures.
        name: what messages call the file.

    Raises:
        DataError: more pictures, networks of more than 2^20 numbers, or more than 2^46 multiplications.
    """
    size = work = 0
    for i, plan in enumerate(plans):
        config = plan.config
        parameters = sum(
            math.prod(shape)
            for net in ("arm", "upsampling", "synthesis")
            for shape in getattr(config, f"{net}_shapes")
        )
        if parameters > _MAX_PARAMETERS:
            raise DataError(
                f"{name}: slice {i} has networks of {parameters} numbers, at most {_MAX_PARAMETERS} are read"
            )
        size += plan.samples * config.height * config.width * config.channels
        work += plan.samples * decoding_work(config)
    if size > max_bytes:
        raise DataError(
            f"{name}: {size} bytes of pictures, at most {max_bytes} are decoded; pass a larger max_bytes if you trust "
            "the file"
        )
    if work > _MAX_WORK:
        raise DataError(f"{name}: decoding would take {work} multiplications, at most {_MAX_WORK} are done")


def read_content(path: Path, max_bytes: int) -> bytes:
    """All bytes of a file of at most `max_bytes`.

    Raises:
        DataError: no such file, not a regular one, larger, or not to be read.
    """
    try:
        found = path.stat()
        # A named pipe or a device would block for ever.
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path}: this is not a regular file; give the path of a .ddr file")
        if found.st_size > max_bytes:
            raise DataError(f"{path}: {found.st_size} bytes, at most {max_bytes} are read; pass a larger max_bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
