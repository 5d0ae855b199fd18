"""Faces of a manifest as training items: input, labels, and an augmentation drawn on the fly.

Every item is a function of (seed, epoch, index): the same in any process, with any number of workers, after a resume.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thurl.errors import DataError, UsageError
from thurl.forensics.deepfake.augmentations import PROBABILITY, augment, draw_augmentation
from thurl.forensics.deepfake.manifest import FaceItem
from thurl.forensics.processing import FaceImageProcessor
from thurl.training.epochs import EpochDataset


__all__ = ["LabelledFaces"]


class LabelledFaces(EpochDataset):
    """Map-style data set; an item is `{"pixel_values": (3, size, size) float32, "labels": (n,) int8}`.

    Labels are 1, 0 and -1 (unknown) in the order of the graph's nodes.

    Args:
        items: of a manifest; pictures by path. An item's box, where it has one, is cut out.
        processor: makes `pixel_values`.
        augmentation: probability that a picture is spoilt, see `augmentations`; 0 for evaluation.
        seed: of the augmentations.
        keep_mib: decoded faces to keep in the memory of each process, for small sets that are read many times.

    Raises:
        UsageError: no item, items of several graphs, or values out of their range.
    """

    def __init__(
        self,
        items: Iterable[FaceItem],
        processor: FaceImageProcessor,
        *,
        augmentation: float = PROBABILITY,
        seed: int = 0,
        keep_mib: int = 0,
    ):
        super().__init__()
        self.items = list(items)
        problems = [] if self.items else ["the data set is empty; it must hold at least one face"]
        if len({len(item.labels) for item in self.items}) > 1:
            problems.append("the faces have different numbers of labels; read all manifests with one label graph")
        if not 0 <= augmentation <= 1:
            problems.append(f"augmentation is {augmentation}; it must be a probability from 0 to 1")
        if problems:
            raise UsageError(problems)
        self.processor = processor
        self.augmentation = augmentation
        self.seed = seed
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._room = keep_mib << 20

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index` of the current epoch.

        Raises:
            DataError: the picture cannot be read, or its box lies outside; names the row.
        """
        pixels = self.processor.pixels(self.face(index))
        return {"pixel_values": pixels, "labels": torch.tensor(self.items[index].labels, dtype=torch.int8)}

    def face(self, index: int) -> NDArray[np.uint8]:
        """The face of one item before resizing, (H, W, 3) uint8."""
        face = self._cut(index % len(self.items))
        rng = np.random.default_rng((self.seed, self.epoch, index % len(self.items)))
        drawn = draw_augmentation(rng, self.augmentation)
        return face if drawn is None else augment(face, drawn)

    def labels(self) -> torch.Tensor:
        """(N, n) int8, of all items, without reading pictures."""
        return torch.tensor([item.labels for item in self.items], dtype=torch.int8)

    def _cut(self, index: int) -> NDArray[np.uint8]:
        if index in self._kept:
            return self._kept[index]
        item = self.items[index]
        try:
            face = self.processor.cut(item.path, item.box)
        except (DataError, ValueError) as error:
            raise DataError(f"{item.source} row {item.row}: {error}" if item.row else str(error)) from error
        if face.nbytes <= self._room:
            # A copy: a cut is a view that would keep the whole picture.
            self._kept[index] = face = face.copy()
            self._room -= face.nbytes
        return face
