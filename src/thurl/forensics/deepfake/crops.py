"""Faces cut out of frames, as the detector wants them: aligned by landmarks, or a square around a box.

The official code of arXiv 2408.16305 maps five points to those of ArcFace with a similarity transform, on 317x317
pixels with the face shrunk by 1.3; DeepfakeBench does so on 256x256. The points there come from a network that is run
anew for every frame. Here they come from files, or from a detector that the caller gives.

Deliberate differences: the least squares of the transform are measured in pixels of the frame (see
`thurl.iqa.face_restoration.alignment`), and points are not cut to whole numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from thurl.data.images import open_image
from thurl.errors import DataError, UsageError
from thurl.forensics.crop import CROP_SCALE, face_square
from thurl.forensics.deepfake.folders import new_folder, write_face
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.manifest import FaceItem, write_manifest
from thurl.forensics.deepfake.regions import LANDMARK_COUNTS
from thurl.forensics.faces import FaceDetector, read_landmarks
from thurl.iqa.face_restoration.alignment import CROP, TEMPLATE, fit_alignment, warp_affine


__all__ = ["CROP_SIZE", "CroppedFaces", "aligned_crop", "crop_faces", "five_points"]

CROP_SIZE = 317
"""Side in pixels of an official crop."""

_POINTS = (5, *LANDMARK_COUNTS)
_NOSE, _MOUTH_LEFT, _MOUTH_RIGHT = 30, 48, 54


@dataclass(frozen=True)
class CroppedFaces:
    """Faces that were cut out.

    Attributes:
        items: of the crops, as in the manifest.
        dropped: frame to the reason why no face was cut out of it.
    """

    items: list[FaceItem]
    dropped: Mapping[str, str] = field(default_factory=dict)


def five_points(landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Eyes, tip of the nose and corners of the mouth.

    Args:
        landmarks: (68, 2) or (81, 2); (5, 2) come back as they are.

    Returns:
        (5, 2), in the order of the ArcFace template.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if len(points) == 5:
        return points
    eyes = points[36:42].mean(0), points[42:48].mean(0)
    return np.stack([*eyes, points[_NOSE], points[_MOUTH_LEFT], points[_MOUTH_RIGHT]])


def aligned_crop(
    picture: NDArray[np.uint8], points: NDArray[np.floating], *, size: int = CROP_SIZE, scale: float = CROP_SCALE
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A square in which the face stands upright, black beyond the picture's border.

    Args:
        picture: (H, W, C) uint8.
        points: (5, 2) in pixels of the picture, see `five_points`.
        size: side of the square in pixels.
        scale: how much more than ArcFace's crop it shows, on each axis.

    Returns:
        (size, size, C) uint8, and the (2, 3) matrix that takes places of the picture to places of the square.

    Raises:
        DataError: points that are not finite, or that coincide.
    """
    template = (TEMPLATE + CROP * (scale - 1) / 2) * (size / (CROP * scale))
    matrix = fit_alignment(np.asarray(points, dtype=np.float64), template)
    return warp_affine(picture, matrix, size), matrix


def crop_faces(
    items: Iterable[FaceItem],
    folder: str | os.PathLike[str],
    graph: LabelGraph,
    *,
    size: int = CROP_SIZE,
    scale: float = CROP_SCALE,
    detector: FaceDetector | None = None,
    called: Mapping[str, str] = MappingProxyType({}),
) -> CroppedFaces:
    """Crops of whole frames, written as a data set with their landmarks, masks and `manifest.jsonl`.

    A face with landmarks is aligned by them; one with a box is cut out as the square around it and keeps its size; for
    the others the detector is asked for the largest face. Frames without a face are left out and named.

    Args:
        items: of a manifest; pictures are whole frames.
        folder: must be new or empty.
        graph: what the labels are of.
        size: side of aligned crops in pixels.
        scale: side of the crop over that of the face.
        detector: see `thurl.forensics.faces.FaceDetector`, such as its `CascadeDetector`.
        called: what messages call a picture, by its path, where that says nothing: a video and a number of a frame.

    Raises:
        UsageError: a folder that holds something, or a size below 32 pixels.
        DataError: not one face.
    """
    folder = new_folder(folder)
    if size < 32:
        raise UsageError(f"size is {size}; a face needs 32 pixels or more")
    crops: list[FaceItem] = []
    dropped: dict[str, str] = {}
    for item in items:
        try:
            crop = _cropped(item, size, scale, detector)
        except (DataError, ValueError) as error:
            name, text = called.get(item.path, item.path), str(error)
            text = text if item.path in text else f"{item.where}: {text}"
            dropped[name] = text.replace(item.path, name)
            continue
        # A thousand files per folder at most.
        name = f"{len(crops) // 1000:04d}/{len(crops) % 1000:03d}"
        path, mask, points = write_face(folder, name, crop.pixels, mask=crop.mask, landmarks=crop.landmarks)
        crops.append(replace(item, path=path, mask=mask, landmarks=points, box=None, row=0, source=""))
    if not crops:
        raise DataError(
            f"no face in {len(dropped)} frames; the first: {next(iter(dropped.values()), 'no frame given')}"
        )
    write_manifest(folder / "manifest.jsonl", crops, graph)
    return CroppedFaces(crops, dropped)


@dataclass(frozen=True)
class _Crop:
    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None
    landmarks: NDArray[np.float64] | None = None


def _cropped(item: FaceItem, size: int, scale: float, detector: FaceDetector | None) -> _Crop:
    picture = open_image(item.path, upright=False)
    pixels = np.asarray(picture)
    mask = None if item.mask is None else np.asarray(open_image(item.mask, upright=False).convert("L"))
    if mask is not None and mask.shape != pixels.shape[:2]:
        raise DataError(f"{item.where}: the mask has another size than the frame")
    if item.landmarks is not None:
        points = read_landmarks(item.landmarks, picture.size, reference=None, counts=_POINTS)
        face, matrix = aligned_crop(pixels, five_points(points), size=size, scale=scale)
        moved = points @ matrix[:, :2].T + matrix[:, 2]
        return _Crop(face, None if mask is None else warp_affine(mask[..., None], matrix, size)[..., 0], moved)
    box = item.box
    if box is None and detector is not None:
        found = detector.detect(pixels)
        box = found[0].box if found else None
    if box is None:
        why = "no landmarks and no box" if detector is None else "the detector finds no face"
        raise DataError(f"{item.where}: {why}")
    left, top, right, bottom = face_square(box, picture.size, scale=scale)
    part = (slice(top, bottom), slice(left, right))
    return _Crop(pixels[part], None if mask is None else mask[part])
