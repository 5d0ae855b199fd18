"""Photographs of a manifest as training items: input, camera settings, and an edit made on the fly.

Every item is a function of (seed, epoch, index): the same in any process, with any number of workers, after a resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from thurl.data.images import open_image
from thurl.errors import UsageError
from thurl.forensics.crop import face_square
from thurl.forensics.exif.manifest import FaceRecord
from thurl.forensics.exif.manipulations import (
    MANIPULATIONS,
    OFFICIAL_WEIGHTS,
    PHOTOGRAPH,
    WORK_SIZE,
    draw_manipulation,
    editable,
    labels_of,
    manipulate,
    resample,
)
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, ORDINAL_TASKS, TASKS
from thurl.forensics.processing import FaceImageProcessor
from thurl.forensics.weights import weight_problems
from thurl.training.epochs import EpochDataset


__all__ = ["CameraFaces", "collate_faces"]


class CameraFaces(EpochDataset):
    """Map-style data set of the pretext tasks.

    An item is `{"pixel_values": (3, size, size) float32, "labels": {task: tensor}}`: the ordinal settings as float32
    scalars (ISO, f-number, seconds, millimetres; NaN if absent), the categorical ones as int64 classes (-1 if absent),
    `coarse_face` as int64 (0 photographic, 1 manipulated) and `fine_face` as (regions,) float32. A manipulated picture
    keeps the settings of its source, as officially.

    Args:
        records: manifest; pictures by path.
        processor: makes `pixel_values` and cuts out the face box of a record that has one.
        manipulations: name ("photograph" or one of `MANIPULATIONS`) to a weight of 0 or more; the official half of
            photographs by default. `None`: photographs only, as features for a detector are made.
        match_resampling: send photographs through the same chain of resizes as edited pictures, so that the resize
            alone does not give an edit away. Without `manipulations` it does nothing.
        regions: 3 labels (mouth, eye, nose) of the fine face task, or 2 as in the official labels.
        seed: of the edits.

    Raises:
        UsageError: no record, or values out of their range.
    """

    def __init__(
        self,
        records: Iterable[FaceRecord],
        processor: FaceImageProcessor,
        *,
        manipulations: Mapping[str, float] | None = OFFICIAL_WEIGHTS,
        match_resampling: bool = True,
        regions: int = 3,
        seed: int = 0,
    ):
        super().__init__()
        self.records = list(records)
        if not self.records:
            raise UsageError("the data set is empty; it must hold at least one photograph")
        if regions not in (2, 3):
            raise UsageError(f"regions is {regions}; it must be 2 (mouth, eye) or 3 (mouth, eye, nose)")
        if manipulations is not None:
            problems = weight_problems("manipulations", manipulations, (PHOTOGRAPH, *MANIPULATIONS))
            if problems:
                raise UsageError(problems)
        self.processor = processor
        self.manipulations = None if manipulations is None else dict(manipulations)
        self.match_resampling = match_resampling
        self.regions = regions
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index` of the current epoch.

        Raises:
            ImageError: the picture cannot be read.
        """
        face, name = self.face(index)
        return {"pixel_values": self.processor.pixels(face), "labels": self._labels(index, name)}

    def labels(self) -> dict[str, torch.Tensor]:
        """Labels of all items of the current epoch, without reading pictures: task to (N,) or (N, regions)."""
        rows = [self._labels(index, self.edit(index)) for index in range(len(self))]
        return {task: torch.stack([row[task] for row in rows]) for task in TASKS}

    def edit(self, index: int) -> str:
        """Name of the edit that `face` makes, without the picture's pixels."""
        record, name, _ = self._draw(index)
        if name in (PHOTOGRAPH, "warp") or name in record.edited:
            return name
        # Turned pictures have other sides than those stored in the manifest.
        size = None if self.processor.upright else record.size
        if size is None:
            size = open_image(record.image, upright=self.processor.upright).size
        crop = size
        if record.box is not None:
            left, top, right, bottom = face_square(record.box, size, scale=self.processor.crop_scale)
            crop = (right - left, bottom - top)
        points = self._points(record, size, crop)
        return name if points is not None and editable(points, name, WORK_SIZE, WORK_SIZE) else "warp"

    def _labels(self, index: int, name: str) -> dict[str, torch.Tensor]:
        settings = self.records[index].settings
        labels: dict[str, torch.Tensor] = {}
        for task, value in zip(ORDINAL_TASKS, settings.ordinal(), strict=True):
            labels[task] = torch.tensor(value, dtype=torch.float32)
        for task, label in zip(CATEGORICAL_TASKS, settings.classes(), strict=True):
            labels[task] = torch.tensor(label)
        coarse, touched = labels_of(name, self.regions)
        labels["coarse_face"] = torch.tensor(coarse)
        labels["fine_face"] = torch.tensor(touched, dtype=torch.float32)
        return labels

    def _draw(self, index: int) -> tuple[FaceRecord, str, np.random.Generator]:
        """A record, the edit drawn for it in this epoch, and the generator of what else is drawn."""
        record = self.records[index]
        rng = np.random.default_rng((self.seed, self.epoch, index % len(self.records)))
        if self.manipulations is None:
            return record, PHOTOGRAPH, rng
        return record, draw_manipulation(rng, self.manipulations), rng

    def face(self, index: int) -> tuple[np.ndarray, str]:
        """The face of one item before normalising, and its edit ("photograph" for none).

        Returns:
            (H, W, 3) uint8. With `manipulations`, faces larger than 224 pixels come back as 224 squared, smaller ones
            in their own size.
        """
        record, name, rng = self._draw(index)
        if name in record.edited:
            return self.processor.cut(record.edited[name], record.box), name
        full = open_image(record.image, upright=self.processor.upright)
        face = self.processor.cut(np.asarray(full), record.box)
        if self.manipulations is None or (name == PHOTOGRAPH and not self.match_resampling):
            return face, name
        height, width = face.shape[:2]
        work = self._to_work(face)
        if name != PHOTOGRAPH:
            points = self._points(record, full.size, (width, height))
            work, name = manipulate(work, name, rng, landmarks=points)
        if max(height, width) <= WORK_SIZE:
            work = resample(work, height, width)
        return work, name

    def _to_work(self, face: np.ndarray) -> np.ndarray:
        if max(face.shape[:2]) <= WORK_SIZE:
            return resample(face, WORK_SIZE, WORK_SIZE)
        # Shrunk the way the input is, so that training and scoring lose the same detail.
        pixels = torch.from_numpy(np.array(face, order="C")).permute(2, 0, 1)[None].to(torch.float32)
        small = torch.nn.functional.interpolate(
            pixels,
            size=(WORK_SIZE, WORK_SIZE),
            mode="bilinear",
            align_corners=False,
            antialias=self.processor.antialias,
        )
        return small[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()

    def _points(self, record: FaceRecord, size: tuple[int, int], crop: tuple[int, int]) -> np.ndarray | None:
        """Landmarks in pixels of the work picture."""
        if record.landmarks is None:
            return None
        points = np.asarray(record.landmarks, dtype=np.float64)
        if record.box is not None:
            left, top, _, _ = face_square(record.box, size, scale=self.processor.crop_scale)
            points = points - (left, top)
        return points * (WORK_SIZE / crop[0], WORK_SIZE / crop[1])


def collate_faces(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Items of `CameraFaces` to a batch: `pixel_values` (B, 3, H, W), `labels` task to (B,) or (B, regions)."""
    labels = {task: torch.stack([item["labels"][task] for item in items]) for task in TASKS}
    return {"pixel_values": torch.stack([item["pixel_values"] for item in items]), "labels": labels}
