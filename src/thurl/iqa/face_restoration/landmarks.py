"""Five landmarks per face: the challenge's CSV files, or the fixed points of FFHQ-aligned pictures."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from thurl.errors import DataError


__all__ = ["COLUMNS", "FFHQ_512", "Landmarks", "ffhq_points", "read_landmarks"]

_PARTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")

COLUMNS = tuple(f"{part}_{axis}" for part in _PARTS for axis in "xy")
"""The ten columns with coordinates in pixels, as the organisers' files name them."""

FFHQ_512 = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
"""Mean places of eyes, nose and corners of the mouth in an FFHQ-aligned picture of 512x512 pixels, to which the tools
of blind face restoration align."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of a set of faces.

    Attributes:
        points: (data set, stem of the file name) to five (x, y) in pixels; the data set is empty where the file has
            no such column.
        source: path of the file.
    """

    points: Mapping[tuple[str, str], Points]
    source: str

    def of(self, dataset: str, stem: str) -> Points | None:
        """Points of one face, None when the file has none for it."""
        return self.points.get((dataset, stem)) or self.points.get(("", stem))


def ffhq_points(width: int, height: int) -> Points:
    """`FFHQ_512` for a picture of another size.

    Args:
        width, height: size of the picture in pixels.
    """
    return tuple((x * width / 512, y * height / 512) for x, y in FFHQ_512)


def read_landmarks(path: str | os.PathLike[str]) -> Landmarks:
    """Read a landmark file: `filename` (without ending), optionally `dataset`, and the columns of `COLUMNS`.

    Other columns, such as the face boxes of the organisers' files, are not used.

    Raises:
        DataError: no such file, columns that are missing, coordinates that are no finite numbers, a face that occurs
            twice; all problems together.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except FileNotFoundError:
        raise DataError(f"{path}: no such landmark file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a landmark file: {error}") from None
    if lacking := [name for name in ("filename", *COLUMNS) if name not in columns]:
        raise DataError(f"{path}: the columns {', '.join(lacking)} are missing; it has {', '.join(columns) or 'none'}")
    points: dict[tuple[str, str], Points] = {}
    problems = []
    for number, row in enumerate(rows, start=2):
        name = (row["filename"] or "").strip()
        key = ((row.get("dataset") or "").strip(), name)
        values = [_number(row[column]) for column in COLUMNS]
        if not name:
            problems.append(f"line {number}: no file name")
        elif bad := [column for column, value in zip(COLUMNS, values, strict=True) if value is None]:
            problems.append(f"line {number} ({name}): {', '.join(bad)} must be finite numbers")
        elif key in points:
            problems.append(f"line {number}: {'/'.join(key).lstrip('/')} occurs twice")
        else:
            points[key] = tuple((values[i], values[i + 1]) for i in range(0, 10, 2))  # type: ignore[misc]
    if not rows:
        problems.append("no face in it")
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise DataError("\n".join(f"{path}: {problem}" for problem in [*problems[:10], *more]))
    return Landmarks(points, os.fspath(path))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
