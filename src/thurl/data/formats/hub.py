"""Data sets of the Hugging Face Hub, or saved by `Dataset.save_to_disk`, with a column of pictures and one of MOS.

Pictures stay where they are, encoded, in memory-mapped files. A record's `image` is then not a path but a short
reference (`hub-image:{...}`) that `thurl.data.images.open_image` resolves, in any process.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thurl.data.formats.plain import FIELDS, column_names
from thurl.data.formats.tables import Rows, find_columns
from thurl.data.images import HUB_PREFIX, ImageError
from thurl.data.records import RatedImage, RowProblems
from thurl.errors import DataError, MissingRequirementError, UsageError


__all__ = ["hub_reference", "hub_table", "read_hub", "read_hub_image"]


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


def read_hub_image(reference: str) -> tuple[str, bytes]:
    """Name and encoded bytes of a picture that `read_hub` referred to.

    Raises:
        ImageError: the reference is malformed, or the row holds no picture.
    """
    try:
        key, column, index = json.loads(reference.removeprefix(HUB_PREFIX))
        where = json.loads(key)
        label = f"{where['path']} ({where['split']}) row {index + 1}"
    except (ValueError, TypeError, KeyError) as error:
        raise ImageError(f"{reference[:100]}: not a reference to a picture of a Hub data set: {error}") from None
    try:
        cell = _pictures(key, column)[index][column]
    except (IndexError, KeyError, ValueError) as error:
        raise ImageError(f"{label}: no such row or column: {error}; read the labels again") from None
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise ImageError(f"{label}: the row holds no picture; remove it from the data set")
    if cell["bytes"] is not None:
        return label, cell["bytes"]
    try:
        return label, Path(cell["path"]).read_bytes()
    except OSError as error:
        raise ImageError(f"{label}: {cell['path']} cannot be read: {error.strerror}") from None


def hub_table(
    path: str, *, split: str = "train", name: str | None = None, revision: str | None = None
) -> tuple[str, Any]:
    """A data set and the key that `hub_reference` takes; arguments as in `read_hub`.

    Raises:
        MissingRequirementError: `datasets` is missing, or the data set cannot be reached.
    """
    key = json.dumps({"path": str(path), "split": split, "name": name, "revision": revision}, sort_keys=True)
    return key, _table(key)


def hub_reference(key: str, column: str, row: int) -> str:
    """What `thurl.data.images.open_image` opens picture `row`, from 0, of `column` by."""
    return HUB_PREFIX + json.dumps([key, column, row])


@functools.lru_cache(maxsize=8)
def _table(key: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingRequirementError("format 'hub' needs datasets; run `pip install datasets`") from None
    where = json.loads(key)
    path, split = where["path"], where["split"]
    folder = Path(path)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            table = datasets.load_from_disk(path)
            if isinstance(table, datasets.DatasetDict):
                if split not in table:
                    raise UsageError(f"{path}: no split {split!r}; it has {', '.join(table)}")
                table = table[split]
            return table
        return datasets.load_dataset(path, name=where["name"], split=split, revision=where["revision"])
    except UsageError:
        raise
    # Anything from a wrong id to a broken connection; the library's own message says which.
    except Exception as error:
        raise MissingRequirementError(
            f"data set {path!r} (split {split!r}) cannot be read: {error}. Check the id, the split and the "
            "connection, or download it first and give its folder."
        ) from error


@functools.lru_cache(maxsize=8)
def _pictures(key: str, column: str) -> Any:
    import datasets

    return _table(key).select_columns([column]).cast_column(column, datasets.Image(decode=False))


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
