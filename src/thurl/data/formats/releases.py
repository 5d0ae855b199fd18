"""Label files as the makers of the data sets released them.

| data set | file | MOS | standard deviation |
|---|---|---|---|
| KADID-10k | dmos.csv | 1..5, larger is better in spite of the name | column `var`, see `read_kadid` |
| KonIQ-10k | koniq10k_scores_and_distributions.csv | `MOS` 1..5 or `MOS_zscore` 0..100 | `SD`, on the scale of `MOS` |
| TID2013 | mos_with_names.txt | 0..9 | mos_std.txt beside it |
| SPAQ | MOS and Image attribute scores.xlsx | 0..100 | none |
| LIVE Challenge (CLIVE) | AllMOS_release.mat and its two siblings | 0..100 | AllStdDev_release.mat |
| AGIQA-3K | data.csv | 0..5, quality or alignment | `std_quality`, `std_align` |
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

from thurl.data.formats.tables import (
    Rows,
    distortion_of,
    find_columns,
    read_bytes,
    read_table,
    read_text,
    require_choice,
)
from thurl.data.records import RatedImage, RowProblems
from thurl.errors import DataError, MissingRequirementError


__all__ = ["read_agiqa", "read_kadid", "read_koniq", "read_spaq", "read_tid2013"]

# SPAQ's sheet has 11,125 rows and unpacks to about 3 MB; far more than this is not a label file.
MAX_UNPACKED_BYTES = 512 << 20


def read_kadid(
    path: Path,
    *,
    images: Path,
    dataset: str | None,
    problems: RowProblems,
    allow_outside: bool = False,
    var_is: str = "std",
) -> list[RatedImage]:
    """KADID-10k `dmos.csv`: dist_img, ref_img, dmos, var.

    The column `var` holds standard deviations in spite of its name: of the 9,732 pictures whose MOS is a mean of 30
    whole ratings, 98.5 % have a `var` that is the standard deviation of 30 ratings of 1..5 with that mean, 1.3 % one
    that is the variance of such ratings. The files VisualQuality-R1 ships take the square root of it once more;
    `var_is="variance"` gives their numbers.

    Args:
        var_is: "std" or "variance".
    """
    require_choice("var_is", var_is, ("std", "variance"))
    table = read_table(path, problems=problems)
    at = find_columns(path, table.columns, ["dist_img", "ref_img", "dmos"], ["var"])
    rows = Rows(path, images, problems, allow_outside)
    for row, cells in table.rows:
        std: object = cells[at["var"]] if "var" in at else None
        if std and var_is == "variance":
            value = problems.number(row, "var", std, minimum=0.0)
            std = math.sqrt(value) if value is not None else None
        name = cells[at["dist_img"]]
        rows.add(
            row,
            name,
            cells[at["dmos"]],
            std,
            dataset=dataset or "KADID-10K",
            reference=cells[at["ref_img"]],
            extra=distortion_of(name),
            names=("dmos", "var"),
        )
    return rows.records


def read_koniq(
    path: Path,
    *,
    images: Path,
    dataset: str | None,
    problems: RowProblems,
    allow_outside: bool = False,
    mos_column: str = "MOS",
) -> list[RatedImage]:
    """KonIQ-10k csv: image_name, c1 .. c5, c_total, MOS, SD, MOS_zscore.

    Args:
        mos_column: "MOS" (1..5), or "MOS_zscore" (0..100), which most published evaluations use, among them the label
            file of VisualQuality-R1. `SD` is on the scale of `MOS`, so records from `MOS_zscore` have no `std`.
    """
    require_choice("mos_column", mos_column, ("MOS", "MOS_zscore"))
    table = read_table(path, problems=problems)
    at = find_columns(path, table.columns, ["image_name", mos_column], ["SD"])
    with_std = mos_column == "MOS" and "SD" in at
    rows = Rows(path, images, problems, allow_outside)
    for row, cells in table.rows:
        rows.add(
            row,
            cells[at["image_name"]],
            cells[at[mos_column]],
            cells[at["SD"]] if with_std else None,
            dataset=dataset or "KONIQ-10K",
            names=(mos_column, "SD"),
        )
    return rows.records


def read_agiqa(
    path: Path,
    *,
    images: Path,
    dataset: str | None,
    problems: RowProblems,
    allow_outside: bool = False,
    score: str = "quality",
) -> list[RatedImage]:
    """AGIQA-3K `data.csv`: name, prompt, adj1, adj2, style, mos_quality, std_quality, mos_align, std_align.

    Args:
        score: "quality" (what the picture looks like) or "align" (whether it shows what the prompt says).
    """
    require_choice("score", score, ("quality", "align"))
    names = (f"mos_{score}", f"std_{score}")
    table = read_table(path, problems=problems)
    at = find_columns(path, table.columns, ["name", names[0]], [names[1], "prompt"])
    rows = Rows(path, images, problems, allow_outside)
    for row, cells in table.rows:
        rows.add(
            row,
            cells[at["name"]],
            cells[at[names[0]]],
            cells[at[names[1]]] if names[1] in at else None,
            dataset=dataset or "AGIQA-3K",
            extra={"prompt": cells[at["prompt"]]} if "prompt" in at else None,
            names=names,
        )
    return rows.records


def read_tid2013(
    path: Path,
    *,
    images: Path,
    dataset: str | None,
    problems: RowProblems,
    allow_outside: bool = False,
    std_file: str | None = None,
) -> list[RatedImage]:
    """TID2013 `mos_with_names.txt`: MOS and picture on each line; the first three letters are the reference.

    Args:
        std_file: one standard deviation per line in the same order; `mos_std.txt` beside `path` when it is there.

    Raises:
        DataError: the two files differ in length.
    """
    beside = Path(std_file) if std_file else path.parent / "mos_std.txt"
    lines = _filled_lines(path)
    stds: list[str] | None = None
    if std_file or beside.is_file():
        stds = [line for _, line in _filled_lines(beside)]
        if len(stds) != len(lines):
            raise DataError(f"{beside}: {len(stds)} values for {len(lines)} pictures in {path}; they must match")
    rows = Rows(path, images, problems, allow_outside)
    for index, (row, line) in enumerate(lines):
        cells = line.split()
        if len(cells) != 2:
            problems.add(row, f"{len(cells)} columns; a line is the mos and the name of the picture")
            continue
        rows.add(
            row,
            cells[1],
            cells[0],
            stds[index] if stds else None,
            dataset=dataset or "TID2013",
            # Released files spell the same reference I25.BMP, i25.bmp and I25: one name keeps the group together.
            reference=Path(cells[1]).stem.split("_")[0].upper(),
            extra=distortion_of(cells[1]),
        )
    return rows.records


def read_spaq(
    path: Path, *, images: Path, dataset: str | None, problems: RowProblems, allow_outside: bool = False
) -> list[RatedImage]:
    """SPAQ `MOS and Image attribute scores.xlsx` (first sheet) or the same table as CSV: Image name, MOS, attributes.

    Raises:
        MissingRequirementError: openpyxl is not installed.
        DataError: not a spreadsheet, or one that unpacks to more than 512 MiB.
    """
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        header, body = _read_sheet(path)
    else:
        table = read_table(path, problems=problems)
        header, body = table.columns, iter(table.rows)
    at = find_columns(path, header, ["Image name", "MOS"])
    rest = [(name, index) for index, name in enumerate(header) if name and index not in at.values()]
    rows = Rows(path, images, problems, allow_outside)
    for row, cells in body:
        rows.add(
            row,
            cells[at["Image name"]],
            cells[at["MOS"]],
            dataset=dataset or "SPAQ",
            extra={name: str(cells[index]) for name, index in rest if cells[index] is not None},
            names=("MOS", "std"),
        )
    return rows.records


def _filled_lines(path: Path) -> list[tuple[int, str]]:
    return [(row, line) for row, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]


def _read_sheet(path: Path) -> tuple[list[str], Iterator[tuple[int, list]]]:
    try:
        import openpyxl
    except ImportError:
        raise MissingRequirementError(
            f"{path}: reading a spreadsheet needs openpyxl; run `pip install openpyxl` or save the sheet as CSV"
        ) from None
    read_bytes(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise DataError(f"{path}: unpacks to {unpacked} bytes; a label sheet may have {MAX_UNPACKED_BYTES}")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            sheet = book.worksheets[0]
            rows = [(row, list(cells)) for row, cells in enumerate(sheet.iter_rows(values_only=True), start=1)]
        finally:
            book.close()
    except DataError:
        raise
    # openpyxl passes on whatever its XML and ZIP layers raise on a file that only claims to be a spreadsheet.
    except Exception as error:
        raise DataError(f"{path}: not a spreadsheet (.xlsx): {error}; give the released file or a CSV") from error
    filled = [(row, cells) for row, cells in rows if any(cell is not None for cell in cells)]
    if len(filled) < 2:
        raise DataError(f"{path}: a header and no rows; it must hold at least one rated picture")
    header = [str(cell).strip() if cell is not None else "" for cell in filled[0][1]]
    width = len(header)
    return header, iter([(row, (cells + [None] * width)[:width]) for row, cells in filled[1:]])
