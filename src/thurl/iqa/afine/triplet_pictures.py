"""Pictures of A-FINE's data sets: found whatever the case of their names, checked, read, turned, and put into batches.

A batch holds each picture once, stacked with the others of its size, and indices that say who is compared with whom.
So a batch takes one pass of the tower per size, and nothing is padded; the network has no batch statistics, so the
numbers are those of one pass per picture.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from thurl.data.images import ImageError, open_image
from thurl.data.records import RatedImage, listed
from thurl.data.sources import find_pictures
from thurl.errors import DataError, UsageError
from thurl.iqa.afine.triplets import Triplet
from thurl.training.epochs import EpochDataset


__all__ = [
    "ComparisonPictures",
    "ScoredTriplets",
    "TripletPictures",
    "collate_pictures",
    "find_triplet_pictures",
    "picture_sizes",
]

Turn = tuple[bool, bool, bool]
"""Mirrored left to right, mirrored top to bottom, transposed; in this order."""

_AS_IT_IS: Turn = (False, False, False)


def find_triplet_pictures(
    triplets: Sequence[Triplet], images: str | os.PathLike[str] | None = None, *, check_images: str = "all"
) -> list[Triplet]:
    """The triplets with the path each picture was found at.

    Args:
        images: folder, for the message about missing pictures.
        check_images: "all" decodes each picture once and compares the sizes, "none" only looks whether it is there.

    Raises:
        MissingRequirementError: pictures that are not there, the first 20 and the count.
        DataError: pictures that cannot be read, triplets of pictures of several sizes; the first 20 and the count.
    """
    if check_images not in ("all", "none"):
        raise UsageError(f"check_images is {check_images!r}; it must be all or none")
    names = list(dict.fromkeys(name for triplet in triplets for name in triplet.images))
    records = find_pictures([RatedImage(name, 0.0) for name in names], images)
    at = {name: record.image for name, record in zip(names, records, strict=True)}
    found = [
        dataclasses.replace(t, first=at[t.first], second=at[t.second], reference=at[t.reference]) for t in triplets
    ]
    if check_images == "all":
        sizes = picture_sizes(at.values())
        wrong = [
            f"{triplet.first}, {triplet.second}, {triplet.reference}: {', '.join(f'{w}x{h}' for w, h in shapes)}"
            for triplet in found
            if len(set(shapes := [sizes[name] for name in triplet.images])) > 1
        ]
        if wrong:
            raise DataError(
                f"{len(wrong)} of {len(found)} triplets have pictures of different sizes, but they must agree:\n"
                f"{listed(wrong)}"
            )
    return found


def picture_sizes(paths: Iterable[str], *, workers: int | None = None) -> dict[str, tuple[int, int]]:
    """(width, height) of each picture, decoded once in threads.

    Args:
        workers: threads; one per core, at most 8, when `None`.

    Raises:
        DataError: pictures that cannot be read, the first 20 and the count.
    """

    def size(path: str) -> tuple[int, int] | str:
        try:
            return open_image(path).size
        except ImageError as error:
            return str(error)

    names = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        sizes = dict(zip(names, pool.map(size, names), strict=True))
    bad = [value for value in sizes.values() if isinstance(value, str)]
    if bad:
        raise DataError(f"{len(bad)} of {len(names)} pictures cannot be used:\n{listed(bad)}\nReplace or remove them.")
    return {name: value for name, value in sizes.items() if not isinstance(value, str)}


class TripletPictures(EpochDataset):
    """Triplets to train on. An item depends on (seed, epoch, index) alone: the same in any process and worker.

    The three pictures of a triplet are mirrored left to right, mirrored top to bottom and transposed together, each
    with probability 1/2 (arXiv 2503.11221); nothing is cropped or resized.

    Args:
        triplets: with the paths of pictures that exist.
        augment: draw turns; False: pictures as they are.
        seed: of the turns.
        keep_mib: decoded pictures to keep in the memory of each process, for small sets that are read many times.

    Raises:
        UsageError: no triplet.
    """

    def __init__(self, triplets: Sequence[Triplet], *, augment: bool = True, seed: int = 0, keep_mib: int = 0):
        super().__init__()
        self.triplets = list(triplets)
        if not self.triplets:
            raise UsageError("the data set is empty; it must hold at least one triplet")
        self.augment, self.seed = augment, seed
        self._kept: dict[str, np.ndarray] = {}
        self._room = keep_mib << 20

    def __len__(self) -> int:
        return len(self.triplets)

    def turn(self, index: int) -> Turn:
        """How item `index` is turned in this epoch."""
        if not self.augment:
            return _AS_IT_IS
        a, b, c = np.random.default_rng((self.seed, self.epoch, index)).random(3) < 0.5
        return bool(a), bool(b), bool(c)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises `DataError` for pictures that cannot be read or differ in size."""
        index = range(len(self))[index]
        triplet, turn = self.triplets[index], self.turn(index)
        return {"labels": (triplet.g12, triplet.g1r, triplet.g2r), **_pictures(triplet.images, turn, self._decoded)}

    def _decoded(self, path: str) -> np.ndarray:
        kept = self._kept.get(path)
        if kept is None:
            kept = _decode(path)
            if kept.nbytes <= self._room:
                self._room -= kept.nbytes
                self._kept[path] = kept
        return kept


