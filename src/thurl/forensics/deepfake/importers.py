"""Lists of faces that others wrote, read into items of the manifest: SJEDD lists and CSV.

An SJEDD list (official code of arXiv 2408.16305) has one picture per line, `path [flag] key`. The ten characters of
the key say real, fake | expression, identity, physical | eye, lip, mouth, nose, skin, but are a key into a table only:
the official code adds eyebrows and the physical inconsistency of swapped faces. In older lists a 2 means unknown; then
what all fitting rows of the table agree on is known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import find_columns, image_path, read_table, read_text
from thurl.data.records import RowProblems, parse_number
from thurl.errors import DataError
from thurl.forensics.deepfake.graph import UNKNOWN, LabelGraph
from thurl.forensics.deepfake.manifest import FaceItem, checked_items, label_row
from thurl.forensics.deepfake.releases import last_number, people_in
from thurl.messages import nearest


__all__ = ["read_face_csv", "read_sjedd_list"]

SJEDD_KEYS: Mapping[str, str] = {
    "1000000000": "real",
    "0101011111": "Deepfakes",
    "0110001100": "Face2Face",
    "0100110000": "eyes",
    "0100101100": "mouth",
    "0100100010": "nose",
}
"""Key to the manipulation whose labels it stands for; FaceSwap has those of Deepfakes, NeuralTextures of Face2Face."""

_SJEDD_LINE = re.compile(r"(?P<path>\S.*?)(?:\s+(?P<flag>-?\d+))?\s+(?P<key>[0-2]{10})")
_METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
_TEXTS = ("video", "dataset", "split", "manipulation", "original")
_FILES = ("mask", "landmarks")
_SIDES = ("left", "top", "right", "bottom")


def read_sjedd_list(
    path: str | os.PathLike[str],
    graph: LabelGraph,
    *,
    images: str | os.PathLike[str] | None = None,
    dataset: str = "",
    split: str = "",
    allow_outside: bool = False,
) -> list[FaceItem]:
    """Items of an SJEDD list in its order. Paths may hold spaces.

    The video is the folder a picture lies in, the frame the number its name ends with, and the manipulation a folder
    called like a method of FaceForensics++, or else that of the key.

    Args:
        path: the list.
        graph: what the labels are of; must know the manipulations of the table, as `ffpp` does.
        images: folder the paths start from; the folder of the list when None.
        dataset, split: of all items.
        allow_outside: accept absolute paths and paths that climb out of `images`.

    Raises:
        MissingRequirementError: no such file.
        UsageError: the graph does not know a manipulation.
        DataError: lines that cannot be used, the first 20 of them.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    table = {key: tuple(graph.vector(name)) for key, name in SJEDD_KEYS.items()}
    problems = RowProblems(str(path))
    items: list[FaceItem] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            match = _SJEDD_LINE.fullmatch(line.strip())
            if not match:
                raise DataError("not a path, perhaps a flag, and a key of ten digits 0, 1 or 2")
            labels, manipulation = _of_key(match["key"], table)
            place = match["path"].replace("\\", "/").split("/")
            method = next((name for name in _METHODS if name in place), manipulation)
            video = place[-2] if len(place) > 1 else ""
            people, original = people_in(video)
            item = FaceItem(
                path=image_path(root, match["path"], allow_outside=allow_outside),
                labels=labels,
                video=video,
                frame=last_number(place[-1]),
                dataset=dataset,
                split=split,
                manipulation=method,
                identities=people,
                original=original if labels[0] == 1 else "",
            )
            items.append(replace(item, row=number, source=str(path)))
        except DataError as error:
            problems.add(number, str(error))
    return checked_items(items, problems, path)


def read_face_csv(
    path: str | os.PathLike[str],
    graph: LabelGraph,
    *,
    images: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> list[FaceItem]:
    """Items of a CSV file with a header, in its order.

    Columns: `path`; one per node of the graph with 1, 0 or nothing where it is unknown; `manipulation`, whose labels
    are taken where the graph knows it and no node column is filled; further those of the manifest. `identities` are
    joined by `;`, a box is `left`, `top`, `right`, `bottom`. Other columns are refused, so that no label is lost to a
    slip of the pen.

    Args:
        path: the file.
        graph: what the labels are of.
        images: folder the paths start from; the folder of the file when None.
        allow_outside: accept absolute paths and paths that climb out of `images`.

    Raises:
        MissingRequirementError: no such file.
        DataError: unknown columns, or rows that cannot be used, the first 20 of them.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    problems = RowProblems(str(path))
    table = read_table(path, problems=problems)
    known = ("path", *graph.names, *_TEXTS, "frame", "identities", *_FILES, *_SIDES)
    for column in table.columns:
        if column not in known:
            raise DataError(
                f"{path}: column {column!r} is unknown{nearest(column, known)}; columns: {', '.join(known)}"
            )
    columns = find_columns(path, table.columns, ["path"], [name for name in known if name != "path"])
    items: list[FaceItem] = []
    for number, cells in table.rows:
        row = {name: cells[place] for name, place in columns.items()}
        try:
            item = _of_row(row, graph, root, allow_outside)
            items.append(replace(item, row=number, source=str(path)))
        except DataError as error:
            problems.add(number, str(error))
    return checked_items(items, problems, path)


def _of_key(key: str, table: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, ...], str]:
    """Labels and manipulation of a key, as far as they are known."""
    fitting = [known for known in table if all(a in ("2", b) for a, b in zip(key, known, strict=True))]
    if not fitting:
        raise DataError(f"key {key} fits none of the official {', '.join(table)}")
    agreed = [values[0] if len({*values}) == 1 else UNKNOWN for values in zip(*map(table.get, fitting), strict=True)]
    return tuple(agreed), SJEDD_KEYS[fitting[0]] if len(fitting) == 1 else ""


def _of_row(row: Mapping[str, str], graph: LabelGraph, root: Path, allow_outside: bool) -> FaceItem:
    marks = {name: row[name] for name in graph.names if row.get(name)}
    wrong = [f"{name} is {value!r}" for name, value in marks.items() if value not in ("0", "1")]
    if wrong:
        raise DataError(f"{', '.join(wrong)}; labels must be 0, 1 or nothing")
    manipulation = row.get("manipulation", "")
    if marks:
        labels = label_row({name: int(value) for name, value in marks.items()}, graph)
    elif manipulation in graph.manipulations:
        labels = tuple(graph.vector(manipulation))
    else:
        raise DataError(f"no label is filled, and the label graph {graph.name} knows no manipulation {manipulation!r}")
    sides = [row.get(name, "") for name in _SIDES]
    box: Any = (
        tuple(parse_number(side, name) for side, name in zip(sides, _SIDES, strict=True)) if any(sides) else None
    )
    if box is not None and (box[2] <= box[0] or box[3] <= box[1]):
        raise DataError(f"box is {list(box)}; right and bottom must lie beyond left and top")
    frame = row.get("frame", "")
    if frame and not (frame.isascii() and frame.isdigit()):
        raise DataError(f"frame is {frame!r}; it must be a whole number of 0 or more")
    names: dict[str, Any] = {key: row.get(key, "") for key in _TEXTS}
    names |= {key: image_path(root, row[key], allow_outside=allow_outside) for key in _FILES if row.get(key)}
    return FaceItem(
        path=image_path(root, row["path"], allow_outside=allow_outside),
        labels=labels,
        frame=int(frame) if frame else None,
        identities=tuple(name.strip() for name in row.get("identities", "").split(";") if name.strip()),
        box=box,
        **names,
    )
