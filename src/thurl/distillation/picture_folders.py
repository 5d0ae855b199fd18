"""Pictures in a folder per class, or as arrays of one file: read for `thurl distill encode`, written by `decode`."""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thurl.data.image_files import find_images
from thurl.distillation.sources.common import read_pictures
from thurl.errors import DataError


__all__ = ["ClassPictures", "folder_names", "read_classes", "write_pictures"]

_MOST_NPZ = 2**32
_LISTED = 20


@dataclass(frozen=True)
class ClassPictures:
    """Pictures of one size, class after class.

    Args:
        images: uint8 (N, channels, H, W).
        labels: int64 (N,).
        classes: names.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def read_classes(
    source: str | os.PathLike[str],
    *,
    per_class: int | None = None,
    size: int | None = None,
    channels: int = 3,
    seed: int = 0,
) -> ClassPictures:
    """Read labelled pictures.

    Args:
        source: a folder whose folders are classes, or a `.npz` file with `images`, uint8 (N, H, W) or (N, H, W, 3),
            `labels`, integers (N,), and `classes`, names, which may be left out.
        per_class: pictures of each class, drawn with `seed`; None: all.
        size: side of the square they are resized to, their shape not kept; None: all must be of one size.
        channels: 1 or 3.
        seed: of the draw.

    Raises:
        DataError: no such source, nothing in it, too few of a class, pictures that cannot be read or differ in size.
    """
    source = Path(source)
    if source.is_dir():
        return _read_folder(source, per_class, size, channels, seed)
    if source.suffix.lower() == ".npz":
        return _read_arrays(source, per_class, size, channels, seed)
    raise DataError(f"{source}: give a folder with a folder of pictures per class, or a .npz file")


def folder_names(classes: tuple[str, ...]) -> list[str]:
    """A name of a folder for each class: no separators, no hidden or reserved names, all different."""
    found: list[str] = []
    taken: set[str] = set()
    for label, name in enumerate(classes):
        safe = re.sub(r"[^\w.+-]+", "_", name).strip("._")[:80] or f"class_{label}"
        # Some file systems do not tell capitals from small letters.
        while safe.casefold() in taken:
            safe = f"{safe}_{label}"
        taken.add(safe.casefold())
        found.append(safe)
    return found


def write_pictures(
    images: NDArray[np.uint8], labels: NDArray[np.integer], classes: tuple[str, ...], folder: str | os.PathLike[str]
) -> dict[str, str]:
    """Write PNG files `CLASS/0001.png`, numbered in the order of the pictures.

    Args:
        images: uint8 (N, channels, H, W).
        labels: (N,).
        classes: names; of them `folder_names` makes the folders, since they may come from anybody.
        folder: made if need be.

    Returns:
        folder name of each class.
    """
    names = folder_names(classes)
    counts = [0] * len(classes)
    for image, label in zip(images, labels.tolist(), strict=True):
        counts[label] += 1
        target = Path(folder) / names[label] / f"{counts[label]:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(target)
    return dict(zip(classes, names, strict=True))


def _read_folder(source: Path, per_class: int | None, size: int | None, channels: int, seed: int) -> ClassPictures:
    folders = sorted(entry for entry in source.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{source}: no folders in it; each class needs a folder of its pictures")
    files = [find_images([folder], recursive=True) for folder in folders]
    chosen = _drawn([len(group) for group in files], [folder.name for folder in folders], per_class, seed)
    kept = [[group[index] for index in places] for group, places in zip(files, chosen, strict=True)]
    images = read_pictures(
        [file for group in kept for file in group], channels, None if size is None else (size, size)
    )
    labels = np.repeat(np.arange(len(kept)), [len(group) for group in kept])
    return ClassPictures(images.numpy(), labels, tuple(folder.name for folder in folders))


def _read_arrays(source: Path, per_class: int | None, size: int | None, channels: int, seed: int) -> ClassPictures:
    try:
        with zipfile.ZipFile(source) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MOST_NPZ:
            raise DataError(f"{source}: {unpacked} bytes unpacked, at most {_MOST_NPZ} are read")
        with np.load(source, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
            names = file["classes"] if "classes" in file else None
    except FileNotFoundError:
        raise DataError(f"{source}: no such file; check the path") from None
    except KeyError as error:
        raise DataError(f"{source}: {error.args[0]}; the arrays `images` and `labels` are needed") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: not a .npz file of plain arrays: {error}") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{source}: images {images.shape} of {images.dtype}: uint8 (N, H, W) or (N, H, W, 3) is needed"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not len(labels):
        raise DataError(f"{source}: labels {labels.shape} of {labels.dtype}: one integer for each picture is needed")
    count = int(labels.max()) + 1
    if int(labels.min()) < 0 or count > 2**16 or (names is not None and (names.ndim != 1 or len(names) < count)):
        raise DataError(
            f"{source}: labels {labels.min()} to {labels.max()}: from 0 on, one name in `classes` for each"
        )
    classes = tuple(map(str, range(count))) if names is None else tuple(map(str, names.tolist()))
    places = [np.flatnonzero(labels == label) for label in range(len(classes))]
    chosen = _drawn([len(place) for place in places], list(classes), per_class, seed)
    order = np.concatenate([place[kept] for place, kept in zip(places, chosen, strict=True)])
    arrays = [_array(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 and image.ndim == 3 else image), size,
                     channels) for image in images[order]]  # fmt: skip
    return ClassPictures(np.stack(arrays), labels[order].astype(np.int64), classes)


def _drawn(counts: list[int], names: list[str], per_class: int | None, seed: int) -> list[NDArray[np.int64]]:
    short = [f"{n} has {count}" for n, count in zip(names, counts, strict=True) if count < (per_class or 1)]
    if short:
        raise DataError(f"{per_class or 1} pictures of each class are needed: {', '.join(short[:_LISTED])}")
    rng = np.random.default_rng(seed)
    return [np.arange(n) if per_class is None else np.sort(rng.permutation(n)[:per_class]) for n in counts]


def _array(picture: Image.Image, size: int | None, channels: int) -> NDArray[np.uint8]:
    """uint8 (channels, H, W)."""
    if size is not None and picture.size != (size, size):
        # Box averages over the pixels that become one; enlarged, it repeats them.
        picture = picture.resize((size, size), Image.Resampling.BOX)
    array = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))
