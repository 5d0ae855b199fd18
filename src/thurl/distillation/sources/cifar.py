"""CIFAR-10 and CIFAR-100 in the binary version of their release; the Python version is pickled and is not opened."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from thurl.distillation.pictures import STATISTICS, PictureSet
from thurl.distillation.sources.common import two_parts
from thurl.errors import DataError


__all__ = ["load_cifar"]

_PIXELS = 3 * 32 * 32
_CIFAR10 = ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"], "batches.meta.txt", 1, 10)
_CIFAR100 = (["train.bin"], ["test.bin"], "fine_label_names.txt", 2, 100)


def load_cifar(
    folder: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    seed: int = 0,
) -> tuple[PictureSet, PictureSet]:
    """CIFAR from `cifar-10-batches-bin` or `cifar-100-binary` (fine labels); which one is seen from the files.

    Args:
        folder: that one, or the folder it lies in.
        size: height and width to average to.
        train_per_class, test_per_class: pictures of each class, drawn with `seed`; None for all.

    Raises:
        DataError: files that are missing (all listed), pickled or damaged.
    """
    given = Path(folder)
    places = [given, given / "cifar-10-batches-bin", given / "cifar-100-binary"]
    for place in places:
        for trains, tests, meta, head, count in (_CIFAR10, _CIFAR100):
            names = [*trains, *tests, meta]
            missing = [name for name in names if not (place / name).is_file()]
            if len(missing) == len(names):
                continue
            if missing:
                raise DataError(f"{place}: {', '.join(missing)} missing; unpack the binary version again")
            classes = _names(place / meta, count)
            train, test = two_parts(
                _read(place, trains, head, count),
                _read(place, tests, head, count),
                classes,
                STATISTICS["cifar"] if size in (None, (32, 32)) else None,
                size,
            )
            generator = torch.Generator().manual_seed(seed)
            return (
                train if train_per_class is None else train.draw(train_per_class, generator),
                test if test_per_class is None else test.draw(test_per_class, generator),
            )
    for place in (given, given / "cifar-10-batches-py", given / "cifar-100-python"):
        if (place / "data_batch_1").is_file() or (place / "train").is_file():
            raise DataError(
                f"{place}: the Python version is pickled and is not opened; take the binary version (.bin)"
            )
    raise DataError(f"{given}: no data_batch_1.bin (CIFAR-10) and no train.bin (CIFAR-100) of the binary version")


def _names(path: Path, count: int) -> list[str]:
    names = path.read_text(encoding="utf-8", errors="replace").split()
    if len(names) != count:
        raise DataError(f"{path}: {len(names)} names of classes; {count} are needed")
    return names


def _read(folder: Path, names: list[str], head: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    parts = []
    for name in names:
        content = np.fromfile(folder / name, np.uint8)
        if not len(content) or len(content) % (head + _PIXELS):
            raise DataError(
                f"{folder / name}: {len(content)} bytes are no multiple of {head + _PIXELS}; unpack it again"
            )
        parts.append(content.reshape(-1, head + _PIXELS))
    rows = np.concatenate(parts)
    labels = rows[:, head - 1].astype(np.int64)  # CIFAR-100 has the coarse label in front of the fine one
    if labels.max() >= classes:
        raise DataError(f"{folder}: label {labels.max()} of {classes} classes; unpack it again")
    return torch.from_numpy(rows[:, head:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(labels)
