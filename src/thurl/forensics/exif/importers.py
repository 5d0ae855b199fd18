"""The label files of the two official repositories, read into manifest records.

| repository | labels |
|---|---|
| GitHub `MZMMSEC/AIGFD_EXIF` (arXiv 2501.02207) | a folder with one JSON file per photograph, EXIF as texts |
| GitHub `MZMMSEC/AIGFD_BLO` (arXiv 2507.22824) | one JSON file, four settings as numbers, five as class numbers |

The first repository's own code reads "1/60 sec" as 60 and "2 sec" as 2, so that fast and slow shutters interleave,
and evaluates texts of a data file as program code. `parse="correct"` reads seconds; `parse="official"` gives the
official numbers, without evaluating anything, to compare with the released model and for regression tests. The
released code also swaps the labels of exposure time and focal length while training; that concerns the heads, not the
files.

Whether the second repository's file repeats the wrong parse is not known: it is not released. `read_blades_labels`
warns when its exposure times look like it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import image_path
from thurl.data.records import RowProblems
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.exif.manifest import FaceRecord
from thurl.forensics.exif.settings import (
    NOT_A_NUMBER,
    NOT_WRITTEN,
    OUT_OF_RANGE,
    PLAUSIBLE,
    SETTINGS,
    CameraSettings,
    number_from_text,
    settings_from_texts,
)
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, ORDINAL_TASKS, class_names


__all__ = ["PARSES", "official_numbers", "read_blades_labels", "read_fdf_boxes", "read_icassp_labels"]

logger = logging.getLogger(__name__)

PARSES = ("correct", "official")

_ICASSP_KEYS = {
    "iso": "ISO Speed Ratings",
    "aperture": "Aperture Value",
    "exposure_time": "Exposure Time",
    "focal_length": "Focal Length",
}
_BLADES_ORDINAL = {
    "iso": "ISO",
    "aperture": "Aperture",
    "exposure_time": "Exposure Time",
    "focal_length": "Focal Length",
}
_BLADES_CLASSES = {
    "make": "Make",
    "metering_mode": "Metering Mode",
    "exposure_mode": "Exposure Mode",
    "white_balance": "White Balance Mode",
    "exposure_program": "Exposure Program",
}
# Of the four copies the official script saves beside a photograph.
_EDITED = ("mouth_rotated", "mouth_mirrored", "eye_mirrored", "warp")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Half of all photographs are taken at 1/60 s or faster, almost none slower than 1 s.
_SUSPICIOUS_SECONDS = 1.0


def read_icassp_labels(
    labels: str | os.PathLike[str], *, images: str | os.PathLike[str], parse: str = "correct"
) -> list[FaceRecord]:
    """Labels of the one-class method: `<id>.json` with `{"EXIF": {"ISO Speed Ratings": "200", ...}}`.

    Pictures are `<id>` or `<id>_<face>` with an ending of a picture; all faces of one photograph form a group. Copies
    that the official script has manipulated (`<name>_0` to `<name>_3` beside `<name>`) become `edited`.

    Args:
        labels: folder of the JSON files.
        images: folder of the pictures.
        parse: "correct", or "official" for the numbers of the official code, in whose exposure times 60 stands for
            1/60 s; there a photograph is left out unless it has all four.

    Returns:
        Records sorted by picture; pictures without a label file are left out.

    Raises:
        UsageError: another `parse`.
        MissingRequirementError: a folder does not exist.
        DataError: files that cannot be used, the first 20 of them, or no picture with labels.
    """
    if parse not in PARSES:
        raise UsageError(f"parse is {parse!r}; it must be one of {', '.join(PARSES)}")
    labels, images = _folder(labels, "labels"), _folder(images, "images")
    problems = RowProblems(str(labels), "Correct or remove these files.")
    texts: dict[str, dict[str, str | None]] = {}
    for path in sorted(labels.glob("*.json")):
        problems.file = path.name
        try:
            exif = _object(_load(path), "EXIF")
        except DataError as error:
            problems.add(1, str(error))
            continue
        texts[path.stem] = {
            name: None if (v := exif.get(key)) is None else str(v) for name, key in _ICASSP_KEYS.items()
        }
    problems.raise_if_any()
    records = []
    for name, edited in _faces(images):
        stem = Path(name).stem
        photo = stem if stem in texts else stem.rsplit("_", 1)[0]
        if photo not in texts:
            continue
        settings = settings_from_texts(texts[photo]) if parse == "correct" else _official_settings(texts[photo])
        if settings is not None:
            joined = {kind: str(images / path) for kind, path in edited.items()}
            records.append(FaceRecord(str(images / name), settings, group=photo, edited=joined))
    if not records:
        raise DataError(f"{images}: no picture has a label in {labels}; pictures are named like the label files")
    return records


def official_numbers(texts: Mapping[str, str]) -> dict[str, float] | None:
    """The four numbers of the official code for one photograph, mistakes included.

    "1/" is dropped from the exposure time. Only when one of the texts is then no decimal number are aperture and
    exposure time both read as fractions: the same "1/8 sec" is 8 beside "F2.8" and 0.125 beside "F28/10".

    Args:
        texts: keys "ISO Speed Ratings", "Aperture Value", "Exposure Time", "Focal Length".

    Returns:
        The same keys to numbers; `None` for a photograph the official code leaves out or fails on.
    """
    iso, aperture, exposure, focal = (texts.get(_ICASSP_KEYS[name]) or "" for name in ORDINAL_TASKS)
    seconds = exposure.removesuffix("sec").strip()
    f_number, shutter = _decimal(aperture.removeprefix("F")), _decimal(seconds.replace("1/", ""))
    if f_number is None or shutter is None:
        f_number, shutter = number_from_text(aperture), number_from_text(seconds)
    numbers = [_decimal(iso), f_number, shutter, _decimal(focal.removesuffix("mm").strip())]
    if aperture == "F" or any(number is None for number in numbers):
        return None
    return {_ICASSP_KEYS[name]: float(n) for name, n in zip(ORDINAL_TASKS, numbers, strict=True) if n is not None}


def read_blades_labels(
    path: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None, prefix: str = ""
) -> list[FaceRecord]:
    """Labels of BLADES: `{item: {"path": ..., "EXIF_ordinal": {...}, "EXIF_categorical": {...}}}`.

    Ordinal values may be numbers (exposure time in seconds) or texts ("1/60 sec"). A missing one, or one that no
    camera can have, is absent. A class number outside its list is an error: the file belongs to other class lists.

    Args:
        path: JSON file.
        images: folder that the picture paths start from; the folder of the file when `None`.
        prefix: beginning of the picture paths that is cut off, such as the folder of the machine the file was made on.
            Paths that are still absolute are refused.

    Returns:
        Records in file order.

    Raises:
        MissingRequirementError: no such file.
        DataError: items that cannot be used, the first 20 of them, or none at all.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    data = _load(path)
    problems = RowProblems(str(path), "Correct or remove these items (counted as rows).")
    records = []
    for row, (item, entry) in enumerate(data.items(), start=1):
        try:
            if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
                raise DataError(f"item {item!r} must be an object with a `path`")
            settings = _blades_settings(_object(entry, "EXIF_ordinal"), _object(entry, "EXIF_categorical"))
            name = entry["path"].removeprefix(prefix).lstrip("/") if prefix else entry["path"]
            records.append(FaceRecord(image_path(root, name), settings))
        except DataError as error:
            problems.add(row, f"{item}: {error}")
    problems.raise_if_any()
    if not records:
        raise DataError(f"{path}: no photograph in it")
    times = [float(r.settings.values["exposure_time"]) for r in records if "exposure_time" in r.settings.values]
    if times and statistics.median(times) >= _SUSPICIOUS_SECONDS:
        logger.warning(
            "%s: the median exposure time is %g s. The file probably holds 60 for 1/60 s, which reverses the order of "
            "fast shutters: do not train on its exposure times.",
            path,
            statistics.median(times),
        )
    return records


