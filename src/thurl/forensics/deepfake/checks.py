"""What is wrong with faces before anything is trained or scored on them, by row: files, faces, and test sets."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from thurl.data.images import ImageError, open_image
from thurl.data.records import RowProblems
from thurl.errors import DataError, MissingRequirementError
from thurl.forensics.deepfake.manifest import FaceItem
from thurl.forensics.deepfake.regions import LANDMARK_COUNTS
from thurl.forensics.faces import read_landmarks


__all__ = ["SMALLEST", "check_pictures", "check_test_sets", "picture_problems"]

SMALLEST = 32
"""Side in pixels of the smallest face that says anything about its regions."""


def check_pictures(items: Iterable[FaceItem], *, smallest: int = SMALLEST) -> None:
    """Opens every picture, mask and landmark file once.

    Args:
        items: of a manifest.
        smallest: side in pixels that a face must have.

    Raises:
        DataError: what cannot be used, by row; see `picture_problems`.
    """
    problems = RowProblems("faces", "Copy these files again or remove the rows.")
    for number, item in enumerate(items, start=1):
        for problem in picture_problems(item, smallest=smallest):
            problems.file = item.source
            problems.add(item.row or number, problem)
    problems.raise_if_any()


def picture_problems(item: FaceItem, *, smallest: int = SMALLEST) -> list[str]:
    """Why one face cannot be used, empty when it can.

    No such file, a corrupt picture, a face that is too small or of one colour only, a box or landmarks outside the
    picture, a mask of another size.
    """
    try:
        picture = open_image(item.path, upright=False)
    except ImageError as error:
        return [str(error)]
    size = picture.size
    problems = []
    if item.box is not None:
        left, top, right, bottom = item.box
        if left >= size[0] or top >= size[1] or right <= 0 or bottom <= 0:
            return [f"{item.path}: the box {list(item.box)} lies outside the picture of {size[0]}x{size[1]}"]
        picture = picture.crop((max(int(left), 0), max(int(top), 0), min(int(right) + 1, size[0]),
                                min(int(bottom) + 1, size[1])))  # fmt: skip
    if min(picture.size) < smallest:
        width, height = picture.size
        problems.append(f"{item.path}: the face has {width}x{height} pixels; {smallest} on each side are needed")
    pixels = np.asarray(picture).reshape(-1, 3)
    if (pixels == pixels[0]).all():
        problems.append(f"{item.path}: the face has one colour only")
    problems += _mask_problems(item, size) + _landmark_problems(item, size)
    return problems


def check_test_sets(items: Iterable[FaceItem]) -> None:
    """Each data set must have real and fake faces, or it has no AUC.

    Raises:
        DataError: names all data sets of one class, with their rows.
    """
    sets: dict[str, list[FaceItem]] = {}
    for item in items:
        sets.setdefault(item.dataset, []).append(item)
    problems = []
    for dataset, members in sets.items():
        known = {item.fake for item in members} & {0, 1}
        if len(known) == 2:
            continue
        rows = [item.row for item in members if item.row]
        where = f" ({members[0].source} rows {min(rows)} to {max(rows)})" if rows else ""
        kind = ("fake faces only" if 1 in known else "real faces only") if known else "no face known as real or fake"
        problems.append(f"test set {dataset or 'without a name'!r}{where} has {kind}; both kinds are needed")
    if problems:
        raise DataError("\n".join(problems))


def _mask_problems(item: FaceItem, size: tuple[int, int]) -> list[str]:
    if item.mask is None:
        return []
    try:
        mask = open_image(item.mask, upright=False)
    except ImageError as error:
        return [str(error)]
    if mask.size != size:
        return [f"{item.mask}: {mask.size[0]}x{mask.size[1]} pixels, but the picture has {size[0]}x{size[1]}"]
    return []


def _landmark_problems(item: FaceItem, size: tuple[int, int]) -> list[str]:
    if item.landmarks is None:
        return []
    try:
        points = read_landmarks(item.landmarks, size, reference=None, counts=LANDMARK_COUNTS)
    except (DataError, MissingRequirementError) as error:
        return [str(error)]
    inside = (points >= 0).all(1) & (points < np.array(size)).all(1)
    if inside.mean() < 0.5:
        return [f"{item.landmarks}: most landmarks lie outside the picture of {size[0]}x{size[1]}"]
    return []
