"""Plain CSV: one header, one row per picture. The format thurl writes itself and recommends for own data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from thurl.data.formats.tables import find_columns, image_path, read_table
from thurl.data.records import RatedImage, RowProblems
from thurl.errors import DataError


__all__ = ["read_csv"]

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
    """
    renamed = {name: (columns or {}).get(name, name) for name in FIELDS}
    table = read_table(path, problems=problems)
    explicit = [renamed[name] for name in FIELDS[2:] if name in (columns or {})]
    where = find_columns(path, table.columns, [renamed["image"], renamed["mos"], *explicit], list(renamed.values()))
    index = {name: where.get(renamed[name]) for name in FIELDS}
    used = set(where.values())
    rest = [(name, at) for at, name in enumerate(table.columns) if at not in used and name]
    records = []
    for row, cells in table.rows:

        def cell(name: str, cells: list[str] = cells) -> str:
            at = index[name]
            return cells[at] if at is not None else ""

        mos = problems.number(row, renamed["mos"], cell("mos"))
        std = problems.number(row, renamed["std"], cell("std"), minimum=0.0) if cell("std") else None
        try:
            image = image_path(images, cell("image"), allow_outside=allow_outside)
        except DataError as error:
            problems.add(row, str(error))
            continue
        if mos is None or (std is None and cell("std")):
            continue
        records.append(
            RatedImage(
                image=image,
                mos=mos,
                std=std,
                dataset=cell("dataset") or dataset or path.stem,
                reference=cell("reference") or None,
                row=row,
                source=str(path),
                extra={name: cells[at] for name, at in rest},
            )
        )
    return records