def read_fdf_boxes(path: str | os.PathLike[str]) -> dict[str, tuple[float, float, float, float]]:
    """Face boxes of Flickr Diverse Faces (`fdf_metainfo.json`): picture id to (left, top, right, bottom).

    Returns:
        Fractions of the picture's side, as in the file; `thurl.forensics.crop.official_crop` takes them.

    Raises:
        MissingRequirementError: no such file.
        DataError: boxes that are not four finite numbers, the first 20 of them.
    """
    problems = RowProblems(str(path), "Correct or remove these items (counted as rows).")
    boxes = {}
    for row, (item, entry) in enumerate(_load(Path(path)).items(), start=1):
        box = entry.get("bounding_box") if isinstance(entry, dict) else None
        if isinstance(box, list) and len(box) == 4 and all(_is_number(n) for n in box):
            boxes[item] = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
        else:
            problems.add(row, f"{item}: bounding_box is {box!r}; it must be four numbers")
    problems.raise_if_any()
    return boxes


def _official_settings(texts: Mapping[str, str | None]) -> CameraSettings | None:
    numbers = official_numbers({_ICASSP_KEYS[name]: text or "" for name, text in texts.items()})
    if numbers is None:
        return None
    values: dict[str, float | str] = {name: numbers[key] for name, key in _ICASSP_KEYS.items()}
    return CameraSettings(values, dict.fromkeys(CATEGORICAL_TASKS, NOT_WRITTEN))


