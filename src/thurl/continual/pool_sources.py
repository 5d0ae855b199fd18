"""Where classes come from: folders of class folders, arrays in an .npz file, data sets of the Hub."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thurl.continual.pool import ARRAY_PREFIX, Sample, raise_problems
from thurl.data.hub_pictures import hub_reference, hub_table, is_hub_image, read_hub_image
from thurl.data.image_files import IMAGE_ENDINGS
from thurl.data.images import ImageError, open_image
from thurl.errors import DataError, UsageError


__all__ = ["array_samples", "difference_hash", "folder_samples", "hub_samples", "read_arrays", "read_picture"]

logger = logging.getLogger(__name__)


def folder_samples(
    folder: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    root: str | os.PathLike[str] | None = None,
    on_corrupt: str = "error",
    near_duplicates: bool = True,
) -> list[Sample]:
    """Pictures of a folder with one folder per class; every one is decoded once.

    Args:
        dataset: name of the data set; that of the folder when None.
        root: folder that the paths are relative to; `folder` when None.
        on_corrupt: "error", or "skip" to leave out pictures that do not decode, with a warning that counts them.
        near_duplicates: look for pictures that look alike, see `difference_hash`; False keeps them.

    Raises:
        DataError: no such folder, no class folder, or pictures that cannot be decoded (the first 20 and the count).
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"{folder}: no such folder; give one that holds a folder of pictures per class")
    base = Path(root) if root is not None else place
    name = dataset or place.resolve().name
    found: list[tuple[str, str, bytes | Path, str]] = []
    for classes in sorted(entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        for file in sorted(classes.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(classes).parts)
            if file.is_file() and not hidden and file.suffix.lower() in IMAGE_ENDINGS:
                relative = Path(os.path.relpath(file, base)).as_posix()
                found.append((classes.name, file.relative_to(classes).as_posix(), file, relative))
    if not found:
        raise DataError(f"{folder}: no pictures in class folders; it must hold <class>/<picture>")
    return _decoded(name, found, on_corrupt, near_duplicates)


def hub_samples(
    path: str,
    *,
    dataset: str | None = None,
    split: str = "train",
    image: str = "image",
    label: str = "label",
    name: str | None = None,
    revision: str | None = None,
    on_corrupt: str = "error",
    near_duplicates: bool = True,
) -> list[Sample]:
    """Pictures of a data set of the Hub, or of a folder of `Dataset.save_to_disk`; no code of the data set is run.

    Args:
        dataset: name of the data set; the last part of `path` when None.
        split, name, revision: which part of it.
        image: column of encoded pictures.
        label: column of class labels: names, or numbers of a `ClassLabel`.
        on_corrupt, near_duplicates: see `folder_samples`.

    Raises:
        MissingRequirementError: the data set cannot be reached.
        DataError: a column is missing, or pictures cannot be decoded.
    """
    key, table = hub_table(path, split=split, name=name, revision=revision)
    lacking = [column for column in (image, label) if column not in table.column_names]
    if lacking:
        raise DataError(f"{path}: no column {', '.join(lacking)}; it has {', '.join(table.column_names)}")
    named = getattr(table.features[label], "int2str", None)
    found: list[tuple[str, str, bytes | Path, str]] = []
    for row, value in enumerate(table[label]):
        if value is None or (named is not None and value < 0):
            continue
        reference = hub_reference(key, image, row)
        found.append((str(named(value) if named else value), "", read_hub_image(reference)[1], reference))
    if not found:
        raise DataError(f"{path}: no row with a label in {label!r}")
    return _decoded(dataset or Path(path).name, found, on_corrupt, near_duplicates)


def array_samples(
    path: str | os.PathLike[str], *, dataset: str | None = None, root: str | os.PathLike[str] | None = None
) -> list[Sample]:
    """Pictures of an .npz file: `images` [N, ...], `labels` [N] and, if it has them, `class_names`.

    Args:
        dataset: name of the data set; that of the file when None.
        root: folder that the path is relative to; that of the file when None.

    Raises:
        DataError: not such a file, or NaN or infinite values in a picture (the first 20 and the count).
    """
    file = Path(path)
    images, labels, names = read_arrays(file)
    whole = np.isfinite(images.reshape(len(images), -1)).all(axis=1)
    raise_problems(
        [f"{path} row {row}: NaN or infinite values" for row in np.flatnonzero(~whole)], "arrays that cannot be used"
    )
    relative = Path(os.path.relpath(file, Path(root) if root is not None else file.parent)).as_posix()
    samples = []
    for row, label in enumerate(labels):
        digest = _array_digest(images[row])
        samples.append(Sample(dataset or file.stem, names[label], digest, f"{ARRAY_PREFIX}{relative}#{row}", digest))
    return samples


def read_arrays(path: Path) -> tuple[np.ndarray[Any, Any], list[int], list[str]]:
    """`images`, `labels` and the name of each label of an .npz file; nothing in it is executed.

    Raises:
        DataError: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
            names = [str(name) for name in file["class_names"]] if "class_names" in file.files else None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not an .npz file with `images` and `labels`: {error}") from error
    if images.ndim < 2 or images.dtype.kind not in "biuf":
        raise DataError(f"{path}: images are {images.dtype} {images.shape}; there must be numbers [N, ...]")
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iu" or not len(labels):
        raise DataError(f"{path}: labels are {labels.dtype} {labels.shape}; there must be a whole number per picture")
    if labels.min() < 0 or (names is not None and labels.max() >= len(names)):
        raise DataError(f"{path}: labels reach from {labels.min()} to {labels.max()} for {len(names or ())} names")
    return images, labels.tolist(), names or [str(index) for index in range(int(labels.max()) + 1)]


def read_picture(image: str, root: Path, sha256: str) -> Image.Image | np.ndarray[Any, Any]:
    """A picture of a pool, checked against its digest: a changed file is never silently another benchmark.

    Returns:
        RGB picture, or the row of an array.

    Raises:
        DataError: it is missing, cannot be decoded, or is another one than when the pool was made.
    """
    if image.startswith(ARRAY_PREFIX):
        path, _, row = image.removeprefix(ARRAY_PREFIX).rpartition("#")
        images = _cached_arrays(str(root / path))
        if not row.isdigit() or int(row) >= len(images):
            raise DataError(f"{image}: no such row; the file has {len(images)}")
        array = images[int(row)]
        _same(image, _array_digest(array), sha256)
        return array
    if is_hub_image(image):
        label, content = read_hub_image(image)
    else:
        label = str(root / image)
        try:
            content = Path(label).read_bytes()
        except OSError as error:
            raise DataError(f"{label}: cannot be read: {error.strerror}; the pool names it") from error
    _same(label, hashlib.sha256(content).hexdigest(), sha256)
    return open_image(content, name=label)


def difference_hash(picture: Image.Image) -> tuple[int, ...] | None:
    """256 bits as four uint64: whether each of 16 x 16 grey cells is darker than its right neighbour.

    None where fewer than a quarter or more than three quarters are set: plain pictures, such as pen strokes on paper,
    agree in most bits without being alike.
    """
    grey = np.asarray(picture.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    bits = grey[:, 1:] > grey[:, :-1]
    if not 0.25 <= bits.mean() <= 0.75:
        return None
    return tuple(int(word) for word in np.packbits(bits).view(np.uint64))


_arrays: dict[str, np.ndarray[Any, Any]] = {}


def _cached_arrays(path: str) -> np.ndarray[Any, Any]:
    if path not in _arrays:
        _arrays.clear()
        _arrays[path] = read_arrays(Path(path))[0]
    return _arrays[path]


def _array_digest(array: np.ndarray[Any, Any]) -> str:
    header = f"{array.dtype.str}\0{array.shape}\0".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def _same(image: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise DataError(f"{image}: another picture than when the pool was made; restore it, or make the pool again")


def _decoded(
    dataset: str, found: Sequence[tuple[str, str, bytes | Path, str]], on_corrupt: str, near_duplicates: bool
) -> list[Sample]:
    if on_corrupt not in ("error", "skip"):
        raise UsageError(f"on_corrupt is {on_corrupt!r}; choose error or skip")
    samples, problems = [], []
    for sample, problem in _each(dataset, found, near_duplicates):
        if sample is not None:
            samples.append(sample)
        else:
            problems.append(problem)
    if on_corrupt == "error" or not samples:
        raise_problems(problems, f"{dataset}: pictures that cannot be used (on_corrupt: skip leaves them out)")
    if problems:
        logger.warning("%s: %d of %d pictures left out:\n%s", dataset, len(problems), len(found), problems[0])
    return samples


def _each(
    dataset: str, found: Sequence[tuple[str, str, bytes | Path, str]], near_duplicates: bool
) -> Iterator[tuple[Sample | None, str]]:
    for class_name, name, content, reference in found:
        try:
            data = content.read_bytes() if isinstance(content, Path) else content
            picture = open_image(data, name=str(content) if isinstance(content, Path) else f"{dataset} {class_name}")
        except (OSError, ImageError) as error:
            yield None, str(error)
            continue
        digest = hashlib.sha256(data).hexdigest()
        near = difference_hash(picture) if near_duplicates else None
        yield Sample(dataset, class_name, name or digest, reference, digest, near), ""
