"""Lists of videos that Celeb-DF and DFDC come with, read into items whose `path` is a video file.

`thurl deepfake crop` and `thurl.forensics.deepfake.video.cut_videos` make pictures of them. Manipulations have the
names that DeepfakeBench gives them, so that items of both sources can be compared.

| file | form |
|---|---|
| `List_of_testing_videos.txt` of Celeb-DF | `1 Celeb-real/id1_0007.mp4`, where **1 is real and 0 is fake** |
| `metadata.json` of DFDC | `{"a.mp4": {"label": "FAKE", "split": "train", "original": "b.mp4"}}` |
| `labels.csv` of DFDC | `filename,label`, where 1 is fake |
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from thurl.data.formats.tables import find_columns, image_path, read_table, read_text
from thurl.data.records import RowProblems
from thurl.errors import DataError
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.manifest import FaceItem, checked_items, label_row
from thurl.forensics.deepfake.releases import people_in
from thurl.forensics.json_lines import text_value


__all__ = ["read_celebdf_list", "read_dfdc_list"]

_CELEB_FOLDERS = {"Celeb-real": 0, "YouTube-real": 0, "Celeb-synthesis": 1}
_WORDS = {"REAL": 0, "FAKE": 1}


def read_celebdf_list(
    path: str | os.PathLike[str],
    graph: LabelGraph,
    *,
    images: str | os.PathLike[str] | None = None,
    dataset: str = "Celeb-DF-v2",
    split: str = "test",
    allow_outside: bool = False,
) -> list[FaceItem]:
    """Videos of `List_of_testing_videos.txt`, in its order; only whether they are forged is known.

    Args:
        path: the list.
        graph: what the labels are of.
        images: folder the paths start from; the folder of the list when None.
        dataset, split: of all items.
        allow_outside: accept absolute paths and paths that climb out of `images`.

    Raises:
        MissingRequirementError: no such file.
        DataError: lines of another form, a label that contradicts the folder, videos listed twice, no video.
    """
    path = Path(path)
    reader = _Videos(path, graph, images, allow_outside)
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        mark, _, name = line.strip().partition(" ")
        name = name.strip().replace("\\", "/")
        if mark not in ("0", "1") or not name:
            reader.problems.add(number, f"{line.strip()!r}: a line is 1 (real) or 0 (fake), and the path of a video")
            continue
        fake = 1 - int(mark)
        folder = PurePosixPath(name).parent.name
        if _CELEB_FOLDERS.get(folder, fake) != fake:
            said = "fake" if fake else "real"
            reader.problems.add(number, f"{name} is {said} by its number {mark}, but lies in {folder}; 1 is real")
            continue
        people, original = people_in(PurePosixPath(name).stem)
        kind = "CelebDFv2_fake" if fake else "CelebDFv2_real"
        reader.add(number, name, fake, dataset, split, kind, people=people, original=original if fake else "")
    return reader.items()


def read_dfdc_list(
    path: str | os.PathLike[str],
    graph: LabelGraph,
    *,
    images: str | os.PathLike[str] | None = None,
    dataset: str = "DFDC",
    split: str = "",
    allow_outside: bool = False,
) -> list[FaceItem]:
    """Videos of a `metadata.json` or a `labels.csv`, in its order; only whether they are forged is known.

    Who is in them is not known. A forgery of `metadata.json` names the real video it was made from, which
    `split_by_identity` keeps it together with.

    Args:
        path: the file, ending in `.json` or `.csv`.
        graph: what the labels are of.
        images: folder the paths start from; the folder of the list when None.
        dataset: of all items.
        split: of all items; that of the file when empty, and `test` for a `.csv`.
        allow_outside: accept absolute paths and paths that climb out of `images`.

    Raises:
        MissingRequirementError: no such file.
        DataError: another ending, no JSON object, missing columns, other labels, videos listed twice, no video;
            entries of JSON are counted from 1.
    """
    path = Path(path)
    reader = _Videos(path, graph, images, allow_outside)
    if path.suffix.lower() == ".json":
        rows = _json_rows(path)
    elif path.suffix.lower() == ".csv":
        rows = _csv_rows(path, reader.problems)
    else:
        raise DataError(f"{path}: lists of DFDC are metadata.json and labels.csv")
    for number, name, entry in rows:
        try:
            if not isinstance(entry, dict):
                raise DataError(f"{name}: {entry!r} is no object with a label")
            label = entry.get("label")
            known = _WORDS if path.suffix.lower() == ".json" else {"0": 0, "1": 1}
            if not isinstance(label, str) or label not in known:
                raise DataError(f"{name}: label is {label!r}; it is one of {', '.join(known)}")
            fake = known[label]
            original = text_value(entry, "original")
            if original and not fake:
                raise DataError(f"{name} is real and has an original, {original}; correct one of them")
            own = split or text_value(entry, "split")
        except DataError as error:
            reader.problems.add(number, str(error))
            continue
        kind = "DFDC_Fake" if fake else "DFDC_Real"
        reader.add(number, name, fake, dataset, own, kind, original=PurePosixPath(original).stem)
    return reader.items()


class _Videos:
    """Collects the videos of one list, and what is wrong with its rows."""

    def __init__(
        self, path: Path, graph: LabelGraph, images: str | os.PathLike[str] | None, allow_outside: bool
    ) -> None:
        self.path, self.allow_outside = path, allow_outside
        self.root = path.parent if images is None else Path(images)
        self.labels = [label_row({graph.names[0]: fake}, graph) for fake in (0, 1)]
        self.problems = RowProblems(str(path))
        self._found: list[FaceItem] = []
        self._rows: dict[Any, int] = {}

    def add(
        self,
        row: int,
        name: str,
        fake: int,
        dataset: str,
        split: str,
        manipulation: str,
        *,
        people: tuple[str, ...] = (),
        original: str = "",
    ) -> None:
        try:
            item = FaceItem(
                path=image_path(self.root, name, allow_outside=self.allow_outside),
                labels=self.labels[fake],
                video=PurePosixPath(name).stem,
                dataset=dataset,
                split=split,
                manipulation=manipulation,
                identities=people,
                original=original,
            )
        except DataError as error:
            self.problems.add(row, str(error))
            return
        first = self._rows.setdefault(item.video_key, row)
        if first != row:
            self.problems.add(row, f"video {item.video!r} is already in row {first}; two videos need two names")
            return
        self._found.append(replace(item, row=row, source=str(self.path)))

    def items(self) -> list[FaceItem]:
        return checked_items(self._found, self.problems, self.path)


def _json_rows(path: Path) -> list[tuple[int, str, Any]]:
    try:
        # Pairs, since a dict would keep one of two entries of one name without a word.
        pairs = json.loads(read_text(path), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(pairs, _Pairs):
        raise DataError(f"{path}: an object with one entry per video is needed")
    entries = [(name, dict(entry) if isinstance(entry, _Pairs) else entry) for name, entry in pairs]
    return [(number, name, entry) for number, (name, entry) in enumerate(entries, start=1)]


class _Pairs(list[tuple[str, Any]]):
    """The entries of a JSON object, in order."""


def _csv_rows(path: Path, problems: RowProblems) -> list[tuple[int, str, Any]]:
    table = read_table(path, problems=problems)
    columns = find_columns(path, table.columns, ["filename", "label"], [])
    return [
        (number, cells[columns["filename"]], {"label": cells[columns["label"]], "split": "test"})
        for number, cells in table.rows
    ]
