"""Which pictures a command is about: files, folders, patterns and lists become paths with face boxes.

| given | becomes |
|---|---|
| a folder | the pictures in it, by their endings, in the order of their paths; subfolders with `recursive` |
| a pattern with `*`, `?` or `[` | the pictures it matches, and those in folders it matches |
| a `.csv` file | one picture per row: the column `image`, and a face box where `left, top, right, bottom` are filled |
| a `.jsonl` file | one picture per line: `image`, and a face box where `box` is not null. A manifest is such a list |
| any other file | that picture, whatever its ending |

Other columns and keys are left alone. Nothing is opened here but the lists: what is wrong with a picture is said when
it is read. Every picture is taken once, with several boxes once per box.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import image_path
from thurl.data.records import RowProblems
from thurl.errors import DataError
from thurl.forensics.exif.reader import MAX_BYTES, read_file
from thurl.forensics.json_lines import json_lines


__all__ = ["ENDINGS", "Pictures", "content_marks", "find_pictures", "read_picture_list"]

ENDINGS = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")
"""Endings of the files that are taken from folders, in any case."""

_LISTS = (".csv", ".jsonl")
_SIDES = ("left", "top", "right", "bottom")
_SHOWN = 20

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Pictures:
    """Pictures in a fixed order.

    Attributes:
        paths: as they were given or found, not resolved.
        boxes: a face box (left, top, right, bottom) in pixels for each, None for pictures used whole.
    """

    paths: list[Path]
    boxes: list[Box | None]

    def __len__(self) -> int:
        return len(self.paths)


def find_pictures(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    recursive: bool = False,
    images: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> Pictures:
    """The pictures of `inputs`, see the table at the top of this module.

    Args:
        inputs: files, folders, patterns and lists.
        recursive: also pictures in subfolders of folders; hidden files and folders are left out.
        images: folder that the paths of lists start from; the folder of the list when None.
        boxes: a list with face boxes for pictures that come without; matched by file, not by spelling.
        allow_outside: accept paths in lists that are absolute or climb out of their folder.

    Raises:
        DataError: paths that do not exist, rows of lists that cannot be used (all of them), or no picture at all.
    """
    problems: list[str] = []
    found: list[tuple[Path, Box | None]] = []
    for item in inputs:
        try:
            found += _expanded(os.path.expanduser(os.fspath(item)), recursive, images, allow_outside)
        except DataError as error:
            problems.append(str(error))
    known: dict[str, list[Box]] = {}
    if boxes is not None:
        try:
            for path, box in read_picture_list(boxes, images=images, allow_outside=allow_outside):
                if box is not None:
                    known.setdefault(os.path.realpath(path), []).append(box)
        except DataError as error:
            problems.append(str(error))
    if problems:
        shown = problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])
        raise DataError("\n".join(shown))
    taken: dict[tuple[str, Box | None], Path] = {}
    for path, box in found:
        place = os.path.realpath(path)
        for own in [box] if box is not None else known.get(place, [None]):
            taken.setdefault((place, own), path)
    if not taken:
        names = ", ".join(map(str, inputs)) or "nothing given"
        hint = "" if recursive else "; pictures in subfolders are found with --recursive"
        raise DataError(f"no pictures in {names}: files ending in {' '.join(ENDINGS)} are taken{hint}")
    return Pictures(list(taken.values()), [box for _, box in taken])


def read_picture_list(
    path: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None, allow_outside: bool = False
) -> list[tuple[Path, Box | None]]:
    """Pictures and boxes of a `.csv` or `.jsonl` file in file order; the pictures need not exist.

    Args:
        path: the list, UTF-8.
        images, allow_outside: as `find_pictures` takes them.

    Raises:
        DataError: no such file, another ending, no column `image`, or rows that cannot be used, the first 20 of them.
    """
    path = Path(path)
    content, problem = read_file(path)
    if problem:
        raise DataError(f"{path}: {problem}; give a {' or '.join(_LISTS)} file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None
    if path.suffix.lower() not in _LISTS:
        raise DataError(f"{path}: a list of pictures ends in {' or '.join(_LISTS)}")
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else json_lines(text)
    root = path.parent if images is None else Path(images)
    problems = RowProblems(str(path))
    found: list[tuple[Path, Box | None]] = []
    for number, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            if not isinstance(row.get("image"), str):
                raise DataError("image is missing; it must be the path of a picture")
            name = image_path(root, row["image"], allow_outside=allow_outside)
            found.append((Path(name), _box(row.get("box"))))
        except DataError as error:
            problems.add(number, str(error).replace("allow_outside=True", "--allow-outside"))
    problems.raise_if_any()
    return found


def content_marks(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Twelve hexadecimal digits of the SHA-256 of every file that can be read, sorted, each once.

    A detector keeps those of its photographs, so that nobody calibrates or evaluates with them by mistake. Two
    different files out of a million have the same mark with a chance of 0.2 %.
    """
    marks = set()
    for path in paths:
        content, problem = read_file(path, max_bytes=MAX_BYTES)
        if not problem:
            marks.add(hashlib.sha256(content).hexdigest()[:12])
    return sorted(marks)


def _expanded(
    item: str, recursive: bool, images: str | os.PathLike[str] | None, allow_outside: bool
) -> list[tuple[Path, Box | None]]:
    path = Path(item)
    if path.is_dir():
        return [(picture, None) for picture in _in_folder(path, recursive)]
    if path.suffix.lower() in _LISTS and path.is_file():
        return read_picture_list(path, images=images, allow_outside=allow_outside)
    if os.path.lexists(path):
        return [(path, None)]
    if not glob.has_magic(item):
        raise DataError(f"no such file or folder: {item}")
    found: list[Path] = []
    for match in sorted(glob.glob(item, recursive=True)):
        if os.path.isdir(match):
            # `**` lists the folders on its way, whose files it lists, too.
            found += [] if "**" in item else list(_in_folder(Path(match), recursive))
        elif match.lower().endswith(ENDINGS):
            found.append(Path(match))
    if not found:
        raise DataError(f"no picture matches {item}")
    return [(picture, None) for picture in found]


def _in_folder(folder: Path, recursive: bool) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        for name in sorted(files):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield Path(place, name)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = reader.fieldnames or []
        if "image" not in names:
            raise DataError(f"{path}: the columns are {', '.join(names) or 'none'}; one must be called image")
        for row in reader:
            if not any(value for key, value in row.items() if key is not None):
                continue
            sides = [row.get(name) or "" for name in _SIDES]
            entry: dict[str, Any] = {"image": row["image"]}
            if any(side.strip() for side in sides):
                entry["box"] = [_number(side) for side in sides]
            yield reader.line_num, entry
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file (line {reader.line_num}: {error})") from None


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _box(value: Any) -> Box | None:
    if value is None:
        return None
    fine = isinstance(value, list) and len(value) == 4
    if not fine or any(isinstance(n, bool) or not isinstance(n, (int, float)) or not math.isfinite(n) for n in value):
        raise DataError(f"the face box is {value!r}; it must be four finite numbers: left, top, right, bottom")
    left, top, right, bottom = map(float, value)
    if right <= left or bottom <= top:
        raise DataError(f"the face box is {value!r}; right and bottom must lie beyond left and top")
    return left, top, right, bottom
