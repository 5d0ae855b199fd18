"""The training manifest: one JSON object per line, one line per photograph, and its disjoint parts.

| key | value |
|---|---|
| `image` | path of the picture, relative to the picture folder |
| `iso`, `aperture`, `exposure_time`, `focal_length` | number (ISO, f-number, seconds, millimetres) or null |
| `make`, `metering_mode`, `exposure_mode`, `white_balance`, `exposure_program` | name of the class or null |
| `absent` | setting to the reason why it is null |
| `group` | pictures of one group (one folder, camera or person) are never in two parts |
| `camera` | maker and model as written |
| `size` | [width, height] as stored |
| `sha256` | of the file |
| `box` | face as [left, top, right, bottom] in pixels, or null: the whole picture is the face |
| `landmarks` | 68 points [x, y] in pixels, or null |
| `edited` | manipulation to the path of a picture already manipulated that way |

Only `image` must be there. Pixels are those of the stored picture, before EXIF orientation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import image_path
from thurl.data.records import RowProblems
from thurl.errors import DataError
from thurl.forensics.exif.settings import NOT_WRITTEN, PLAUSIBLE, SETTINGS, CameraSettings
from thurl.forensics.exif.tasks import ORDINAL_TASKS, class_names
from thurl.forensics.faces import POINTS
from thurl.forensics.json_lines import check_keys, json_lines, manifest_text, mapping_value, numbers_value, text_value
from thurl.forensics.splits import assign_parts, connected_units
from thurl.training.results import write_atomically


__all__ = ["PARTS", "FaceRecord", "read_manifest", "split_records", "write_manifest"]

PARTS: Mapping[str, float] = {"train": 0.7, "outer": 0.1, "validation": 0.1, "calibration": 0.1}
"""Default parts: inner and outer batches of the bi-level step, model choice, and thresholds of the detector."""

_KEYS = ("image", *SETTINGS, "absent", "group", "camera", "size", "sha256", "box", "landmarks", "edited")


@dataclass(frozen=True)
class FaceRecord:
    """One photograph of the manifest; the attributes are the keys of the table above.

    Args:
        image: path of the picture.
        settings: its nine camera settings.
        group: unit of splitting; the picture itself when empty.
        camera: maker and model.
        size: (width, height) in pixels as stored.
        sha256: 64 hexadecimal digits, or empty.
        box: face in pixels, right and bottom exclusive.
        landmarks: 68 (x, y) in pixels.
        edited: manipulation (a name of `thurl.forensics.exif.manipulations.MANIPULATIONS`) to path.
    """

    image: str
    settings: CameraSettings = field(default_factory=CameraSettings)
    group: str = ""
    camera: str = ""
    size: tuple[int, int] | None = None
    sha256: str = ""
    box: tuple[float, float, float, float] | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None
    edited: Mapping[str, str] = field(default_factory=dict)


def write_manifest(path: str | os.PathLike[str], records: Sequence[FaceRecord]) -> None:
    """Writes records in their order, in one step; the same records give the same bytes."""
    lines = [json.dumps(_to_json(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    write_atomically(path, "".join(lines))


def read_manifest(
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> list[FaceRecord]:
    """Records of a manifest in file order; pictures are not opened.

    Args:
        path: JSONL file.
        images: folder the picture paths are relative to; the folder of the manifest when `None`. The records come
            back with joined paths.
        allow_outside: accept absolute picture paths and paths that climb out of `images`.

    Raises:
        MissingRequirementError: no such file.
        DataError: no record, or lines that cannot be used; lists the first 20 and counts all.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    text = manifest_text(path, "`thurl exif scan` makes one")
    problems = RowProblems(str(path), "Correct or remove these lines.")
    records: list[FaceRecord] = []
    seen: dict[str, int] = {}
    for number, row in json_lines(text):
        try:
            if isinstance(row, DataError):
                raise row
            record = _from_json(row, root, allow_outside)
        except DataError as error:
            problems.add(number, str(error))
            continue
        if record.image in seen:
            problems.add(number, f"{record.image} is already in line {seen[record.image]}")
        else:
            seen[record.image] = number
            records.append(record)
    problems.raise_if_any()
    if not records:
        raise DataError(f"{path}: no photograph in it; it must hold at least one line")
    return records