class ComparisonPictures(Dataset):
    """Each image with its reference, once: what has to be scored for any number of pairs.

    Rows are in the order of the references, so that a reference is computed once for its images of a batch.

    Args:
        pairs: (reference, image) paths; repeated ones count once.

    Attributes:
        pairs: as they are scored.
        rows: (reference, image) to row.

    Raises:
        UsageError: no pair.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        together: dict[str, dict[str, None]] = {}
        for reference, image in pairs:
            together.setdefault(reference, {})[image] = None
        self.pairs = [(reference, image) for reference, images in together.items() for image in images]
        if not self.pairs:
            raise UsageError("nothing to score: no pair of a reference and an image")
        self.rows = {pair: row for row, pair in enumerate(self.pairs)}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        reference, image = self.pairs[index]
        return _pictures((image, image, reference), _AS_IT_IS, _decode)


class ScoredTriplets(Dataset):
    """Triplets whose frozen scores are known: all that stage `adapter` needs, without a pass of the tower.

    The stage trains five numbers on scores that do not change; officially the tower computes them again in each step,
    on turned pictures. Here each image is scored once, as it is.

    Args:
        triplets: to train on.
        rows: (reference, image) to row of the scores.
        scores: of `AFineOutput`, (N,) each, raw naturalness and raw fidelity among them.

    Raises:
        UsageError: no triplet.
    """

    def __init__(
        self, triplets: Sequence[Triplet], rows: Mapping[tuple[str, str], int], scores: Mapping[str, np.ndarray]
    ):
        if not triplets:
            raise UsageError("the data set is empty; it must hold at least one triplet")
        first, second = ([rows[t.reference, getattr(t, side)] for t in triplets] for side in ("first", "second"))
        ref, dis, fidelity = (
            torch.as_tensor(scores[name]) for name in ("naturalness_ref_raw", "naturalness_dis_raw", "fidelity_raw")
        )
        self.scores = torch.stack([ref[first], dis[first], dis[second], fidelity[first], fidelity[second]], dim=1)
        self.labels = torch.tensor([t.g12 for t in triplets], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"g12": self.labels[index], "scores": self.scores[index]}


def collate_pictures(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of B items: `g12`, `g1r`, `g2r`, (B,) float32 and NaN where unknown (triplets only), and `groups`.

    Each group holds the pictures of one size: `pixels` (n, 3, H, W) uint8 with no picture twice, `rows` (b,) the
    items, and `first`, `second`, `reference` (b,) the places of their pictures in `pixels`, all int64.

    Items of `ScoredTriplets` become `g12` (B,) and `scores` (B, 5).
    """
    if "scores" in items[0]:
        return {name: torch.stack([item[name] for item in items]) for name in ("g12", "scores")}
    groups: dict[tuple[int, int], dict[str, Any]] = {}
    for row, item in enumerate(items):
        pixels = item["pixels"]
        group = groups.setdefault(
            tuple(pixels[item["reference"]].shape[-2:]),
            {"places": {}, "pixels": [], "rows": [], "first": [], "second": [], "reference": []},
        )
        for key, picture in pixels.items():
            if key not in group["places"]:
                group["places"][key] = len(group["pixels"])
                group["pixels"].append(picture)
        group["rows"].append(row)
        for name in ("first", "second", "reference"):
            group[name].append(group["places"][item[name]])
    batch: dict[str, Any] = {}
    if "labels" in items[0]:
        labels = torch.tensor([item["labels"] for item in items], dtype=torch.float32)
        batch = dict(zip(("g12", "g1r", "g2r"), labels.unbind(1), strict=True))
    names = ("rows", "first", "second", "reference")
    batch["groups"] = [
        {"pixels": torch.stack(group["pixels"]), **{name: torch.tensor(group[name]) for name in names}}
        for group in groups.values()
    ]
    return batch


def _pictures(paths: tuple[str, str, str], turn: Turn, decode: Callable[[str], np.ndarray]) -> dict[str, Any]:
    keys: list[Hashable] = [(path, turn) for path in paths]
    pixels = {key: _turned(decode(path), turn) for key, path in dict(zip(keys, paths, strict=True)).items()}
    sizes = {tuple(picture.shape[-2:]) for picture in pixels.values()}
    if len(sizes) > 1:
        found = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise DataError(f"{', '.join(dict.fromkeys(paths))}: sizes {found}; an image must have its reference's size")
    return {"pixels": pixels, **dict(zip(("first", "second", "reference"), keys, strict=True))}


def _decode(path: str) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(open_image(path))


def _turned(pixels: np.ndarray, turn: Turn) -> torch.Tensor:
    """(3, H, W) uint8, a copy."""
    mirrored, upside_down, transposed = turn
    if mirrored:
        pixels = pixels[:, ::-1]
    if upside_down:
        pixels = pixels[::-1]
    axes = (2, 1, 0) if transposed else (2, 0, 1)
    return torch.from_numpy(np.array(pixels.transpose(axes), order="C"))
