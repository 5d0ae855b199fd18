"""A class pool as tensors: pictures are read and checked once, features come from the cache where they are in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from thurl.continual.class_data import ClassData
from thurl.continual.features import encode, features_key, read_features
from thurl.continual.pool import ClassPool, raise_problems
from thurl.continual.pool_sources import read_picture
from thurl.errors import DataError


__all__ = ["class_data", "class_data_from_features"]

Preprocess = Callable[[Image.Image | np.ndarray[Any, Any]], torch.Tensor]
"""An encoder's input from a picture; the test transform, so that a picture has one feature."""


def class_data(
    pool: ClassPool,
    encoder: nn.Module,
    preprocess: Preprocess,
    *,
    keep_inputs: bool = True,
    cache: Path | None = None,
    preprocessing: str = "",
    batch_size: int = 64,
    advance: Callable[[int], None] | None = None,
) -> ClassData:
    """Features of every picture by `encoder`, and the inputs themselves for learners that train on.

    Args:
        preprocess: a picture as the encoder reads it.
        keep_inputs: hold all inputs in memory; False reads only pictures whose features are not in the cache.
        cache, preprocessing: folder of kept features, and a name for `preprocess`, see
            `thurl.continual.features.encode`.
        batch_size: pictures encoded at a time.
        advance: told the number of pictures encoded.

    Raises:
        DataError: pictures that are missing, changed or cannot be decoded (the first 20 and the count), or features
            that are NaN or infinite.
    """
    inputs = _read(pool, range(len(pool.images)), preprocess) if keep_inputs else None

    def read(rows: Sequence[int]) -> torch.Tensor:
        return inputs[list(rows)] if inputs is not None else _read(pool, rows, preprocess)

    digests = [item.sha256 for item in pool.images]
    features = encode(
        encoder, digests, read, folder=cache, preprocessing=preprocessing, batch_size=batch_size, advance=advance
    )
    return _bundle(pool, features, inputs, features_key(encoder, preprocessing))


def class_data_from_features(pool: ClassPool, path: Path, *, encoder: str | None = None) -> ClassData:
    """The features of any encoder, from a file of `thurl.continual.features`; for learners with a frozen encoder.

    Args:
        path: the file; its name without the ending stands for the encoder where `encoder` is None.

    Raises:
        DataError: pictures of the pool without features; the first 20 and the count.
    """
    kept = read_features(path, encoder)
    lacking = [f"{item.image}: no features ({item.sha256[:12]})" for item in pool.images if item.sha256 not in kept]
    raise_problems(lacking, f"{path}: not the features of this pool")
    features = torch.stack([kept[item.sha256] for item in pool.images]).float()
    return _bundle(pool, features, None, encoder or path.stem)


def _read(pool: ClassPool, rows: Sequence[int], preprocess: Preprocess) -> torch.Tensor:
    found, problems = [], []
    for row in rows:
        item = pool.images[row]
        try:
            found.append(preprocess(read_picture(item.image, pool.root, item.sha256)))
        except DataError as error:
            problems.append(str(error))
    raise_problems(problems, "pictures of the pool that cannot be used")
    return torch.stack(found)


def _bundle(pool: ClassPool, features: torch.Tensor, inputs: torch.Tensor | None, encoder: str) -> ClassData:
    number = {uid: index for index, uid in enumerate(pool.classes)}
    return ClassData(
        pool.classes,
        torch.tensor([number[item.class_uid] for item in pool.images]),
        [item.split for item in pool.images],
        features=features,
        inputs=inputs,
        encoder=encoder,
        pool_hash=pool.hash,
        groups=pool.groups,
    )
