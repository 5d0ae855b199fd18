"""A benchmark from pictures: groups of failures of a base model, and pictures it is only just right about.

After "Learning Where to Edit Vision Transformers" (arXiv 2411.01948): a group is what the base model gets wrong in one
way, each picture checked again; the pictures to keep are right with a margin p1 - p2 below 0.05. Different from the
released code: files come in sorted order, and a manifest names every picture with its SHA-256.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from thurl.data.image_files import find_images
from thurl.data.images import ImageError, open_image
from thurl.editing.classifier import Classifier
from thurl.editing.metrics import prediction_margin
from thurl.errors import DataError, UsageError


__all__ = [
    "FailureGroup",
    "Labelled",
    "Predicted",
    "failure_groups",
    "labelled_folder",
    "official_folder",
    "predict",
    "relabelled",
    "sensitive",
]

logger = logging.getLogger(__name__)

Read = Callable[[Image.Image], torch.Tensor]
"""A picture as the classifier reads it, [channels, H, W]."""


@dataclass(frozen=True)
class Labelled:
    """A picture and its right class.

    Args:
        file: path relative to the root of the benchmark, with `/`.
        true: class number.
        tag: what else is known of it, such as the shift; failures of two tags are never in one group.
    """

    file: str
    true: int
    tag: str = ""


@dataclass(frozen=True)
class Predicted:
    """The same with what the base model says.

    Args:
        picture: the picture.
        sha256: of the file.
        predicted: class number.
        margin: largest probability minus the second largest.
    """

    picture: Labelled
    sha256: str
    predicted: int
    margin: float


@dataclass(frozen=True)
class FailureGroup:
    """Pictures the base model gets wrong in one way, by file name."""

    true: int
    predicted: int
    tag: str
    pictures: tuple[Predicted, ...]

    @property
    def name(self) -> str:
        """`417 as 701` or `stripes: 417 as 701`."""
        return f"{self.tag}: {self.true} as {self.predicted}" if self.tag else f"{self.true} as {self.predicted}"


def labelled_folder(
    folder: str | os.PathLike[str],
    classes: Mapping[str, int],
    *,
    root: str | os.PathLike[str] | None = None,
    tag: str = "",
) -> list[Labelled]:
    """Pictures of `<class>/<picture>`, sorted.

    Args:
        classes: class number of each folder's name.
        root: folder the paths are relative to; `folder` when None.
        tag: of all of them.

    Raises:
        DataError: no such folder, folders that name no class (all of them), or no pictures.
    """
    place = Path(folder)
    base = Path(folder if root is None else root)
    names = _class_folders(place)
    if unknown := [name for name in names if name not in classes]:
        raise DataError(f"{folder}: no class of the model is called {_some(unknown)}; rename or move these folders")
    return _pictures(place, base, {name: (classes[name], tag) for name in names})


def official_folder(folder: str | os.PathLike[str], classes: int) -> list[Labelled]:
    """Pictures in the layout of the released natural subset, `<class number>_<anything>/<picture>`, sorted.

    Args:
        folder: holds the folders; the whole name of each is the tag of its pictures.
        classes: number of classes of the base model.

    Raises:
        DataError: no such folder, folders of another form (all of them), classes out of range, or no pictures.
    """
    place = Path(folder)
    found: dict[str, tuple[int, str]] = {}
    wrong = []
    for name in _class_folders(place):
        number = name.partition("_")[0]
        if number.isascii() and number.isdigit() and int(number) < classes:
            found[name] = (int(number), name)
        else:
            wrong.append(name)
    if wrong:
        raise DataError(
            f"{folder}: {_some(wrong)} must begin with a class number from 0 to {classes - 1} and an underscore"
        )
    return _pictures(place, place, found)


def predict(
    classifier: Classifier,
    pictures: Sequence[Labelled],
    root: str | os.PathLike[str],
    read: Read,
    *,
    batch_size: int = 64,
    on_corrupt: str = "error",
) -> list[Predicted]:
    """What the classifier says of each picture, in their order.

    Args:
        root: folder their paths are relative to.
        read: preprocessing of the classifier.
        batch_size: pictures at a time.
        on_corrupt: "error", or "skip" to leave out pictures that cannot be read, with a warning that names them.

    Raises:
        DataError: pictures that cannot be read (all of them), or none left.
    """
    if on_corrupt not in ("error", "skip"):
        raise UsageError(f"on_corrupt is {on_corrupt!r}; choose error or skip")
    found: list[Predicted] = []
    problems: list[str] = []
    device = next(classifier.model.parameters()).device
    for start in range(0, len(pictures), batch_size):
        kept, inputs = [], []
        for one in pictures[start : start + batch_size]:
            path = Path(root) / one.file
            try:
                content = path.read_bytes()
                inputs.append(read(open_image(content, name=str(path))))
            except (OSError, ImageError) as error:
                problems.append(str(error))
                continue
            kept.append((one, hashlib.sha256(content).hexdigest()))
        if not kept:
            continue
        with torch.no_grad():
            probabilities = classifier.logits(torch.stack(inputs).to(device)).float().softmax(dim=-1).cpu()
        margins = prediction_margin(probabilities)
        for (one, digest), row, margin in zip(kept, probabilities, margins, strict=True):
            found.append(Predicted(one, digest, int(row.argmax()), float(margin)))
    if problems and (on_corrupt == "error" or not found):
        raise DataError("\n".join([*problems[:20], f"{len(problems)} pictures cannot be read; skip or restore them"]))
    if problems:
        logger.warning("%d of %d pictures left out:\n%s", len(problems), len(pictures), "\n".join(problems[:20]))
    return found


def relabelled(pictures: Sequence[Predicted]) -> list[Labelled]:
    """The predictions of a stronger model as right classes, for pictures nobody has labelled."""
    return [replace(one.picture, true=one.predicted) for one in pictures]


def failure_groups(predicted: Sequence[Predicted], smallest: int = 8) -> list[FailureGroup]:
    """Wrong pictures by right class, predicted class and tag, sorted by these; pictures sorted by file.

    Args:
        smallest: groups with fewer pictures are dropped, which is logged.

    Raises:
        UsageError: `smallest` below 1.
        DataError: no group is large enough.
    """
    if smallest < 1:
        raise UsageError(f"smallest is {smallest}; a group has one picture or more")
    groups: dict[tuple[int, int, str], list[Predicted]] = {}
    for one in predicted:
        if one.predicted != one.picture.true:
            groups.setdefault((one.picture.true, one.predicted, one.picture.tag), []).append(one)
    found = [
        FailureGroup(true, wrong, tag, tuple(sorted(ones, key=lambda one: one.picture.file)))
        for (true, wrong, tag), ones in sorted(groups.items())
    ]
    large = [group for group in found if len(group.pictures) >= smallest]
    if not large:
        sizes = Counter(len(group.pictures) for group in found)
        largest = max(sizes, default=0)
        raise DataError(
            f"no group of {smallest} failures; the largest has {largest}. Give more pictures, or a lower `smallest`"
        )
    if len(large) < len(found):
        small = [f"{group.name} ({len(group.pictures)})" for group in found if len(group.pictures) < smallest]
        logger.warning("groups of fewer than %d failures are dropped: %s", smallest, _some(small))
    return large


def sensitive(
    predicted: Sequence[Predicted], *, threshold: float = 0.05, largest: int | None = None, seed: int = 0
) -> list[Predicted]:
    """Pictures the base model is right about by a margin below `threshold`, sorted by file.

    Args:
        threshold: of the largest probability minus the second.
        largest: draw that many of them.
        seed: of the draw, which does not depend on the order of the pictures.

    Raises:
        UsageError: a threshold outside (0, 1] or `largest` below 1.
        DataError: there is none.
    """
    if not 0 < threshold <= 1 or (largest is not None and largest < 1):
        raise UsageError(f"threshold {threshold} must be in (0, 1] and largest {largest} at least 1")
    right = [one for one in predicted if one.predicted == one.picture.true]
    found = sorted((one for one in right if one.margin < threshold), key=lambda one: one.picture.file)
    if not found:
        raise DataError(
            f"none of {len(right)} right pictures has a margin below {threshold}; give more pictures or raise it"
        )
    if largest is not None and len(found) > largest:
        found = sorted(random.Random(seed).sample(found, largest), key=lambda one: one.picture.file)
    return found


def _class_folders(place: Path) -> list[str]:
    if not place.is_dir():
        raise DataError(f"{place}: no such folder; give one that holds a folder of pictures per class")
    names = sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{place}: no folders in it; it must hold <class>/<picture>")
    return names


def _pictures(place: Path, base: Path, folders: Mapping[str, tuple[int, str]]) -> list[Labelled]:
    found = []
    for name, (true, tag) in folders.items():
        for path in find_images([place / name], recursive=True):
            found.append(Labelled(Path(os.path.relpath(path, base)).as_posix(), true, tag))
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
