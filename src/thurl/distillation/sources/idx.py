"""IDX files, as MNIST and FashionMNIST are released."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from thurl.distillation.pictures import STATISTICS, PictureSet, split_pictures
from thurl.distillation.sources.common import two_parts
from thurl.errors import DataError, UsageError


__all__ = ["load_idx", "read_idx"]

_CLASSES = {
    "fashion_mnist": ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    "mnist": tuple("0123456789"),
}

MAX_BYTES = 1 << 30
"""Largest array that is read."""


def load_idx(
    folder: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    name: str = "mnist",
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    seed: int = 0,
) -> tuple[PictureSet, PictureSet]:
    """MNIST or FashionMNIST, files plain or as `.gz`.

    Args:
        folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two of `t10k`. Where only one of
            the two parts is there, it is split by `train_per_class` and `test_per_class`.
        size: height and width to average to.
        name: `mnist` or `fashion_mnist`, for the normalisation; at another size than 28 it is computed.
        train_per_class, test_per_class: pictures of each class, drawn with `seed`; None for all of a part.

    Raises:
        DataError: files that are missing or not what they should be.
        UsageError: an unknown name, or one part alone and no numbers.
    """
    if name not in _CLASSES:
        raise UsageError(f"name: `{name}` must be one of {', '.join(_CLASSES)}")
    place = Path(folder)
    parts = {}
    for part in ("train", "t10k"):
        images, labels = _find(place, f"{part}-images-idx3-ubyte"), _find(place, f"{part}-labels-idx1-ubyte")
        if images and labels:
            parts[part] = _part(images, labels)
        elif images or labels:
            raise DataError(f"{place}: {part} has {'pictures but no labels' if images else 'labels but no pictures'}")
    if not parts:
        raise DataError(f"{place}: no train-images-idx3-ubyte or t10k-images-idx3-ubyte (.gz) with its labels")
    normalisation = STATISTICS[name] if size in (None, (28, 28)) else None
    classes = _CLASSES[name]
    if len(parts) == 2:
        train, test = two_parts(parts["train"], parts["t10k"], classes, normalisation, size)
        generator = torch.Generator().manual_seed(seed)
        return (
            train if train_per_class is None else train.draw(train_per_class, generator),
            test if test_per_class is None else test.draw(test_per_class, generator),
        )
    if train_per_class is None or test_per_class is None:
        raise UsageError(
            f"{place}: only the part {next(iter(parts))} is there; give train_per_class and test_per_class to split it"
        )
    (only,) = parts.values()
    whole, _ = two_parts(only, only, classes, STATISTICS[name], size)
    train, test = split_pictures(whole, train_per_class, test_per_class, torch.Generator().manual_seed(seed))
    return two_parts((train.images, train.labels), (test.images, test.labels), classes, normalisation)


def read_idx(path: str | os.PathLike[str], dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file, plain or gzipped.

    Raises:
        DataError: not one, of other dimensions, shorter or longer than its header says, or too large.
    """
    file = Path(path)
    try:
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error}); download it again") from error
    head = 4 + 4 * dimensions
    if len(content) < head or content[:3] != b"\0\0\x08" or content[3] != dimensions:
        raise DataError(f"{file}: no IDX file of bytes in {dimensions} dimensions")
    shape = tuple(int(value) for value in np.frombuffer(content, ">u4", dimensions, offset=4))
    size = int(np.prod([int(side) for side in shape], dtype=object))
    if len(content) - head != size:
        raise DataError(
            f"{file}: its header says {'x'.join(map(str, shape))} bytes, but {len(content) - head} follow; "
            "download it again"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy()


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _part(images: Path, labels: Path) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, classes = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(classes):
        raise DataError(f"{images}: {len(pixels)} pictures, but {len(classes)} labels in {labels.name}")
    return torch.from_numpy(pixels)[:, None], torch.from_numpy(classes.astype(np.int64))
