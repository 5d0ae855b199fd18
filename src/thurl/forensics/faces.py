"""Faces in pictures and their landmarks: from files, from a detector, or those of an average face.

68 points follow the iBUG order: 0-16 jaw, 17-26 brows, 27-35 nose, 36-41 and 42-47 the eyes on the picture's left and
right, 48-67 mouth. Of 81 points the first 68 are these and the rest lie on the forehead.

A detector is anything with `detect(image) -> list[Face]`; `CascadeDetector` is the one that comes along. It needs
scikit-image (`pip install thurl[vision]`) and no download: that package holds a cascade of local binary patterns.
It finds frontal faces and knows nothing finer, so its landmarks are those of an average face laid into the box: near
enough to turn a mouth round, not to measure one. Networks that find real landmarks come with weights whose licences
forbid commercial use or with packages that do not run on this Python and numpy; keep their output in files.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from thurl.errors import DataError, MissingRequirementError


__all__ = ["POINTS", "CascadeDetector", "Face", "FaceDetector", "average_landmarks", "read_landmarks"]

POINTS = 68
"""Landmarks of a face in the iBUG order."""


@dataclass(frozen=True)
class Face:
    """One face.

    Args:
        box: (left, top, right, bottom) in pixels, right and bottom exclusive.
        landmarks: (68, 2), x and y in pixels, or `None`.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None = None


class FaceDetector(Protocol):
    """What is needed of a detector."""

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of a picture, (H, W, 3) uint8, the largest first; empty when there is none."""
        ...


class CascadeDetector:
    """Frontal faces by scikit-image's cascade of local binary patterns, on the CPU.

    Args:
        smallest: side in pixels of the smallest face that is looked for.
        scale_factor: ratio of successive sizes; smaller is slower and finds more.

    Raises:
        MissingRequirementError: scikit-image is not installed.
    """

    def __init__(self, smallest: int = 48, scale_factor: float = 1.2):
        try:
            from skimage.data import lbp_frontal_face_cascade_filename
            from skimage.feature import Cascade
        except ImportError:
            raise MissingRequirementError(
                "the cascade face detector needs scikit-image; pip install thurl[vision]"
            ) from None
        self._cascade = Cascade(lbp_frontal_face_cascade_filename())
        self._smallest = smallest
        self._scale_factor = scale_factor

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of a picture, (H, W, 3) uint8, the largest first, with the landmarks of an average face."""
        height, width = image.shape[:2]
        largest = min(height, width)
        if largest < self._smallest:
            return []
        found = self._cascade.detect_multi_scale(
            img=image,
            scale_factor=self._scale_factor,
            step_ratio=1,
            min_size=(self._smallest, self._smallest),
            max_size=(largest, largest),
        )
        boxes = [(item["c"], item["r"], item["c"] + item["width"], item["r"] + item["height"]) for item in found]
        merged = _merge(boxes)
        merged.sort(key=lambda box: (-(box[2] - box[0]) * (box[3] - box[1]), box))
        return [Face(box, average_landmarks(box)) for box in merged]


def average_landmarks(box: Sequence[float]) -> np.ndarray:
    """68 points of a schematic frontal face, symmetric, laid into a face box.

    Args:
        box: (left, top, right, bottom) in pixels, from brows to chin.

    Returns:
        (68, 2) float64, x and y in pixels.
    """
    left, top, right, bottom = (float(n) for n in box)
    return _SCHEME * (right - left, bottom - top) + (left, top)


def read_landmarks(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    *,
    reference: tuple[int, int] | None = (224, 224),
    counts: Collection[int] = (POINTS,),
) -> np.ndarray:
    """Landmarks of the first face in a `.npy` file.

    Args:
        path: array of shape (faces, P, 2) or (P, 2), x and y in pixels of the `reference` size. Files that hold
            Python objects are refused.
        size: (width, height) of the picture the points are wanted for.
        reference: (width, height) the points are given for; 224 squared in the official EXIF files. `None`: those of
            the picture.
        counts: accepted numbers of points P.

    Returns:
        (P, 2) float64 in pixels of the picture.

    Raises:
        MissingRequirementError: no such file.
        DataError: the file holds something else.
    """
    try:
        points = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise MissingRequirementError(f"landmark file {str(path)!r} does not exist") from None
    except Exception as error:  # numpy raises ValueError, EOFError, OSError, SyntaxError, ... on broken files
        raise DataError(f"{path}: cannot be read as an array of numbers: {error}") from error
    shape = getattr(points, "shape", None)
    if shape is not None and len(shape) == 3 and shape[0] > 0:
        points = points[0]
    if (
        getattr(points, "shape", None) not in [(count, 2) for count in counts]
        or points.dtype.kind not in "fiu"
        or not np.isfinite(points).all()
    ):
        wanted = " or ".join(map(str, sorted(counts)))
        raise DataError(f"{path}: holds {shape}; finite numbers of shape (faces, {wanted}, 2) are needed")
    scale = (1.0, 1.0) if reference is None else (size[0] / reference[0], size[1] / reference[1])
    return points.astype(np.float64) * scale


def _merge(boxes: Sequence[Sequence[float]]) -> list[tuple[float, float, float, float]]:
    """Means of boxes that overlap: the cascade often reports one face twice, a little too far to either side."""
    groups: list[list[Sequence[float]]] = []
    for box in sorted(map(tuple, boxes)):
        for group in groups:
            if any(_overlap(box, other) > 0.3 for other in group):
                group.append(box)
                break
        else:
            groups.append([box])
    means = [np.mean(group, axis=0) for group in groups]
    return [(float(m[0]), float(m[1]), float(m[2]), float(m[3])) for m in means]


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def _scheme() -> np.ndarray:
    """A schematic face in the unit square, drawn with arcs and ellipses."""

    def ellipse(centre: tuple[float, float], axes: tuple[float, float], degrees: Any) -> np.ndarray:
        angle = np.deg2rad(degrees)
        return np.stack([centre[0] + axes[0] * np.cos(angle), centre[1] - axes[1] * np.sin(angle)], -1)

    jaw = ellipse((0.5, 0.32), (0.46, 0.66), np.linspace(180, 360, 17))
    brow = ellipse((0.29, 0.29), (0.15, 0.09), np.linspace(170, 10, 5))
    bridge = np.stack([np.full(4, 0.5), np.linspace(0.36, 0.56, 4)], -1)
    nostrils = ellipse((0.5, 0.60), (0.10, 0.04), np.linspace(180, 360, 5))
    eye = ellipse((0.30, 0.37), (0.09, 0.035), [180, 120, 60, 0, 300, 240])
    outer = ellipse((0.5, 0.81), (0.18, 0.075), [180, 150, 120, 90, 60, 30, 0, 315, 292, 270, 248, 225])
    inner = ellipse((0.5, 0.81), (0.14, 0.03), [180, 135, 90, 45, 0, 315, 270, 225])
    # The right brow runs outwards, so the mirrored left one is read backwards; the eyes are ordered clockwise.
    other_brow = (brow * (-1, 1) + (1, 0))[::-1]
    other_eye = eye + (0.40, 0.0)
    return np.concatenate([jaw, brow, other_brow, bridge, nostrils, eye, other_eye, outer, inner])


_SCHEME = _scheme()
