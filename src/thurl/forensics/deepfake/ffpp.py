"""The folder tree of FaceForensics++, once its videos are cut into frames, read into items of the manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from thurl.data.formats.tables import read_text
from thurl.data.image_files import IMAGE_ENDINGS
from thurl.data.records import RowProblems
from thurl.errors import DataError, MissingRequirementError
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.manifest import FaceItem, checked_items, label_row
from thurl.forensics.deepfake.releases import last_number, people_in


__all__ = ["read_ffpp_folders"]

_FF_SPLITS = ("train", "val", "test")


def read_ffpp_folders(
    root: str | os.PathLike[str],
    graph: LabelGraph,
    *,
    splits: str | os.PathLike[str] | None = None,
    compression: str = "c23",
    frames: str = "frames",
    dataset: str = "FaceForensics++",
) -> list[FaceItem]:
    """Items of the folder tree of FaceForensics++, videos and frames in the order of their names.

    Frames lie in `original_sequences/youtube/COMPRESSION/FRAMES/VIDEO/NUMBER.png` and
    `manipulated_sequences/METHOD/COMPRESSION/FRAMES/VIDEO/NUMBER.png`, masks in `masks` in the place of `FRAMES`,
    landmarks in `landmarks` with the ending `.npy`; both are taken where they exist.

    Args:
        root: folder with `original_sequences` and `manipulated_sequences`.
        graph: what the labels are of. A method that it does not know says fake only.
        splits: folder of the official `train.json`, `val.json` and `test.json`, lists of pairs of videos; no split is
            given when None.
        compression, frames: names of folders.
        dataset: name of the data set.

    Raises:
        MissingRequirementError: no such folder, or a split file that is not there.
        DataError: no frame, or videos and frames that cannot be used; the row counts the videos from 1.
    """
    root = Path(root)
    places = [("real", root / "original_sequences" / "youtube" / compression)]
    made = root / "manipulated_sequences"
    places += [(p.name, p / compression) for p in sorted(made.iterdir()) if p.is_dir()] if made.is_dir() else []
    if not any((place / frames).is_dir() for _, place in places):
        raise MissingRequirementError(
            f"no frames in {root}: looked for {places[0][1] / frames} and {made / 'METHOD' / compression / frames}; "
            "cut the videos into frames first"
        )
    split_of = None if splits is None else _ffpp_splits(Path(splits))
    problems = RowProblems(str(root), "Correct or remove these videos.")
    items: list[FaceItem] = []
    row = 0
    for method, place in places:
        for folder in sorted(p for p in (place / frames).glob("*") if p.is_dir()):
            row += 1
            try:
                found = _ffpp_video(folder, method, place, graph, split_of, dataset)
            except DataError as error:
                problems.add(row, f"{folder.relative_to(root)}: {error}")
                continue
            items += [replace(item, row=row, source=str(root)) for item in found]
    return checked_items(items, problems, root)


def _ffpp_video(
    folder: Path,
    method: str,
    place: Path,
    graph: LabelGraph,
    split_of: Mapping[str, str] | None,
    dataset: str,
) -> list[FaceItem]:
    people, original = people_in(folder.name)
    if not people or bool(original) != (method != "real"):
        form = "000_003" if method != "real" else "000"
        raise DataError(f"a {'fake' if method != 'real' else 'real'} video is called like {form}")
    if split_of is not None and folder.name not in split_of:
        raise DataError("it is in none of the split files")
    fake = {graph.names[0]: int(method != "real")}
    labels = tuple(graph.vector(method)) if method in graph.manipulations else label_row(fake, graph)
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS)
    if not pictures:
        raise DataError("no frames in it")
    items = []
    for picture in pictures:
        frame = last_number(picture.name)
        if frame is None:
            raise DataError(f"{picture.name} does not end with the number of the frame")
        mask = place / "masks" / folder.name / picture.with_suffix(".png").name
        points = place / "landmarks" / folder.name / picture.with_suffix(".npy").name
        items.append(
            FaceItem(
                path=str(picture),
                labels=labels,
                video=folder.name,
                frame=frame,
                dataset=dataset,
                split="" if split_of is None else split_of[folder.name],
                manipulation=method,
                identities=people,
                original=original,
                mask=str(mask) if mask.is_file() else None,
                landmarks=str(points) if points.is_file() else None,
            )
        )
    return items


def _ffpp_splits(folder: Path) -> dict[str, str]:
    """Name of a video, real or fake, to its split."""
    split_of: dict[str, str] = {}
    for split in _FF_SPLITS:
        path = folder / f"{split}.json"
        try:
            pairs = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a JSON file: {error}") from None
        fine = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
        )
        if not fine:
            raise DataError(f'{path}: a list of pairs of videos such as ["000", "003"] is needed')
        for first, second in pairs:
            for name in (first, second, f"{first}_{second}", f"{second}_{first}"):
                if split_of.setdefault(name, split) != split:
                    raise DataError(f"{path}: video {name} is in {split} and in {split_of[name]}")
    return split_of
