"""One text file of ratings per reference: the MOS files of A-FINE (arXiv 2503.11221), of SRIQA-Bench and of PIPAL.

| cells | who |
|---|---|
| `dis,ref,mos` | TID2013 and PIPAL as A-FINE ships them |
| `dis,ref,mos,variance` | KADID-10k as A-FINE ships it |
| `file,score` or `file score` | SRIQA-Bench (`MOS`, `MOS_Reg`, `MOS_Gen`), and PIPAL's own release |

Higher is better in all of them. Without a column for it, the reference is the name of the file.
"""

from __future__ import annotations

import math
from pathlib import Path

from thurl.data.formats.tables import Rows, distortion_of, read_text
from thurl.data.records import RatedImage, RowProblems
from thurl.errors import DataError, MissingRequirementError


__all__ = ["read_by_reference"]


def read_by_reference(
    path: Path, *, images: Path, dataset: str | None, problems: RowProblems, allow_outside: bool = False
) -> list[RatedImage]:
    """Rated pictures of all `<reference>.txt` files in a folder, files by name and lines in their order.

    A row whose picture is the reference itself (SRIQA-Bench rates it, too) is a rated picture like any other.

    Raises:
        MissingRequirementError: no such folder.
        DataError: no text file in it.
    """
    if not path.is_dir():
        raise MissingRequirementError(f"label folder {path} does not exist; give the folder of <reference>.txt files")
    files = sorted(path.glob("*.txt"))
    if not files:
        raise DataError(f"{path}: no .txt file in it; each reference has one")
    rows = Rows(path, images, problems, allow_outside)
    for file in files:
        problems.file, rows.source = file.name, file
        try:
            lines = read_text(file).split("\n")
        except DataError as error:
            problems.add(1, str(error))
            continue
        for row, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            cells = [cell.strip() for cell in line.split(",")] if "," in line else line.split()
            if len(cells) not in (2, 3, 4):
                problems.add(row, f"{len(cells)} cells; a line is `image,mos` or `image,reference,mos[,variance]`")
                continue
            reference = file.stem if len(cells) == 2 else cells[1]
            std: float | None = None
            if len(cells) == 4:
                variance = problems.number(row, "variance", cells[3], minimum=0.0)
                std = None if variance is None else math.sqrt(variance)
            mos = cells[1] if len(cells) == 2 else cells[2]
            rows.add(
                row,
                cells[0],
                mos,
                std,
                dataset=dataset or path.name,
                reference=reference,
                extra=distortion_of(cells[0]),
            )
    problems.file = ""
    return rows.records
