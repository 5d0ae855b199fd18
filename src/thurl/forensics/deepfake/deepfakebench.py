"""DeepfakeBench's JSON files (GitHub `SCLBD/DeepfakeBench`, arXiv 2307.01426), read and written.

One file per data set, called by its name:

    {dataset: {label: {train|val|test: {[compression:] {video: {"label", "frames": [paths], "masks": [paths]}}}}}}

Frames are pictures whose file names are whole numbers; 81 landmarks lie beside them in `landmarks/`, masks in
`masks/`.

Deliberate difference: DeepfakeBench's metrics know a video by the name of its folder alone and so join `000_003` of
four manipulations, and reals with fakes of the same name, into one video whose label is the mean. Here a video is
(dataset, fake, manipulation, video).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import image_path, read_text
from thurl.data.records import RowProblems
from thurl.errors import DataError, UsageError
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.manifest import FaceItem, check_items, label_row
from thurl.forensics.deepfake.releases import BENCH_LABELS, BENCH_MANIPULATIONS, COMPRESSED, people_in
from thurl.messages import nearest
from thurl.training.results import write_atomically


__all__ = ["COMPRESSIONS", "SPLITS", "read_deepfakebench", "write_deepfakebench"]

SPLITS = ("train", "val", "test")

COMPRESSIONS = ("c23", "c40", "raw")
"""Names of compressions that are looked for; c23 is DeepfakeBench's default."""


