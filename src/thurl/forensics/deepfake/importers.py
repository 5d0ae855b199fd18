"""Lists of faces that others wrote, read into items of the manifest: FaceForensics++ folders, SJEDD lists, CSV.

An SJEDD list (official code of arXiv 2408.16305) has one picture per line, `path [flag] key`. The ten characters of
the key say real, fake | expression, identity, physical | eye, lip, mouth, nose, skin, but are a key into a table only:
the official code adds eyebrows and the physical inconsistency of swapped faces. In older lists a 2 means unknown; then
what all fitting rows of the table agree on is known.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import find_columns, image_path, read_table, read_text
from thurl.data.image_files import IMAGE_ENDINGS
from thurl.data.records import RowProblems, parse_number
from thurl.errors import DataError, MissingRequirementError
from thurl.forensics.deepfake.graph import UNKNOWN, LabelGraph
from thurl.forensics.deepfake.manifest import FaceItem, check_items, label_row
from thurl.forensics.deepfake.releases import people_in
from thurl.messages import nearest


__all__ = ["read_face_csv", "read_ffpp_folders", "read_sjedd_list"]

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
_FF_SPLITS = ("train", "val", "test")
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
                frame=_last_number(place[-1]),
                dataset=dataset,
                split=split,
                manipulation=method,
                identities=people,
                original=original if labels[0] == 1 else "",
            )
            items.append(replace(item, row=number, source=str(path)))
        except DataError as error:
            problems.add(number, str(error))
    return _checked(items, problems, path)


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
    return _checked(items, problems, path)


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
    return _checked(items, problems, root)


def _checked(items: list[FaceItem], problems: RowProblems, path: Path) -> list[FaceItem]:
    check_items(items, problems)
    problems.raise_if_any()
    if not items:
        raise DataError(f"{path}: no face in it; it must hold at least one")
    return items


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
        frame = _last_number(picture.name)
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


def _last_number(name: str) -> int | None:
    match = re.search(r"(\d+)$", name.rsplit(".", 1)[0])
    return int(match[1]) if match else None
