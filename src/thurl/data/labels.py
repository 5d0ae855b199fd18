"""Label files of picture-quality data sets, read into `RatedImage`.

Imports no torch and opens no picture: `thurl.data.sources` looks for the pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thurl.data.formats.plain import read_csv
from thurl.data.records import RatedImage, RowProblems, check_rated_images, nearest_name
from thurl.errors import DataError, UsageError


__all__ = ["LABEL_FORMATS", "LabelFormat", "RatedImage", "read_labels"]


@dataclass(frozen=True)
class LabelFormat:
    """How one kind of label file is read.

    Args:
        name: what `format` is called in a recipe.
        layout: the layout in one line.
        reader: `(path, *, images, dataset, problems, allow_outside, **options) -> list[RatedImage]`.
        dataset: name of the data set when the caller gives none; `None`: see the reader.
    """

    name: str
    layout: str
    reader: Callable[..., list[RatedImage]]
    dataset: str | None = None


LABEL_FORMATS: dict[str, LabelFormat] = {
    item.name: item
    for item in (LabelFormat("csv", "CSV with a header: image,mos[,std][,dataset][,reference][,...]", read_csv),)
}


def read_labels(
    path: str | os.PathLike[str],
    *,
    format: str,
    images: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    allow_outside: bool = False,
    **options: Any,
) -> list[RatedImage]:
    """Rated pictures of a label file, in file order.

    Args:
        path: label file.
        format: a name of `LABEL_FORMATS`.
        images: folder the picture names are relative to; the folder of the label file when `None`.
        dataset: name of the data set; when `None` the format's own name, or the file name without its ending.
        allow_outside: accept absolute picture paths and paths that climb out of `images`.
        options: further arguments of the format's reader, for example `columns` for `csv`.

    Raises:
        UsageError: unknown format or option.
        MissingRequirementError: the label file does not exist.
        DataError: the file cannot be used; lists the first 20 bad rows and counts all.
    """
    if format not in LABEL_FORMATS:
        near = nearest_name(format, LABEL_FORMATS)
        raise UsageError(
            f"label format {format!r} does not exist"
            + (f"; nearest: {near!r}" if near else "")
            + f". Formats: {', '.join(LABEL_FORMATS)}."
        )
    chosen = LABEL_FORMATS[format]
    path = Path(path)
    problems = RowProblems(str(path))
    try:
        records = chosen.reader(
            path,
            images=Path(images) if images is not None else path.parent,
            dataset=dataset or chosen.dataset,
            problems=problems,
            allow_outside=allow_outside,
            **options,
        )
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UsageError(f"format {format!r}: {error}") from None
    check_rated_images(records, problems)
    problems.raise_if_any()
    if not records:
        raise DataError(f"{path}: no rated picture in it; it must hold at least one")
    return records