def split_records(
    records: Sequence[FaceRecord], *, parts: Mapping[str, float] = PARTS, seed: int = 0
) -> dict[str, list[FaceRecord]]:
    """Disjoint parts in which no group and no identical file is in two.

    Depends on `seed`, the parts and the names of the groups (the content or else the path of a picture without one)
    only: not on the order of the records, the platform or the Python version. Parts are counted in groups, so unequal
    groups make unequal parts.

    Args:
        records: the manifest.
        parts: name to share; positive numbers that add up to 1.
        seed: another seed is another split.

    Returns:
        Records of each part in their old order; no part is empty.

    Raises:
        UsageError: wrong `parts`.
        DataError: fewer groups than parts.
    """
    units = _units(records)
    part_of = assign_parts(
        units,
        parts,
        seed=seed,
        what=f"{len(records)} photographs",
        fix="give more pictures or smaller groups (group_by='file' when scanning)",
    )
    result: dict[str, list[FaceRecord]] = {part: [] for part in parts}
    for record, unit in zip(records, units, strict=True):
        result[part_of[unit]].append(record)
    return result


def _units(records: Sequence[FaceRecord]) -> list[str]:
    """One name per record: its group, joined with the groups that hold a copy of one of its files."""
    # The content names a picture without a group where it is known: the folder it lies in must not matter.
    own = [f"group {r.group}" if r.group else f"image {r.sha256 or r.image}" for r in records]
    return connected_units(
        [name, f"zsha256 {r.sha256}"] if r.sha256 else [name] for name, r in zip(own, records, strict=True)
    )


def _to_json(record: FaceRecord) -> dict[str, Any]:
    line: dict[str, Any] = {"image": record.image}
    line |= {name: record.settings.values.get(name) for name in SETTINGS}
    line["absent"] = {name: record.settings.absent[name] for name in SETTINGS if name in record.settings.absent}
    line |= {"group": record.group, "camera": record.camera, "size": record.size, "sha256": record.sha256}
    line |= {"box": record.box, "landmarks": record.landmarks, "edited": dict(record.edited)}
    return line


def _from_json(row: Mapping[str, Any], root: Path, allow_outside: bool) -> FaceRecord:
    check_keys(row, _KEYS)
    values: dict[str, float | str] = {}
    reasons = mapping_value(row, "absent")
    absent: dict[str, str] = {}
    for name in SETTINGS:
        value = row.get(name)
        if value is None:
            absent[name] = str(reasons.get(name, NOT_WRITTEN))
        else:
            values[name] = _setting(name, value)
    box = row.get("box")
    if box is not None:
        box = numbers_value(box, "box", 4)
        if box[2] <= box[0] or box[3] <= box[1]:
            raise DataError(f"box is {list(box)}; right and bottom must lie beyond left and top")
    points = row.get("landmarks")
    if points is not None:
        if not isinstance(points, list) or len(points) != POINTS:
            raise DataError(f"landmarks must be {POINTS} points [x, y]")
        points = tuple(numbers_value(point, "landmarks", 2) for point in points)
    size = row.get("size")
    edited = {
        name: image_path(root, str(p), allow_outside=allow_outside) for name, p in mapping_value(row, "edited").items()
    }
    return FaceRecord(
        image=image_path(root, text_value(row, "image"), allow_outside=allow_outside),
        settings=CameraSettings(values, absent),
        group=text_value(row, "group"),
        camera=text_value(row, "camera"),
        size=None if size is None else tuple(int(n) for n in numbers_value(size, "size", 2)),  # type: ignore[arg-type]
        sha256=text_value(row, "sha256"),
        box=box,
        landmarks=points,
        edited=edited,
    )


def _setting(name: str, value: object) -> float | str:
    if name in ORDINAL_TASKS:
        low, high = PLAUSIBLE[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise DataError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}, or null")
        return float(value)
    if value not in class_names(name):
        raise DataError(f"{name} is {value!r}; it must be one of {', '.join(class_names(name))}, or null")
    return str(value)
