"""Reading text and CSV label files: encodings, separators, headers, and paths that stay inside a folder."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from thurl.data.records import RatedImage, RowProblems
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.messages import closest


__all__ = [
    "Rows",
    "Table",
    "distortion_of",
    "find_columns",
    "image_path",
    "read_bytes",
    "read_table",
    "read_text",
    "require_choice",
]

logger = logging.getLogger(__name__)

# A label file holds at most a few million short rows. A larger file is some other file.
MAX_BYTES = 1 << 30

# KADID-10k "I01_23_05.png" and TID2013 "I01_23_5.bmp": reference, kind of distortion, level.
_DISTORTED = re.compile(r"i[0-9]{2}_([0-9]{2})_0?([0-9])", re.IGNORECASE)


@dataclass
class Rows:
    """Builds the records of one label file; what cannot be used goes to `problems`.

    Args:
        source: label file.
        images: folder the picture names are relative to.
        problems: receives the bad rows.
        allow_outside: see `image_path`.
    """

    source: Path
    images: str | os.PathLike[str]
    problems: RowProblems
    allow_outside: bool = False
    records: list[RatedImage] = field(default_factory=list)

    def add(
        self,
        row: int,
        image: object,
        mos: object,
        std: object = None,
        *,
        dataset: str,
        reference: str | None = None,
        extra: dict[str, str] | None = None,
        names: tuple[str, str] = ("mos", "std"),
    ) -> None:
        """Checks one row and keeps it when it can be used. `names`: columns of `mos` and `std`, for messages.

        An empty or absent `std` means that the file states none.
        """
        value = self.problems.number(row, names[0], mos)
        spread: float | None = None
        has_std = std is not None and str(std).strip() != ""
        if has_std:
            spread = self.problems.number(row, names[1], std, minimum=0.0)
        try:
            path = image_path(self.images, str(image or ""), allow_outside=self.allow_outside)
        except DataError as error:
            self.problems.add(row, str(error))
            return
        if value is None or (has_std and spread is None):
            return
        self.records.append(
            RatedImage(
                image=path,
                mos=value,
                std=spread,
                dataset=dataset,
                reference=reference or None,
                row=row,
                source=str(self.source),
                extra=extra or {},
            )
        )


@dataclass
class Table:
    """Header and rows of a delimited text file.

    Args:
        columns: names in the header, stripped.
        rows: (row number counted from 1 with the header as row 1, cells).
    """

    columns: list[str]
    rows: list[tuple[int, list[str]]]


def read_text(path: str | os.PathLike[str]) -> str:
    """Text of a label file, with `\\n` line ends.

    UTF-8 with or without a byte order mark; a file that is not UTF-8 is read as Latin-1 and a warning says so.

    Raises:
        MissingRequirementError: no such file.
        DataError: a folder, not readable, empty, larger than 1 GiB, UTF-16, or binary.
    """
    path = Path(path)
    raw = read_bytes(path)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: the file is UTF-16; label files must be UTF-8. Save it again as UTF-8.")
    if b"\x00" in raw:
        raise DataError(f"{path}: the file holds zero bytes, so it is not text. Give the label file of this format.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        logger.warning(
            "%s is not UTF-8 (byte %d is 0x%02x); read as Latin-1. Save it as UTF-8 if names look wrong.",
            path,
            error.start,
            raw[error.start],
        )
        text = raw.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise DataError(f"{path}: the file is empty; it must hold at least one rated picture")
    return text


def read_bytes(path: Path) -> bytes:
    """Bytes of a label file; raises as `read_text` does."""
    try:
        found = path.stat()
        size = found.st_size
        if stat.S_ISDIR(found.st_mode):
            raise DataError(f"{path}: this is a folder; give the label file inside it")
        # A device has no end, and a pipe that nobody writes to blocks for ever.
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path}: this is not a regular file; give the path of a label file")
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size} bytes; a label file may have {MAX_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingRequirementError(
            f"label file {path} does not exist; give the path of the data set's label file"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_table(path: str | os.PathLike[str], *, problems: RowProblems) -> Table:
    """A CSV file with a header. Comma, semicolon or tab, whichever separates the header.

    Blank lines are skipped; a row with another number of cells than the header is noted in `problems`.

    Raises:
        DataError: as `read_text`; header without rows, a column named twice, broken quoting.
    """
    text = read_text(path)
    header = text.lstrip("\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count) if any(mark in header for mark in ",;\t") else ","
    table: Table | None = None
    for row, cells in _csv_rows(text, delimiter, path):
        if not any(cell.strip() for cell in cells):
            continue
        if table is None:
            table = Table([cell.strip() for cell in cells], [])
            names = [name.lower() for name in table.columns if name]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise DataError(f"{path}: column {', '.join(twice)} is in the header twice; name every column once")
        elif len(cells) != len(table.columns):
            problems.add(row, f"{len(cells)} cells, but the header has {len(table.columns)} columns")
        else:
            table.rows.append((row, [cell.strip() for cell in cells]))
    if table is None or not (table.rows or problems.problems):
        raise DataError(f"{path}: a header and no rows; it must hold at least one rated picture")
    return table


def _csv_rows(text: str, delimiter: str, path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}: row {start}: {error}; check the quotation marks") from None
        yield start, cells
        # A quoted cell may run over several lines; the row is where it starts.
        start = reader.line_num + 1


def find_columns(
    path: str | os.PathLike[str], found: Sequence[str], required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, int]:
    """Position of each wanted column by name, without regard to case.

    Raises:
        DataError: required columns are missing; names the nearest existing one for each.
    """
    by_lower = {name.lower(): index for index, name in enumerate(found)}
    missing = [name for name in required if name.lower() not in by_lower]
    if missing:
        used = {name.lower() for name in required} - {name.lower() for name in missing}
        free = [name for name in found if name and name.lower() not in used]
        parts = []
        for name in missing:
            near = closest(name, free)
            parts.append(f"{name!r}" + (f" (nearest column: {near!r})" if near else ""))
        raise DataError(
            f"{path}: no column {', '.join(parts)}. Columns found: {', '.join(found)}. Needed: {', '.join(required)}."
        )
    wanted = [*required, *(name for name in optional if name.lower() in by_lower)]
    return {name: by_lower[name.lower()] for name in wanted}


def image_path(root: str | os.PathLike[str] | None, name: str, *, allow_outside: bool = False) -> str:
    """Joins the picture folder and a name from a label file.

    The check is on the text of the path: a symbolic link inside the folder may point anywhere its owner wants.

    Args:
        root: picture folder; `None` stands for the current one.
        name: path from the label file; backslashes count as separators, as in files made on Windows.
        allow_outside: accept absolute paths and paths that climb out of `root`.

    Raises:
        DataError: empty name, a zero byte, or a path outside `root` while `allow_outside` is false.
    """
    name = name.strip()
    if not name or "\x00" in name:
        raise DataError(f"image is {'empty' if not name else repr(name)}; it must be the path of a picture")
    unix = name.replace("\\", "/")
    absolute = os.path.isabs(unix) or (len(unix) > 1 and unix[1] == ":" and unix[0].isalpha())
    if allow_outside:
        return os.path.normpath(name if absolute else os.path.join(root or "", unix))
    inside = os.path.normpath(unix)
    if absolute or inside == ".." or inside.startswith("../"):
        raise DataError(
            f"image {name!r} lies outside the picture folder; use a path relative to it, or allow_outside=True"
        )
    return os.path.normpath(os.path.join(root or "", unix))


def distortion_of(image: str) -> dict[str, str]:
    """`kind` and `level` of a KADID-10k or TID2013 picture from its name; empty for any other name."""
    found = _DISTORTED.fullmatch(Path(image).stem)
    return {"kind": found[1], "level": found[2]} if found else {}


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises UsageError when an option of a format has a value it does not know."""
    if value not in choices:
        raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
