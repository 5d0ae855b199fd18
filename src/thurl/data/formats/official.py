"""The label files that VisualQuality-R1 ships (arXiv 2505.14460, GitHub TianheWu/VisualQuality-R1).

Space-separated text without a header, and the training JSONL. Deliberate differences from the official loader: every
bad row is reported instead of stopping at the first, and a picture outside the picture folder is refused.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import Rows, distortion_of, read_text
from thurl.data.records import RatedImage, RowProblems
from thurl.errors import DataError, UsageError
from thurl.messages import closest


__all__ = ["COLUMNS", "OFFICIAL_DATASETS", "official_dataset", "read_jsonl", "read_official", "read_text_columns"]

COLUMNS = {
    "ref_dis_mos_std": ("ref", "dis", "mos", "std"),
    "dis_mos_std": ("dis", "mos", "std"),
    "ref_dis_mos": ("ref", "dis", "mos"),
    "dis_mos": ("dis", "mos"),
}

# Data set -> (columns, what the names of its label files begin with).
OFFICIAL_DATASETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "KADID-10K": ("ref_dis_mos_std", ("kadid-10k", "kadid10k", "kadid")),
    "AGIQA-3K": ("dis_mos_std", ("agiqa-3k", "agiqa3k", "agiqa")),
    "KONIQ-10K": ("dis_mos_std", ("koniq-10k", "koniq10k", "koniq")),
    "CLIVE": ("dis_mos_std", ("clive", "livec")),
    "SPAQ": ("dis_mos_std", ("spaq",)),
    "BID": ("dis_mos", ("bid",)),
    "Liu13": ("ref_dis_mos", ("liu13", "deblur")),
    "Min19": ("ref_dis_mos", ("min19", "dehaze")),
    "SRIQA-Bench": ("ref_dis_mos", ("sriqa-bench", "sriqa")),
    "PIPAL": ("ref_dis_mos", ("pipal",)),
    "TID2013": ("ref_dis_mos", ("tid2013",)),
    "CSIQ": ("ref_dis_mos", ("csiq",)),
    "CVIU": ("ref_dis_mos", ("cviu",)),
    "SHRQ": ("ref_dis_mos", ("shrq",)),
}

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def official_dataset(name: str) -> str | None:
    """Data set that a name or the name of a label file stands for (`LIVEC_test_all` is CLIVE), or `None`."""
    lower = name.lower()
    for dataset, (_, beginnings) in OFFICIAL_DATASETS.items():
        for beginning in (dataset.lower(), *beginnings):
            if re.match(re.escape(beginning) + r"(?![a-z0-9])", lower):
                return dataset
    return None


def read_official(
    path: Path, *, images: Path, dataset: str | None, problems: RowProblems, allow_outside: bool = False
) -> list[RatedImage]:
    """A shipped text file; its columns follow from the data set, which `dataset` or the file name tells.

    Raises:
        UsageError: neither names a known data set.
    """
    known = official_dataset(dataset or "") or official_dataset(path.stem)
    if known is None:
        asked = dataset or path.stem
        near = closest(asked, OFFICIAL_DATASETS)
        raise UsageError(
            f"{asked!r} is not a data set of the official label files"
            + (f"; nearest: {near!r}" if near else "")
            + f". Give dataset: one of {', '.join(OFFICIAL_DATASETS)}, or a format by columns: {', '.join(COLUMNS)}."
        )
    return read_text_columns(
        path,
        columns=OFFICIAL_DATASETS[known][0],
        images=images,
        dataset=dataset or known,
        problems=problems,
        allow_outside=allow_outside,
    )


def read_text_columns(
    path: Path,
    *,
    columns: str,
    images: Path,
    dataset: str | None,
    problems: RowProblems,
    allow_outside: bool = False,
) -> list[RatedImage]:
    """Space-separated text without a header, its columns a name of `COLUMNS`.

    The standard deviations are the file's own: in the shipped SPAQ file they are on the 0..100 scale while the MOS is
    on 1..5, and in the KADID-10K files they are square roots of standard deviations (see `read_kadid`).

    Args:
        dataset: name of the data set; when `None`, what the file name tells, else the file name without its ending.
    """
    names = COLUMNS[columns]
    dataset = dataset or official_dataset(path.stem) or path.stem
    rows = Rows(path, images, problems, allow_outside)
    for row, line in enumerate(read_text(path).split("\n"), start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != len(names):
            problems.add(row, f"{len(cells)} columns; {columns} has {len(names)} ({' '.join(names)})")
            continue
        cell = dict(zip(names, cells, strict=True))
        if _is_number(cell["dis"]):
            # dis_mos_std and ref_dis_mos both have three columns; this is how the mix-up shows.
            problems.add(row, f"dis is {cell['dis']!r}, a number and no picture; is another format meant?")
            continue
        rows.add(
            row,
            cell["dis"],
            cell["mos"],
            cell.get("std"),
            dataset=dataset,
            reference=cell.get("ref"),
            extra=_distortion(dataset, cell["dis"]),
        )
    return rows.records


def read_jsonl(
    path: Path, *, images: Path, dataset: str | None, problems: RowProblems, allow_outside: bool = False
) -> list[RatedImage]:
    """Official training JSONL, one object per line: dataset_name, image (text or list of one), conversations.

    The MOS is the `value` of the last turn from `gpt`: a number, or text with the number in `<answer>` tags. The text
    of the question, without an `<image>` marker, is kept as `extra["question"]`; ids are renumbered from 1 over all
    files as `extra["id"]`.

    Args:
        path: one file, or several joined by ":".
        images: one picture folder, or one per file joined by ":".
        dataset: name for rows without `dataset_name`; the file name without its ending when `None`.

    Raises:
        UsageError: as many picture folders as files are needed, or one.
    """
    files = [path] if path.exists() else [Path(part) for part in str(path).split(":") if part]
    folders = [images] if images.exists() else [Path(part) for part in str(images).split(":") if part]
    if len(files) > 1 and images == path.parent:
        folders = [file.parent for file in files]
    if len(folders) not in (1, len(files)):
        raise UsageError(
            f"images names {len(folders)} folders for {len(files)} label files; give one folder, or one per file, "
            'joined by ":"'
        )
    folders = folders * len(files) if len(folders) == 1 else folders
    records: list[RatedImage] = []
    for file, folder in zip(files, folders, strict=True):
        problems.file = file.name if len(files) > 1 else ""
        rows = Rows(file, folder, problems, allow_outside, records)
        for row, line in enumerate(read_text(file).split("\n"), start=1):
            if line.strip():
                _add_json_line(rows, row, line, dataset or file.stem)
    problems.file = ""
    return records


def _add_json_line(rows: Rows, row: int, line: str, dataset: str) -> None:
    try:
        image, value, name, question = _read_json_line(line)
    except DataError as error:
        rows.problems.add(row, str(error))
        return
    distortion = _distortion(name or dataset, image)
    rows.add(
        row,
        image,
        value,
        dataset=name or dataset,
        # The file does not say it, the picture's name does: needed to keep a reference out of two splits.
        reference=_reference(image) if distortion else None,
        extra={"id": str(len(rows.records) + 1), "question": question, **distortion},
    )


def _read_json_line(line: str) -> tuple[str, object, str | None, str]:
    try:
        item: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a JSON object: {error}") from None
    if not isinstance(item, dict):
        raise DataError(f"a JSON {type(item).__name__}; it must be an object with image and conversations")
    image = item.get("image")
    if isinstance(image, list):
        if len(image) != 1:
            raise DataError(f"image lists {len(image)} pictures; a rated row has exactly one")
        image = image[0]
    if not isinstance(image, str):
        raise DataError(f"image is {image!r}; it must be the path of a picture")
    turns = item.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError("conversations is not a list of turns; a human and a gpt turn are needed")
    answers = [turn.get("value") for turn in turns if turn.get("from") == "gpt"]
    if not answers:
        raise DataError("conversations has no turn from 'gpt', so there is no mos")
    asked = next((turn.get("value") for turn in turns if turn.get("from") == "human"), "")
    name = item.get("dataset_name")
    if name is not None and not isinstance(name, str):
        raise DataError(f"dataset_name is {name!r}; it must be text")
    value = answers[-1]
    if isinstance(value, str):
        tagged = _ANSWER.findall(value)
        value = tagged[-1].strip() if tagged else value
    return image, value, name, _question(asked if isinstance(asked, str) else "")


def _distortion(dataset: str, image: str) -> dict[str, str]:
    return distortion_of(image) if official_dataset(dataset) in ("KADID-10K", "TID2013") else {}


def _reference(image: str) -> str:
    path = Path(image)
    return path.stem.split("_")[0].upper() + path.suffix


@functools.lru_cache(maxsize=256)
def _question(text: str) -> str:
    # Cached: one string object for the thousands of rows that ask the same.
    return text.replace("<image>", "").strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not os.path.splitext(text)[1].lstrip(".").isalpha()
