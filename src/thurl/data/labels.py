"""Label files of picture-quality data sets, read into `RatedImage`.

Imports no torch and opens no picture: `thurl.data.sources` looks for the pictures.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thurl.data.formats.by_reference import read_by_reference
from thurl.data.formats.clive import read_clive
from thurl.data.formats.official import COLUMNS, read_jsonl, read_official, read_text_columns
from thurl.data.formats.plain import read_csv
from thurl.data.formats.releases import read_agiqa, read_kadid, read_koniq, read_spaq, read_tid2013
from thurl.data.records import RatedImage, RowProblems, check_rated_images
from thurl.errors import DataError, UsageError
from thurl.messages import closest


__all__ = ["LABEL_FORMATS", "LabelFormat", "RatedImage", "read_labels"]


@dataclass(frozen=True)
class LabelFormat:
    """How one kind of label file is read.

    Args:
        name: what `format` is called in a recipe.
        layout: the layout in one line.
        reader: `(path, *, images, dataset, problems, allow_outside, **options) -> list[RatedImage]`.
        folders: folders of the release below `images` where its pictures may lie.
        is_file: whether `path` is a file or folder on this machine, so that its absence can be told at once.
    """

    name: str
    layout: str
    reader: Callable[..., list[RatedImage]]
    folders: tuple[str, ...] = ()
    is_file: bool = True

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the reader's further arguments."""
        standard = {"path", "images", "dataset", "problems", "allow_outside"}
        fixed = self.reader.keywords if isinstance(self.reader, functools.partial) else {}
        return tuple(
            name
            for name, parameter in inspect.signature(self.reader).parameters.items()
            if name not in standard | set(fixed) and parameter.kind is parameter.KEYWORD_ONLY
        )


def _read_hub(
    *args: Any,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    **kwargs: Any,
) -> list[RatedImage]:
    # Imported here: `datasets` and Pillow are not needed to read a text file.
    from thurl.data.formats.hub import read_hub

    return read_hub(*args, columns=columns, split=split, name=name, revision=revision, **kwargs)


_BY_COLUMNS = tuple(
    LabelFormat(
        columns,
        f"space-separated text without a header: {' '.join(names)}",
        functools.partial(read_text_columns, columns=columns),
    )
    for columns, names in COLUMNS.items()
)

LABEL_FORMATS: dict[str, LabelFormat] = {
    item.name: item
    for item in (
        LabelFormat("csv", "CSV with a header: image,mos[,std][,dataset][,reference][,...]", read_csv),
        LabelFormat("jsonl", "official training JSONL, several files joined by ':'", read_jsonl, is_file=False),
        LabelFormat("official", "official space-separated text, columns by data set", read_official),
        *_BY_COLUMNS,
        LabelFormat("kadid", "KADID-10k dmos.csv", read_kadid, ("images",)),
        LabelFormat("koniq", "KonIQ-10k scores and distributions csv", read_koniq, ("1024x768", "512x384")),
        LabelFormat("tid2013", "TID2013 mos_with_names.txt", read_tid2013, ("distorted_images",)),
        LabelFormat("spaq", "SPAQ 'MOS and Image attribute scores.xlsx' or csv", read_spaq, ("TestImage",)),
        LabelFormat(
            "clive",
            "LIVE Challenge AllMOS_release.mat, its folder, or csv",
            read_clive,
            ("Images", "Images/trainingImages", "trainingImages"),
        ),
        LabelFormat("agiqa", "AGIQA-3K data.csv", read_agiqa),
        LabelFormat("by_reference", "folder of <reference>.txt: image[,reference],mos[,variance]", read_by_reference),
        LabelFormat("hub", "Hub data set or save_to_disk folder", _read_hub, is_file=False),
    )
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
        options: further arguments of the format's reader (`LABEL_FORMATS[format].options`), for example `columns` for
            `csv` and `hub`, `var_is` for `kadid`, `mos_column` for `koniq`, `score` for `agiqa`.

    Raises:
        UsageError: unknown format or option.
        MissingRequirementError: the label file does not exist.
        DataError: the file cannot be used; lists the first 20 bad rows and counts all.
    """
    if format not in LABEL_FORMATS:
        near = closest(format, LABEL_FORMATS)
        raise UsageError(
            f"label format {format!r} does not exist"
            + (f"; nearest: {near!r}" if near else "")
            + f". Formats: {', '.join(LABEL_FORMATS)}."
        )
    chosen = LABEL_FORMATS[format]
    path = Path(path)
    problems = RowProblems(str(path))
    unknown = [name for name in options if name not in chosen.options]
    if unknown:
        raise UsageError(
            f"format {format!r} has no option {', '.join(map(repr, unknown))}; "
            f"options: {', '.join(chosen.options) or 'none'}"
        )
    records = chosen.reader(
        path,
        images=Path(images) if images is not None else path.parent,
        dataset=dataset,
        problems=problems,
        allow_outside=allow_outside,
        **options,
    )
    check_rated_images(records, problems)
    problems.raise_if_any()
    if not records:
        raise DataError(f"{path}: no rated picture in it; it must hold at least one")
    return records
