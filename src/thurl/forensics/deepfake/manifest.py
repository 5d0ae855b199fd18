"""The manifest of faces: one JSON object per line, one line per picture.

| key | value |
|---|---|
| `path` | of the picture, relative to the picture folder |
| `labels` | node of the label graph to 1, 0 or null, which is unknown, as is a node that is left out |
| `video` | name of the video; the picture is one of its own where it is missing |
| `frame` | number of the frame in it, 0 or more |
| `dataset`, `split` | names, such as `FaceForensics++` and `train` |
| `manipulation` | how the face was made, a name |
| `identities` | names of the people in it: of a swapped face both |
| `original` | name of the real video, in the same data set, that a fake was made from |
| `mask` | path of a grey picture of the same size, white where it was altered |
| `landmarks` | path of a `.npy` file with (68, 2) or (81, 2) points in pixels of the picture |
| `box` | face as [left, top, right, bottom] in pixels; without it the picture is the face |

Only `path` and `labels` must be there; pixels are those of the stored picture, before EXIF orientation. Labels that
follow from the known ones by the graph are filled in: nothing is altered in a real face. A video is (dataset, fake,
manipulation, video), so that `000_003` of four manipulations are four videos.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import image_path
from thurl.data.records import RowProblems
from thurl.errors import DataError
from thurl.forensics.deepfake.graph import UNKNOWN, LabelGraph
from thurl.forensics.json_lines import check_keys, json_lines, manifest_text, mapping_value, numbers_value, text_value
from thurl.training.results import write_atomically


__all__ = [
    "FaceItem",
    "VideoKey",
    "check_items",
    "checked_items",
    "label_row",
    "read_manifest",
    "write_manifest",
]

_TEXTS = ("video", "dataset", "split", "manipulation", "original")
_FILES = ("mask", "landmarks")
_KEYS = ("path", "labels", *_TEXTS, "frame", "identities", *_FILES, "box")

VideoKey = tuple[str, int, str, str]
"""(dataset, fake, manipulation, video)."""


@dataclass(frozen=True)
class FaceItem:
    """One picture; attributes are the keys of the table above.

    Args:
        path: of the picture.
        labels: (n,) 1, 0 or -1 (unknown), in the order of the graph's nodes; the first says fake.
        row: of the list it comes from, counted from 1; 0 when it comes from none.
        source: that list.
    """

    path: str
    labels: tuple[int, ...]
    video: str = ""
    frame: int | None = None
    dataset: str = ""
    split: str = ""
    manipulation: str = ""
    identities: tuple[str, ...] = ()
    original: str = ""
    mask: str | None = None
    landmarks: str | None = None
    box: tuple[float, float, float, float] | None = None
    row: int = 0
    source: str = ""

    @property
    def fake(self) -> int:
        """1, 0 or -1 (unknown)."""
        return self.labels[0]

    @property
    def video_key(self) -> VideoKey:
        """What tells its video from all others."""
        return self.dataset, self.fake, self.manipulation, self.video or self.path

    @property
    def source_key(self) -> tuple[str, str, int | None]:
        """(dataset, real video, frame): what a real face and the forgeries of it have in common."""
        real = self.original if self.fake == 1 else self.video
        return self.dataset, real or self.path, self.frame

    @property
    def where(self) -> str:
        """Picture and origin in words, for messages."""
        return f"{self.path} ({self.source} row {self.row})" if self.row else self.path


def label_row(labels: Mapping[str, Any], graph: LabelGraph) -> tuple[int, ...]:
    """Labels of a picture in the order of the graph's nodes, with all that follow from the known ones.

    Args:
        labels: node to 1, 0 or None.

    Raises:
        DataError: unknown nodes, other values, labels that cannot be.
    """
    return tuple(graph.implied(graph.row(labels)))


def write_manifest(
    path: str | os.PathLike[str],
    items: Sequence[FaceItem],
    graph: LabelGraph,
    *,
    images: str | os.PathLike[str] | None = None,
) -> None:
    """Writes items in their order, in one step; the same items give the same bytes. Empty keys are left out.

    Args:
        path: JSONL file.
        items: with paths as they can be opened from here.
        graph: what the labels are of.
        images: folder that the written paths start from; the folder of the manifest when None. Files outside it are
            written with absolute paths, which `read_manifest` accepts with `allow_outside` only.
    """
    root = Path(path).parent if images is None else Path(images)
    write_atomically(path, "".join(json.dumps(_to_json(i, graph, root), ensure_ascii=False) + "\n" for i in items))


def read_manifest(
    path: str | os.PathLike[str],
    graph: LabelGraph,
    *,
    images: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> list[FaceItem]:
    """Items of a manifest in file order; pictures are not opened.

    Args:
        path: JSONL file.
        graph: what the labels are of.
        images: folder the paths are relative to; the folder of the manifest when None. Items come with joined paths.
        allow_outside: accept absolute paths and paths that climb out of `images`.

    Raises:
        MissingRequirementError: no such file.
        DataError: no item, or lines that cannot be used, illegal labels and mixed-up videos (`check_items`) among
            them; lists the first 20 and counts all.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    text = manifest_text(path)
    problems = RowProblems(str(path), "Correct or remove these lines.")
    items: list[FaceItem] = []
    # Long lists have few different label vectors, and each is compared with all legal ones.
    known: dict[str, tuple[int, ...]] = {}
    for number, row in json_lines(text):
        try:
            if isinstance(row, DataError):
                raise row
            items.append(replace(_from_json(row, graph, root, allow_outside, known), row=number, source=str(path)))
        except DataError as error:
            problems.add(number, str(error))
    return checked_items(items, problems, path)


