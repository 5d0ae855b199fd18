"""The six ten-class subsets of ImageNet at 128 x 128 (Cazenavette et al. 2022, arXiv 2203.11932).

Subsets are lists of class indices of ILSVRC 2012 in torchvision's order, which is the alphabetical order of the 1000
WordNet ids. So a folder that holds all 1000 classes needs nothing else; one with fewer must be named by index, or
come with a list of ids, since the ids of ten folders alone do not tell their indices.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from thurl.distillation.pictures import STATISTICS, PictureSet
from thurl.distillation.sources.folders import class_names, load_class_folders
from thurl.errors import DataError, UsageError


__all__ = ["SUBSETS", "load_imagenet_subset"]

SUBSETS: dict[str, tuple[int, ...]] = {
    "fruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "meow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "nette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "squawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "woof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "yellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
}
"""Class indices in the order of the labels."""


def load_imagenet_subset(
    folder: str | os.PathLike[str],
    subset: str,
    size: tuple[int, int] = (128, 128),
    index_file: str | os.PathLike[str] | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    seed: int = 0,
) -> tuple[PictureSet, PictureSet]:
    """A subset from a folder with `train` and `val`, each with a folder per class.

    Args:
        folder: its class folders are all 1000 WordNet ids, or indices (`0`, `217`), or ids that `index_file` knows.
        subset: one of `SUBSETS`.
        size: height and width; shapes are not kept, as in the official code.
        index_file: JSON `{"0": ["n01440764", "tench"], ...}`, or text with 1000 ids, one a line, in order.
        train_per_class, test_per_class: files of each class, drawn with `seed`; None for all.

    Raises:
        UsageError: an unknown subset.
        DataError: class folders that are missing or cannot be told apart; whatever `load_folder` refuses.
    """
    if subset not in SUBSETS:
        raise UsageError(f"subset: `{subset}` must be one of {', '.join(SUBSETS)}")
    place = Path(folder)
    ids = None if index_file is None else _read_ids(Path(index_file))
    names = _names()
    parts, problems = [], []
    for part in ("train", "val"):
        try:
            folders = _class_folders(place / part, SUBSETS[subset], ids)
        except DataError as error:
            problems.append(str(error))
        else:
            parts.append({names[index]: [path] for index, path in folders.items()})
    if problems:
        raise DataError("\n".join(problems))
    return load_class_folders(parts, [train_per_class, test_per_class], size, 3, seed, STATISTICS["imagenet"])


def _class_folders(folder: Path, indices: tuple[int, ...], ids: list[str] | None) -> dict[int, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = class_names(folder)
    if ids is None and len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names):
        ids = names
    wanted = {index: str(index) if ids is None else ids[index] for index in indices}
    missing = [f"{name} (class {index})" for index, name in wanted.items() if name not in names]
    if missing:
        hint = "" if ids else "; with fewer than 1000 folders named by WordNet id, give an index_file"
        raise DataError(f"{folder}: no folder for {', '.join(missing)}{hint}")
    return {index: folder / name for index, name in wanted.items()}


def _names() -> list[str]:
    from torchvision.models import ResNet18_Weights  # no weights are fetched for its table of names

    return ResNet18_Weights.IMAGENET1K_V1.meta["categories"]


def _read_ids(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            table = json.loads(text)
            ids = [table[str(index)][0] for index in range(1000)]
        else:
            ids = [line.split()[0] for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path}: no list of the 1000 WordNet ids ({type(error).__name__}: {error})") from error
    wrong = [name for name in ids if not isinstance(name, str) or not re.fullmatch(r"n\d{8}", name)]
    if wrong or len(ids) != 1000 or sorted(ids) != ids:
        raise DataError(f"{path}: must hold the 1000 WordNet ids of ILSVRC 2012 in order; it has {len(ids)}")
    return ids
