"""A pool that comes with scikit-learn: its 8 x 8 digits in seven domains, 70 classes, and an encoder that knows one.

Small enough for a search on a CPU in seconds. The encoder is pre-trained on one of the domains of the pool, as a
pre-trained model has seen some of a benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thurl.continual.encoders import MLPEncoder, MLPEncoderConfig, pretrain
from thurl.continual.encoding import flat_input
from thurl.continual.pool import ClassPool, make_pool
from thurl.continual.pool_data import class_data
from thurl.continual.pool_sources import array_samples
from thurl.errors import MissingRequirementError, UsageError


__all__ = ["DOMAINS", "SIDE", "digit_domains", "digit_pool", "domain_pool", "informed_encoder", "seven_domains"]

DOMAINS = ("orig", "rot90", "inverted", "noise", "blur", "permuted", "inverted_noise")
SIDE = 8
"""Pixels of a side."""

Pictures = np.ndarray[Any, np.dtype[np.float32]]


def seven_domains(pictures: Pictures, generator: np.random.Generator, *, block: int = 1) -> dict[str, Pictures]:
    """The pictures in each of `DOMAINS`: as they are, turned by 90 degrees, inverted, with noise, blurred, with a
    fixed permutation of blocks, inverted with more noise.

    Args:
        pictures: float [N, side, side] in [0, 1], at least 8 pixels a side.
        generator: of permutation and noise.
        block: side of what is permuted, a divisor of `side`: a pixel, or a patch as an encoder reads it.

    Returns:
        float32, of the same shape and range.

    Raises:
        UsageError: a block that does not divide the side.
    """
    count, side = len(pictures), pictures.shape[1]
    if block < 1 or side % block:
        raise UsageError(f"block is {block}; it must divide the side of the pictures, {side}")
    cells = side // block
    order = generator.permutation(cells * cells)
    blocks = pictures.reshape(count, cells, block, cells, block).swapaxes(2, 3).reshape(count, -1, block, block)
    moved = blocks[:, order].reshape(count, cells, cells, block, block).swapaxes(2, 3)

    def noise(clean: Pictures, deviation: float) -> Pictures:
        return np.clip(clean + deviation * generator.normal(size=clean.shape), 0, 1)

    found = {
        "orig": pictures,
        "rot90": np.rot90(pictures, axes=(1, 2)),
        "inverted": 1 - pictures,
        "noise": noise(pictures, 0.35),
        "blur": _blurred(pictures, side // 8),
        "permuted": moved.reshape(count, side, side),
        "inverted_noise": noise(1 - pictures, 0.5),
    }
    return {name: np.ascontiguousarray(made, dtype=np.float32) for name, made in found.items()}


def digit_domains(seed: int) -> tuple[dict[str, Pictures], np.ndarray[Any, Any]]:
    """Pictures float32 [1797, 8, 8] in [0, 1] of each of `DOMAINS`, and their digits int [1797].

    Args:
        seed: of noise and permutation.

    Raises:
        MissingRequirementError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingRequirementError("the digits need scikit-learn; run `pip install 'thurl[vision]'`") from None
    bundle = load_digits()
    return seven_domains((bundle.images / 16).astype(np.float32), np.random.default_rng(seed)), bundle.target


def digit_pool(folder: Path, seed: int, *, sizes: tuple[int, int, int], domains: Sequence[str] = DOMAINS) -> ClassPool:
    """The domains as .npz files in `folder` and a pool of them; the same digit in two domains is two things here.

    Args:
        folder: is made.
        seed: of the domains and of the splits.
        sizes: pictures of each class for training, validation and test.
        domains: which of `DOMAINS`.

    Raises:
        UsageError: an unknown domain.
    """
    unknown = [name for name in domains if name not in DOMAINS]
    if unknown or not domains:
        raise UsageError(f"domains are {list(domains)}; name one or more of {', '.join(DOMAINS)}")
    pictures, labels = digit_domains(seed)
    return domain_pool(folder, {name: (pictures[name], labels) for name in domains}, seed, sizes=sizes)


def domain_pool(
    folder: Path,
    domains: Mapping[str, tuple[Pictures, np.ndarray[Any, Any]]],
    seed: int,
    *,
    sizes: tuple[int, int, int],
) -> ClassPool:
    """Labelled pictures as .npz files in `folder`, one per domain, and a pool of them in which classes that are called
    alike are different things.

    Args:
        folder: is made.
        domains: name to pictures [N, side, side] and labels int [N].
        seed: of the splits.
        sizes: pictures of each class for training, validation and test.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for name, (pictures, labels) in domains.items():
        file = folder / f"{name}.npz"
        np.savez(file, images=pictures, labels=labels)
        samples += array_samples(file)
    return make_pool(samples, folder, sizes=sizes, seed=seed, share_names=False)


def informed_encoder(
    pool: ClassPool,
    known: Sequence[str],
    *,
    seed: int,
    side: int = SIDE,
    hidden_sizes: Sequence[int] = (96, 32),
    epochs: int = 40,
    learning_rate: float = 0.02,
    batch_size: int = 64,
) -> tuple[MLPEncoder, float]:
    """An `MLPEncoder` pre-trained on the training pictures of some data sets of a pool, and its accuracy on them.

    Args:
        known: names of the data sets.
        seed: of the weights and the order; torch's own generator stays as it is.

    Raises:
        UsageError: a data set that is not in the pool.
    """
    there = sorted({uid.partition("/")[0] for uid in pool.classes})
    unknown = [name for name in known if name not in there]
    if unknown or not known:
        raise UsageError(f"the encoder is to know {list(known)}; the pool has {', '.join(there)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = MLPEncoder(MLPEncoderConfig(side=side, hidden_sizes=list(hidden_sizes)))
    blank = class_data(pool, encoder, lambda picture: flat_input(picture, side))
    chosen = [index for index, uid in enumerate(blank.classes) if uid.partition("/")[0] in known]
    rows = blank.rows(chosen, "train")
    labels = torch.tensor([chosen.index(int(label)) for label in blank.labels[rows]])
    fit = pretrain(
        encoder,
        blank.read(rows),
        labels,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
    )
    return encoder, fit


def _blurred(pictures: Pictures, radius: int) -> Pictures:
    """Mean over a square of 2 * radius + 1 pixels; what lies outside is 0."""
    side, width = pictures.shape[1], 2 * radius + 1
    around = np.pad(pictures, ((0, 0), (radius, radius), (radius, radius)))
    total = sum(around[:, i : i + side, j : j + side] for i in range(width) for j in range(width))
    return np.asarray(total / width**2)