def read_deepfakebench(
    path: str | os.PathLike[str],
    graph: LabelGraph,
    *,
    images: str | os.PathLike[str] | None = None,
    splits: Sequence[str] = SPLITS,
    compression: str = "c23",
    labels: Mapping[str, int] | None = None,
    landmarks: bool = False,
    allow_outside: bool = False,
) -> list[FaceItem]:
    """Items of a file, videos in its order and frames in the order of their numbers; pictures are not opened.

    Args:
        path: the JSON file.
        graph: what the labels are of. A manipulation that it knows gives all labels, another says fake or real only.
        images: folder the frames' paths start from; the folder of the file when None.
        splits: of `SPLITS`. Files of Celeb-DF and some others have the same videos in several: read one at a time.
        compression: which videos are taken where the file has several compressions.
        labels: further labels to 0 or 1, beside `BENCH_LABELS`.
        landmarks: take `.npy` files in `landmarks/` beside `frames/` where they exist.
        allow_outside: accept absolute paths and paths that climb out of `images`.

    Raises:
        MissingRequirementError: no such file.
        UsageError: an unknown split, or a label that is neither 0 nor 1.
        DataError: not such a file, nothing in it, or entries that cannot be used; "row" counts its videos from 1.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    known = {**BENCH_LABELS, **(labels or {})}
    wrong = [f"split {name!r} is unknown; it must be of {', '.join(SPLITS)}" for name in splits if name not in SPLITS]
    wrong += [
        f"label {name!r} is {value!r}; it must be 0 or 1" for name, value in known.items() if value not in (0, 1)
    ]
    if wrong:
        raise UsageError(wrong)
    content = _load(path)
    problems = RowProblems(str(path), "Correct these videos, or read one split at a time if they are in several.")
    items: list[FaceItem] = []
    for row, (names, video) in enumerate(_videos(content, path, compression), start=1):
        if names[2] not in splits:
            continue
        try:
            found = _items_of(names, video, graph, root, known, landmarks, allow_outside)
        except DataError as error:
            problems.add(row, f"{'/'.join(names)}: {error}")
            continue
        items += [replace(item, row=row, source=str(path)) for item in found]
    check_items(items, problems)
    problems.raise_if_any()
    if not items:
        raise DataError(f"{path}: no video of {', '.join(splits)} with compression {compression} in it")
    return items


def write_deepfakebench(
    folder: str | os.PathLike[str],
    items: Sequence[FaceItem],
    *,
    images: str | os.PathLike[str],
    compression: str = "c23",
    prefix: str = "./",
) -> dict[str, int]:
    """One file per data set, `DATASET.json`; the same items give the same bytes.

    Args:
        folder: made where it does not exist; files in it are replaced.
        items: with a data set, a video, a split of `SPLITS`, and frames whose file names are whole numbers.
        images: folder that the written paths start from, around all pictures.
        compression: what videos are filed under in the data sets of `COMPRESSED`.
        prefix: put before every path. DeepfakeBench puts its own picture folder before paths that do not begin with a
            point, with a backslash between.

    Returns:
        All labels that were written to 0 or 1: DeepfakeBench's `label_dict` must have those.

    Raises:
        DataError: items that such a file cannot hold, by row.
    """
    labels: dict[str, int] = {}
    content: dict[str, Any] = {}
    problems = RowProblems("items", "Such faces cannot be written for DeepfakeBench.")
    label_of = {manipulation: label for label, manipulation in BENCH_MANIPULATIONS.items()}
    for number, item in enumerate(items, start=1):
        label = label_of.get(item.manipulation, item.manipulation or ("real" if item.fake == 0 else "fake"))
        try:
            _check_writable(item, label, labels)
            place: dict[str, Any] = content.setdefault(item.dataset, {})
            place = place.setdefault(label, {split: {} for split in SPLITS})[item.split]
            if item.dataset in COMPRESSED:
                place = place.setdefault(compression, {})
            video = place.setdefault(item.video, {"label": label, "frames": []})
            video["frames"].append(prefix + _inside(item.path, images))
            if item.mask is not None:
                video.setdefault("masks", []).append(prefix + _inside(item.mask, images))
            labels[label] = item.fake
        except DataError as error:
            problems.add(item.row or number, f"{item.path}: {error}")
    problems.raise_if_any()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for dataset, value in content.items():
        write_atomically(
            Path(folder, f"{dataset}.json"), json.dumps({dataset: value}, ensure_ascii=False, indent=1) + "\n"
        )
    return labels


def _load(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []:
            raise DataError(f"{path}: {', '.join(twice[:5])} is in one object twice; give two videos two names")
        return dict(pairs)

    try:
        content = json.loads(read_text(path), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; an object with data sets is needed")
    return content


def _videos(
    content: Mapping[str, Any], path: Path, compression: str
) -> Iterator[tuple[tuple[str, str, str, str], Mapping[str, Any]]]:
    """((dataset, label, split, video), entry) of every video, of one compression where there are several."""
    for dataset, label, split, videos in _three_levels(content, path):
        if any(isinstance(value, dict) and "frames" in value for value in videos.values()):
            chosen = videos
        elif not videos:
            continue
        elif compression in videos:
            chosen = _object(videos[compression], f"{path}: {dataset}/{label}/{split}/{compression}")
        elif set(videos) <= set(COMPRESSIONS):
            raise DataError(
                f"{path}: {dataset}/{label}/{split} has no compression {compression}, but {', '.join(videos)}"
            )
        else:
            raise DataError(f"{path}: {dataset}/{label}/{split} has no video with `frames`")
        for video, entry in chosen.items():
            yield (dataset, label, split, video), _object(entry, f"{path}: {dataset}/{label}/{split}/{video}")


def _three_levels(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for dataset, labels in content.items():
        for label, splits in _object(labels, f"{path}: {dataset}").items():
            for split, videos in _object(splits, f"{path}: {dataset}/{label}").items():
                yield dataset, label, split, _object(videos, f"{path}: {dataset}/{label}/{split}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}; it must be an object")
    return value


def _items_of(
    names: tuple[str, str, str, str],
    entry: Mapping[str, Any],
    graph: LabelGraph,
    root: Path,
    known: Mapping[str, int],
    landmarks: bool,
    allow_outside: bool,
) -> list[FaceItem]:
    dataset, folder, split, video = names
    label = entry.get("label", folder)
    if label not in known:
        raise DataError(f"label {label!r} is unknown{nearest(label, known)}; give it 0 or 1 with `labels`")
    if folder in known and known[folder] != known[label]:
        raise DataError(f"label {label!r} is {known[label]}, but it lies under {folder!r}, which is {known[folder]}")
    manipulation = BENCH_MANIPULATIONS.get(label, label)
    fake = {graph.names[0]: known[label]}
    row = tuple(graph.vector(manipulation)) if manipulation in graph.manipulations else label_row(fake, graph)
    people, original = people_in(video)
    masks = {_frame_number(name): name for name in _paths(entry, "masks")}
    items = []
    for name in _paths(entry, "frames", needed=True):
        frame = _frame_number(name)
        picture = image_path(root, name, allow_outside=allow_outside)
        points = _beside(picture) if landmarks else None
        items.append(
            FaceItem(
                path=picture,
                labels=row,
                video=video,
                frame=frame,
                dataset=dataset,
                split=split,
                manipulation=manipulation,
                identities=people,
                original=original if known[label] else "",
                mask=image_path(root, masks[frame], allow_outside=allow_outside) if frame in masks else None,
                landmarks=points,
            )
        )
    return sorted(items, key=lambda item: item.frame or 0)


def _paths(entry: Mapping[str, Any], key: str, *, needed: bool = False) -> list[str]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{key} must be a list of paths")
    if needed and not value:
        raise DataError("no frames")
    return value


def _frame_number(name: str) -> int:
    stem = name.replace("\\", "/").rsplit("/", 1)[-1].split(".")[0]
    if not (stem.isascii() and stem.isdigit()):
        raise DataError(f"frame {name!r} is not called by a whole number, such as 000.png")
    return int(stem)


def _beside(picture: str) -> str | None:
    """The landmark file that belongs to a frame."""
    parts = Path(picture).parts
    if "frames" not in parts:
        return None
    place = len(parts) - 1 - parts[::-1].index("frames")
    found = Path(*parts[:place], "landmarks", *parts[place + 1 :]).with_suffix(".npy")
    return str(found) if found.is_file() else None


def _check_writable(item: FaceItem, label: str, labels: Mapping[str, int]) -> None:
    if not item.dataset or not item.video or item.split not in SPLITS:
        found = f"dataset {item.dataset!r}, video {item.video!r}, split {item.split!r}"
        raise DataError(f"{found}; all three are needed, the split one of {', '.join(SPLITS)}")
    if "/" in item.dataset or item.dataset.startswith("."):
        raise DataError(f"dataset {item.dataset!r} cannot be the name of a file")
    if item.fake not in (0, 1):
        raise DataError("it is not known whether the face is fake")
    known = labels.get(label, BENCH_LABELS.get(label, item.fake))
    if known != item.fake:
        raise DataError(f"label {label!r} is {known}, but this face is {item.fake}")
    _frame_number(item.path)


def _inside(path: str, images: str | os.PathLike[str]) -> str:
    found = os.path.relpath(os.path.abspath(path), os.path.abspath(images)).replace(os.sep, "/")
    if found.startswith("../"):
        raise DataError(f"lies outside the picture folder {os.fspath(images)}")
    return found