def check_items(items: Iterable[FaceItem], problems: RowProblems) -> None:
    """Notes pictures that are listed twice and videos that cannot be one video.

    One name for two videos shows in a frame number that occurs twice, in other people, or in two splits.
    """
    pictures: dict[str, FaceItem] = {}
    frames: dict[tuple[VideoKey, int], FaceItem] = {}
    videos: dict[VideoKey, FaceItem] = {}
    for item in items:
        first = pictures.setdefault(item.path, item)
        if first is not item:
            problems.add(item.row, f"{item.path} is already in row {first.row}")
            continue
        name = f"video {item.video!r}" + (f" of {item.dataset}" if item.dataset else "")
        fix = "if these are two videos, give them two names"
        same = videos.setdefault(item.video_key, item)
        if same.split != item.split:
            problems.add(item.row, f"{name} is in {item.split!r} here and in {same.split!r} in row {same.row}; {fix}")
        elif set(same.identities) != set(item.identities):
            problems.add(
                item.row,
                f"{name} shows {', '.join(item.identities) or 'nobody'} here and "
                f"{', '.join(same.identities) or 'nobody'} in row {same.row}; {fix}",
            )
        elif item.frame is not None:
            other = frames.setdefault((item.video_key, item.frame), item)
            if other is not item:
                problems.add(item.row, f"frame {item.frame} of {name} is already in row {other.row}; {fix}")


def checked_items(items: list[FaceItem], problems: RowProblems, source: Path) -> list[FaceItem]:
    """The items of a list, after `check_items`.

    Raises:
        DataError: what `problems` holds then, or no item.
    """
    check_items(items, problems)
    problems.raise_if_any()
    if not items:
        raise DataError(f"{source}: no face in it; it must hold at least one")
    return items


def _to_json(item: FaceItem, graph: LabelGraph, root: Path) -> dict[str, Any]:
    values = {name: None if value == UNKNOWN else value for name, value in zip(graph.names, item.labels, strict=True)}
    line: dict[str, Any] = {"path": _relative(item.path, root), "labels": values}
    line |= {key: getattr(item, key) for key in _TEXTS if getattr(item, key)}
    if item.frame is not None:
        line["frame"] = item.frame
    if item.identities:
        line["identities"] = list(item.identities)
    line |= {key: _relative(getattr(item, key), root) for key in _FILES if getattr(item, key)}
    if item.box is not None:
        line["box"] = list(item.box)
    return line


def _relative(path: str, root: Path) -> str:
    found = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    return (os.path.abspath(path) if found.startswith("..") else found).replace(os.sep, "/")


def _from_json(
    row: Mapping[str, Any],
    graph: LabelGraph,
    root: Path,
    allow_outside: bool,
    known: dict[str, tuple[int, ...]],
) -> FaceItem:
    check_keys(row, _KEYS)
    labels = mapping_value(row, "labels")
    if not labels:
        raise DataError("labels is missing; it must say at least whether the face is fake")
    spelled = repr(sorted(labels.items()))
    if spelled not in known:
        known[spelled] = label_row(labels, graph)
    box = row.get("box")
    if box is not None:
        box = numbers_value(box, "box", 4)
        if box[2] <= box[0] or box[3] <= box[1]:
            raise DataError(f"box is {list(box)}; right and bottom must lie beyond left and top")
    texts: dict[str, Any] = {key: text_value(row, key) for key in _TEXTS}
    for key in _FILES:
        if name := text_value(row, key):
            texts[key] = image_path(root, name, allow_outside=allow_outside)
    return FaceItem(
        path=image_path(root, text_value(row, "path"), allow_outside=allow_outside),
        labels=known[spelled],
        frame=_frame(row.get("frame")),
        identities=_names(row.get("identities")),
        box=box,
        **texts,
    )


def _frame(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"frame is {value!r}; it must be a whole number of 0 or more")
    return value


def _names(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise DataError(f"identities is {value!r}; it must be a list of names")
    return tuple(value)
