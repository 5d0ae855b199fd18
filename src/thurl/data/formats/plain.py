"""Plain CSV: one header, one row per picture. The format thurl writes itself and recommends for own data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from thurl.data.formats.tables import Rows, find_columns, read_table
from thurl.data.records import RatedImage, RowProblems
from thurl.errors import UsageError
from thurl.messages import closest


__all__ = ["FIELDS", "column_names", "read_csv"]

FIELDS = ("image", "mos", "std", "dataset", "reference")


def read_csv(
    path: Path,
    *,
    images: Path,
    dataset: str | None,
    problems: RowProblems,
    allow_outside: bool = False,
    columns: Mapping[str, str] | None = None,
) -> list[RatedImage]:
    """Columns `image` and `mos`, optionally `std`, `dataset` and `reference`; every other column becomes `extra`.

    Args:
        path: CSV file, see `thurl.data.formats.tables.read_table`.
        images: folder the `image` column is relative to.
        dataset: name for rows without one; the file name without its ending when `None`.
        problems: receives the bad rows.
        allow_outside: see `thurl.data.formats.tables.image_path`.
        columns: other names for the five columns, for example `{"image": "file", "mos": "score"}`.

    Raises:
        DataError: a needed column is missing.
        UsageError: `columns` names something else than the five fields.
    """
    renamed = column_names(columns)
    table = read_table(path, problems=problems)
    explicit = [renamed[name] for name in FIELDS[2:] if name in (columns or {})]
    where = find_columns(path, table.columns, [renamed["image"], renamed["mos"], *explicit], list(renamed.values()))
    at = {name: where[column] for name, column in renamed.items() if column in where}
    used = set(where.values())
    rest = [(name, index) for index, name in enumerate(table.columns) if index not in used and name]
    rows = Rows(path, images, problems, allow_outside)
    for row, cells in table.rows:
        cell = {name: cells[index] for name, index in at.items()}
        rows.add(
            row,
            cell["image"],
            cell["mos"],
            cell.get("std"),
            dataset=cell.get("dataset") or dataset or path.stem,
            reference=cell.get("reference"),
            extra={name: cells[index] for name, index in rest},
            names=(renamed["mos"], renamed["std"]),
        )
    return rows.records


def column_names(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Column of each of the five fields; raises UsageError for a sixth."""
    for name in columns or {}:
        if name not in FIELDS:
            near = closest(name, FIELDS)
            raise UsageError(
                f"columns: {name!r} is not a field"
                + (f"; nearest: {near!r}" if near else "")
                + f". Fields: {', '.join(FIELDS)}."
            )
    return {name: (columns or {}).get(name, name) for name in FIELDS}
