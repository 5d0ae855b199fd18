"""Data sets of the Hugging Face Hub, or saved by `Dataset.save_to_disk`, with a column of pictures and one of MOS.

Pictures stay where they are; a record's `image` is then not a path but a reference (`thurl.data.hub_pictures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thurl.data.formats.plain import FIELDS, column_names
from thurl.data.formats.tables import Rows, find_columns
from thurl.data.hub_pictures import hub_reference, hub_table
from thurl.data.records import RatedImage, RowProblems
from thurl.errors import DataError


__all__ = ["read_hub"]


def read_hub(
    path: Path,
    *,
    images: Path,
    dataset: str | None,
    problems: RowProblems,
    allow_outside: bool = False,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
) -> list[RatedImage]:
    """Rated pictures of a Hub data set. No code of the data set is run.

    Args:
        path: id on the Hub, folder of `save_to_disk`, or folder that `datasets.load_dataset` reads.
        images: folder of the pictures when the image column holds paths.
        dataset: name for rows without one; the last part of `path` when `None`.
        columns: names of the columns for image, mos, std, dataset and reference where they differ from these.
        split: split of the Hub data set. Which part of it to train on is decided later, by reference.
        name: configuration of the Hub data set.
        revision: commit, tag or branch on the Hub.

    Raises:
        MissingRequirementError: `datasets` is missing, or the data set cannot be reached.
        DataError: a column is missing or the image column holds neither pictures nor paths.
    """
    renamed = column_names(columns)
    key, table = hub_table(str(path), split=split, name=name, revision=revision)
    explicit = [renamed[field] for field in FIELDS[2:] if field in (columns or {})]
    found = table.column_names
    at = find_columns(path, found, [renamed["image"], renamed["mos"], *explicit], list(renamed.values()))
    used = {field: found[at[column]] for field, column in renamed.items() if column in at}
    encoded = _is_picture(table, used["image"])
    plain = [column for column in found if column not in used.values() and _is_scalar(table, column)]
    cells = table.select_columns([*(used[field] for field in used if field != "image" or not encoded), *plain])
    rows = Rows(path, images, problems, allow_outside)
    for index, row in enumerate(cells):
        reference = row.get(used.get("reference", ""))
        rows.add(
            index + 1,
            "picture" if encoded else row[used["image"]],
            row[used["mos"]],
            row.get(used.get("std", "")),
            dataset=str(row.get(used.get("dataset", "")) or dataset or path.name),
            reference=None if reference is None else str(reference),
            extra={column: str(row[column]) for column in plain if row[column] is not None},
            names=(renamed["mos"], renamed["std"]),
        )
    if not encoded:
        return rows.records
    from dataclasses import replace

    return [replace(item, image=hub_reference(key, used["image"], item.row - 1)) for item in rows.records]


def _is_picture(table: Any, column: str) -> bool:
    import datasets

    feature = table.features[column]
    if isinstance(feature, datasets.Image):
        return True
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        return False
    raise DataError(f"column {column!r} holds {feature}; it must hold pictures or their paths")


def _is_scalar(table: Any, column: str) -> bool:
    dtype = getattr(table.features[column], "dtype", "")
    return dtype in ("string", "large_string", "bool") or dtype.startswith(("int", "uint", "float"))
