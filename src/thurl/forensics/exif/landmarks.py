"""Boxes and landmarks for the records of a manifest: from files, from a detector, or those of an average face."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from thurl.data.images import ImageError, open_image
from thurl.forensics.crop import CROP_SCALE, central_box
from thurl.forensics.exif.manifest import FaceRecord
from thurl.forensics.faces import FaceDetector, average_landmarks, read_landmarks


__all__ = ["annotate", "with_average_landmarks", "with_landmark_files"]


def with_landmark_files(
    records: Iterable[FaceRecord],
    folder: str | os.PathLike[str],
    *,
    reference: tuple[int, int] | None = (224, 224),
) -> list[FaceRecord]:
    """Records with the landmarks of `<folder>/<picture's name>.npy`; those without a file come back as they are.

    Args:
        records: manifest; its pictures are opened where `size` is not known.
        folder: of the `.npy` files.
        reference: see `read_landmarks`.

    Raises:
        DataError: a file that cannot be used.
    """
    found = []
    for record in records:
        path = Path(folder, Path(record.image).stem + ".npy")
        if path.is_file():
            size = record.size or open_image(record.image, upright=False).size
            points = read_landmarks(path, size, reference=reference)
            record = replace(record, size=size, landmarks=_as_pairs(points))
        found.append(record)
    return found


def with_average_landmarks(records: Iterable[FaceRecord], *, scale: float = CROP_SCALE) -> list[FaceRecord]:
    """Records with the landmarks of an average face, for pictures that are crops around a frontal face.

    Records that have landmarks keep them.

    Args:
        records: manifest; its pictures are opened where `size` is not known.
        scale: side of the crop over the longer side of the face box; where a record has a box, that box is the face.
    """
    found = []
    for record in records:
        if record.landmarks is None:
            size = record.size or open_image(record.image, upright=False).size
            box = central_box(size, scale=scale) if record.box is None else record.box
            record = replace(record, size=size, landmarks=_as_pairs(average_landmarks(box)))
        found.append(record)
    return found


def annotate(
    records: Iterable[FaceRecord], detector: FaceDetector, *, upright: bool = False
) -> tuple[list[FaceRecord], Mapping[str, str]]:
    """Records with the box and landmarks of their largest face.

    Args:
        records: manifest with paths that can be opened. Records that have a box keep it.
        detector: see `FaceDetector`.
        upright: as the image processor's: boxes belong to pictures opened the same way.

    Returns:
        The records, those without a face left out; and picture to the reason why it was left out.
    """
    kept, dropped = [], {}
    for record in records:
        if record.box is not None:
            kept.append(record)
            continue
        try:
            image = np.asarray(open_image(record.image, upright=upright))
        except ImageError as error:
            dropped[record.image] = str(error)
            continue
        faces = detector.detect(image)
        if not faces:
            dropped[record.image] = "no face found"
            continue
        points = faces[0].landmarks
        box = tuple(float(n) for n in faces[0].box)
        kept.append(
            replace(record, box=box, landmarks=record.landmarks if points is None else _as_pairs(points))  # type: ignore[arg-type]
        )
    return kept, dropped


def _as_pairs(points: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple((round(float(x), 2), round(float(y), 2)) for x, y in points)
