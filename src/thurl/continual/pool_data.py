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
from thurl.continual.picture_inputs import PictureInputs, read_pictures
from thurl.continual.pool import ClassPool, raise_problems
from thurl.vision_models.preprocessing import PicturePreprocessing


__all__ = ["class_data", "class_data_from_features"]

Preprocess = Callable[[Image.Image | np.ndarray[Any, Any]], torch.Tensor]
"""An encoder's input from a picture; the test transform, so that a picture has one feature."""


def class_data(
    pool: ClassPool,
    encoder: nn.Module,
    preprocess: Preprocess | PicturePreprocessing,
    *,
    keep_inputs: bool = True,
    memory: int = 2**30,
    cache: Path | None = None,
    preprocessing: str = "",
    batch_size: int = 64,
    device: torch.device | str | None = None,
    advance: Callable[[int], None] | None = None,
) -> ClassData:
    """Features of every picture by `encoder`, and the inputs themselves for learners that train on.

    Args:
        preprocess: a picture as the encoder reads it. With a `PicturePreprocessing` the inputs are read from the
            pictures whenever they are asked for; any other function's inputs are held in memory as one tensor.
        keep_inputs: hold that tensor; False reads only pictures whose features are not in the cache.
        memory: bytes of prepared pictures that may be kept, see `PictureInputs`.
        cache, preprocessing: folder of kept features, and a name for `preprocess` where it has none of its own, see
            `thurl.continual.features.encode`.
        batch_size: pictures encoded at a time.
        device: to encode on; the encoder's own when None. Features are on the CPU.
        advance: told the number of pictures encoded.

    Raises:
        DataError: pictures that are missing, changed or cannot be decoded (the first 20 and the count), or features
            that are NaN or infinite.
    """
    inputs: torch.Tensor | PictureInputs | None
    if isinstance(preprocess, PicturePreprocessing):
        inputs = lazy = PictureInputs(pool, preprocess, memory)
        read: Callable[[Sequence[int]], torch.Tensor] = lazy.__getitem__
        preprocessing = preprocess.name
    elif keep_inputs:
        inputs = whole = torch.stack(read_pictures(pool, range(len(pool.images)), preprocess))
        read = lambda rows: whole[list(rows)]  # noqa: E731
    else:
        inputs, read = None, lambda rows: torch.stack(read_pictures(pool, rows, preprocess))
    features = encode(
        encoder,
        [item.sha256 for item in pool.images],
        read,
        folder=cache,
        preprocessing=preprocessing,
        batch_size=batch_size,
        device=device,
        advance=advance,
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


def _bundle(
    pool: ClassPool, features: torch.Tensor, inputs: torch.Tensor | PictureInputs | None, encoder: str
) -> ClassData:
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
