"""Files of an evaluation: `per_image.csv`, `summary.json`, `table.md`, and a contact sheet of lost identities."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from thurl.data.images import ImageError
from thurl.errors import DataError
from thurl.iqa.face_restoration.evaluation import FaceEvaluation, FaceRow
from thurl.iqa.face_restoration.pictures import read_picture
from thurl.iqa.face_restoration.settings import IDENTITY
from thurl.training.results import environment, plain, write_atomically


__all__ = ["FIXED_COLUMNS", "contact_sheet", "per_image_csv", "summary_table", "write_evaluation"]

FIXED_COLUMNS = ("dataset", "name", "id_threshold", "id_pass", "error")
"""Columns of `per_image.csv` that are no metrics."""

_DIGITS = 10
_TILE = 192
_LABEL = 28
_MOST = 40


def write_evaluation(evaluation: FaceEvaluation, folder: str | os.PathLike[str], **more: Any) -> None:
    """Write all files of an evaluation into a folder.

    Args:
        evaluation: the result.
        folder: made if it is not there.
        more: further entries of `summary.json`.
    """
    target = Path(folder)
    write_atomically(target / "per_image.csv", per_image_csv(evaluation))
    summary = plain({**evaluation.summary, **more, **environment()})
    write_atomically(
        target / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    write_atomically(target / "table.md", _markdown(summary_table(evaluation)))
    failed = [row for row in evaluation.rows if row.passes is False]
    sheet = target / "failures" / "contact_sheet.png"
    if failed:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(failed).save(sheet)
    else:
        sheet.unlink(missing_ok=True)  # of an earlier run


def per_image_csv(evaluation: FaceEvaluation) -> str:
    """One line per picture; ten significant digits, an empty cell where a value is undefined.

    Undefined is never written as 0, which for NIQE would look perfect. The text holds no paths and no times: equal
    inputs give equal bytes.
    """
    text = io.StringIO()
    names = list(evaluation.rows[0].values) if evaluation.rows else []
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "name", *names, "id_threshold", "id_pass", "error"])
    for row in evaluation.rows:
        passes = "" if row.passes is None else str(row.passes).lower()
        cells = [_cell(row.values[name]) for name in names]
        writer.writerow([row.dataset, row.name, *cells, _cell(row.threshold), passes, row.error])
    return text.getvalue()


def summary_table(evaluation: FaceEvaluation) -> list[list[str]]:
    """Rows of text, the headings first: a row per metric, a column per data set, one for all, one for score terms."""
    summary = evaluation.summary
    datasets, score, identity = summary["datasets"], summary["score"], summary["identity"]
    rows = [["metric", *datasets, "all", "term of score"]]
    rows.append(["pictures", *(str(entry["pictures"]) for entry in datasets.values()), str(summary["pictures"]), ""])
    for name, value in summary["overall"].items():
        means = [_short(entry["means"].get(name, math.nan)) for entry in datasets.values()]
        rows.append([name, *means, _short(value), _short(score["terms"][name]) if name in score["terms"] else ""])
    if identity["failures"] is not None:
        failures = [str(entry["identity_failures"]) for entry in datasets.values()]
        rows.append(["identity failures", *failures, str(identity["failures"]), ""])
    if score["terms"]:
        total = "-" if score["total"] is None else f"{_short(score['total'])}, {score['label']}"
        rows.append(["score", *("" for _ in datasets), "", total])
    return rows


def contact_sheet(rows: Sequence[FaceRow], most: int = _MOST) -> Image.Image:
    """Input and restoration side by side, the worst identities first.

    Args:
        rows: faces that fail; those farthest below their threshold come first.
        most: largest number of faces on the sheet.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("no face fails, so there is nothing to show")
    worst = sorted(rows, key=lambda row: (row.values[IDENTITY] - (row.threshold or 0.0), row.dataset, row.name))[:most]
    columns = min(4, len(worst))
    lines = math.ceil(len(worst) / columns)
    sheet = Image.new("RGB", (columns * 2 * _TILE, lines * (_TILE + _LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(worst):
        x, y = number % columns * 2 * _TILE, number // columns * (_TILE + _LABEL)
        for offset, path in ((0, row.lq), (_TILE, row.restored)):
            if path is not None:
                try:
                    picture = Image.fromarray(read_picture(path).pixels)
                except ImageError:
                    continue  # gone since it was scored: the tile stays white
                sheet.paste(picture.resize((_TILE, _TILE), Image.Resampling.BILINEAR), (x + offset, y))
        label = f"{row.dataset}/{row.name}: {row.values[IDENTITY]:.3f} < {row.threshold:g}"
        draw.text((x + 4, y + _TILE + 6), label.encode("ascii", "replace").decode(), fill="black")
    return sheet


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{_DIGITS}g}"


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    return "\n".join(lines) + "\n"
