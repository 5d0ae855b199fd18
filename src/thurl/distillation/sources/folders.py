"""Pictures in one folder per class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from thurl.data.image_files import IMAGE_ENDINGS
from thurl.distillation.pictures import PictureSet
from thurl.distillation.sources.common import read_pictures, two_parts
from thurl.errors import DataError


__all__ = ["class_names", "load_class_folders", "load_folder"]

_TESTS = ("test", "val", "validation")


def load_folder(
    folder: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    channels: int = 3,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    seed: int = 0,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> tuple[PictureSet, PictureSet]:
    """A folder of class folders, or of `train` and `test` (or `val`, `validation`) with class folders in each.

    Args:
        folder: classes are named after their folders, in alphabetical order.
        size: height and width each picture is brought to; None: all must be of one size.
        channels: 1 or 3.
        train_per_class, test_per_class: files of each class, drawn with `seed`; None for all. Where there are no two
            parts, both are needed, and the files drawn for one are not in the other.
        normalisation: mean and std; None for those of the training pictures.

    Raises:
        DataError: no classes, one class only, classes with too few files, files that cannot be read, several sizes.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"{place}: no such folder")
    test = next((place / name for name in _TESTS if (place / name).is_dir()), None)
    train = place / "train"
    if test is not None and train.is_dir():
        names = class_names(train)
        if differing := sorted(set(names) ^ set(class_names(test))):
            raise DataError(f"{place}: classes in one part only: {', '.join(differing)}")
        return load_class_folders(
            [{name: [train / name] for name in names}, {name: [test / name] for name in names}],
            [train_per_class, test_per_class],
            size,
            channels,
            seed,
            normalisation,
        )
    names = class_names(place)
    if train_per_class is None or test_per_class is None:
        raise DataError(
            f"{place}: has no train and test folders; give train_per_class and test_per_class to split its classes"
        )
    return load_class_folders(
        [{name: [place / name] for name in names}], [train_per_class, test_per_class], size, channels, seed,
        normalisation,
    )  # fmt: skip


def class_names(folder: Path) -> list[str]:
    """Names of the folders inside, hidden ones left out, sorted."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def load_class_folders(
    parts: Sequence[Mapping[str, Sequence[Path]]],
    counts: Sequence[int | None],
    size: tuple[int, int] | None,
    channels: int,
    seed: int,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> tuple[PictureSet, PictureSet]:
    """Train and test sets of classes whose files lie in the given folders.

    Args:
        parts: class name to folders, for train and for test; or one for both, whose files are split.
        counts: files of each class for train and for test; None for all of a part.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen: list[dict[str, list[Path]]] = [{}, {}]
    problems = []
    if len(parts[0]) < 2:
        problems.append(f"{len(parts[0])} class folders ({', '.join(parts[0]) or 'none'}); at least two are needed")
    for name in parts[0]:
        drawn = [_shuffled(part[name], generator) for part in parts]
        if len(parts) == 1:
            train_count, test_count = int(counts[0] or 0), int(counts[1] or 0)
            drawn = [drawn[0][:train_count], drawn[0][train_count : train_count + test_count]]
        for index, (files, wanted) in enumerate(zip(drawn, counts, strict=True)):
            chosen[index][name] = files[:wanted]
            if len(files[:wanted]) < max(1, wanted or 1):
                kind = ("training", "test")[index]
                problems.append(f"class {name}: {len(files)} pictures to take as {kind}, {wanted or 1} wanted")
    if problems:
        raise DataError("\n".join(problems))
    sets = []
    for part in chosen:
        files = [file for name in part for file in part[name]]
        labels = [label for label, name in enumerate(part) for _ in part[name]]
        sets.append((read_pictures(files, channels, size), torch.tensor(labels)))
    if sets[0][0].shape[1:] != sets[1][0].shape[1:]:
        raise DataError(
            f"training pictures of {tuple(sets[0][0].shape[2:])} and test pictures of {tuple(sets[1][0].shape[2:])}: "
            "give a size that all are brought to"
        )
    return two_parts(sets[0], sets[1], tuple(parts[0]), normalisation)


def _shuffled(folders: Sequence[Path], generator: torch.Generator) -> list[Path]:
    files = [
        file
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_ENDINGS and file.is_file() and not file.name.startswith(".")
    ]
    return [files[index] for index in torch.randperm(len(files), generator=generator).tolist()]