def _blades_settings(ordinal: Mapping[str, Any], categorical: Mapping[str, Any]) -> CameraSettings:
    values: dict[str, float | str] = {}
    absent: dict[str, str] = {}
    for name in SETTINGS:
        value: Any
        if name in ORDINAL_TASKS:
            given = ordinal.get(_BLADES_ORDINAL[name])
            value = number_from_text(given) if isinstance(given, str) else given
            low, high = PLAUSIBLE[name]
            if given is None:
                absent[name] = NOT_WRITTEN
            elif not _is_number(value):
                absent[name] = NOT_A_NUMBER
            elif not low <= value <= high:
                absent[name] = OUT_OF_RANGE
            else:
                values[name] = float(value)
            continue
        entry = categorical.get(_BLADES_CLASSES[name])
        value = entry.get("cls_label") if isinstance(entry, dict) else entry
        names = class_names(name)
        if value is None:
            absent[name] = NOT_WRITTEN
        elif isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(names):
            raise DataError(f"{_BLADES_CLASSES[name]} is class {value!r}; it must be 0 to {len(names) - 1}")
        else:
            values[name] = names[value]
    return CameraSettings(values, absent)


def _faces(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Pictures below a folder, sorted, each with the official copies beside it; the copies themselves are left out."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    known = set(names)

    def copies(name: str) -> dict[str, str]:
        path = Path(name)
        found = {kind: path.with_stem(f"{path.stem}_{i}").as_posix() for i, kind in enumerate(_EDITED)}
        return found if all(copy in known for copy in found.values()) else {}

    edited = {name: copies(name) for name in names}
    taken = {copy for found in edited.values() for copy in found.values()}
    yield from ((name, edited[name]) for name in names if name not in taken)


def _folder(path: str | os.PathLike[str], name: str) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise MissingRequirementError(f"{name}: folder {str(path)!r} does not exist")
    return path


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MissingRequirementError(f"label file {str(path)!r} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: holds a {type(data).__name__}; it must be a JSON object")
    return data


def _object(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = entry.get(key, {})
    if not isinstance(value, dict):
        raise DataError(f"{key} is {value!r}; it must be an object")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _decimal(text: str) -> float | None:
    """A plain decimal number; `None` for a fraction and everything else."""
    return None if "/" in text else number_from_text(text)
