"""Digits in seven domains as a pool of 70 classes, for the CLDyB benchmarks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from thurl.continual.pool import ClassPool, make_pool
from thurl.continual.pool_sources import array_samples


Array = np.ndarray[Any, Any]


def seven_domains(pictures: Array, generator: np.random.Generator, *, block: int = 1) -> dict[str, Array]:
    """Pictures as they are, turned by 90 degrees, inverted, with noise, blurred, with a fixed permutation of blocks,
    inverted with more noise.

    Args:
        pictures: float [N, side, side] in [0, 1].
        block: side of what is permuted: pixels, or the patches an encoder reads.

    Returns:
        name of the domain to pictures of the same shape and range.
    """
    count, side = len(pictures), pictures.shape[1]
    cells = side // block
    order = generator.permutation(cells * cells)

    def noise(clean: Array, deviation: float) -> Array:
        return np.clip(clean + deviation * generator.normal(size=clean.shape), 0, 1)

    blocks = pictures.reshape(count, cells, block, cells, block).swapaxes(2, 3).reshape(count, -1, block, block)
    moved = blocks[:, order].reshape(count, cells, cells, block, block).swapaxes(2, 3)
    return {
        "orig": pictures,
        "rot90": np.rot90(pictures, axes=(1, 2)),
        "inverted": 1 - pictures,
        "noise": noise(pictures, 0.35),
        "blur": blurred(pictures, side // 8),
        "permuted": moved.reshape(count, side, side),
        "inverted_noise": noise(1 - pictures, 0.5),
    }


def blurred(pictures: Array, radius: int) -> Array:
    """Mean over a square of 2 * radius + 1 pixels; what lies outside is 0."""
    side, width = pictures.shape[1], 2 * radius + 1
    around = np.pad(pictures, ((0, 0), (radius, radius), (radius, radius)))
    total = sum(around[:, i : i + side, j : j + side] for i in range(width) for j in range(width))
    return total / width**2


@contextmanager
def domain_pool(domains: Mapping[str, tuple[Array, Array]], *, sizes: tuple[int, int, int], seed: int) -> Any:
    """A pool of the digits of every domain, as long as the context lasts.

    Args:
        domains: name to pictures [N, side, side] and digits [N].
        sizes: pictures per class for training, for the reward of the search, and for the report.
        seed: of the splits.
    """
    with tempfile.TemporaryDirectory() as place:
        samples = []
        for name, (pictures, digits) in domains.items():
            file = Path(place) / f"{name}.npz"
            np.savez(file, images=np.ascontiguousarray(pictures, dtype=np.float32), labels=digits)
            samples += array_samples(file)
        # A digit of one domain is another thing than that of another: telling them apart is the task.
        pool: ClassPool = make_pool(samples, Path(place), sizes=sizes, seed=seed, share_names=False)
        yield pool
