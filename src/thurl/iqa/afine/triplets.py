"""Triplets of A-FINE: two images, their reference, and who is better; the released CSV files and their types.

Paper: arXiv 2503.11221. A row of a training file is `x1,x2,ref,g12,g1r,g2r` without a header, one of an evaluation
file `x1,x2,ref,g12`; `g` is 1 where the first is better, 0.5 where both are equal, 0 where it is worse.
Imports no torch and opens no picture.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from thurl.data.formats.tables import image_path, read_text
from thurl.data.records import RowProblems
from thurl.errors import DataError, UsageError
from thurl.training.results import write_atomically


__all__ = [
    "LAYOUTS",
    "REFERENCE_ABOVE",
    "REFERENCE_BELOW",
    "Triplet",
    "compare",
    "diffiqa_path",
    "read_triplets",
    "shuffle_labels",
    "triplet_type",
    "write_triplets",
]

LAYOUTS = ("plain", "diffiqa")
"""How a name becomes a path: below the folder as it stands, or by the folders of DiffIQA."""

REFERENCE_BELOW = ("PSY", "PNY", "PYY")
"""Types whose better image is above the reference: "Ref < Test" in the paper's table."""

REFERENCE_ABOVE = ("SNY", "NYY")
"""Types whose better image is as good as the reference: "Ref > Test" in the paper's table."""

_ORDER = "PSNY"  # a type names the better image first; Y, the reference itself, stands last


@dataclass(frozen=True)
class Triplet:
    """Two images of one scene and what people said of them.

    Args:
        first, second: paths; `second` (and with MOS pairs `first`) may be the reference itself.
        reference: path.
        g12: 1 where `first` is better than `second`, 0.5 equal, 0 worse.
        g1r, g2r: the same of `first` and `second` against the reference; NaN where the file does not say.
        type: of DiffIQA (`PSY`, ...), or any name a result is wanted for; may be empty.
        scene: what the intervals resample, the reference's name by default.
        dataset: name.
    """

    first: str
    second: str
    reference: str
    g12: float
    g1r: float = math.nan
    g2r: float = math.nan
    type: str = ""
    scene: str = ""
    dataset: str = ""

    def __post_init__(self) -> None:
        for name, value, known in (("g12", self.g12, True), ("g1r", self.g1r, False), ("g2r", self.g2r, False)):
            if value not in (0.0, 0.5, 1.0) and (known or not math.isnan(value)):
                raise DataError(f"{self.first}, {self.second}: {name} is {value}; it must be 0, 0.5 or 1")
        if not self.scene:
            object.__setattr__(self, "scene", Path(self.reference).stem)

    @property
    def images(self) -> tuple[str, str, str]:
        """Paths of `first`, `second` and `reference`."""
        return self.first, self.second, self.reference


def compare(a: float, b: float) -> float:
    """The label `g` of two scores of which more is better: 1, 0.5 on an exact tie, 0. Infinities of one sign tie."""
    return 0.5 if a == b else float(a > b)


def triplet_type(first: str, second: str) -> str:
    """DiffIQA's name of a pair from the labels of its images: `PSY` for Positive and Similar in either order.

    Args:
        first, second: `Positive`, `Similar`, `Negative`, or `Y` for the reference itself.
    """
    return "".join(sorted(first[0] + second[0], key=_ORDER.index)) + "Y"


def diffiqa_path(name: str) -> str:
    """Path below DiffIQA's `images`: the part after the last `_` of the stem is the folder, `Original` without one."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem = base.rpartition(".")[0] or base
    head, underscore, tail = stem.rpartition("_")
    return f"{tail if underscore and head else 'Original'}/{base}"


def read_triplets(
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    layout: str = "plain",
    dataset: str | None = None,
    type: str = "",
    complete: bool = False,
    allow_outside: bool = False,
) -> list[Triplet]:
    """Triplets of a file, in file order; lines that cannot be used are an error that names them.

    Args:
        path: file with lines of four or six cells, see the top of this module.
        images: folder the names are relative to; that of the file when `None`.
        layout: of `LAYOUTS`.
        dataset: name; the file's when `None`.
        type: of all triplets. Empty: the file's name where it ends in a type of DiffIQA (`test_PSY.csv`), else none.
        complete: refuse lines of four cells, as the first stage needs all labels.
        allow_outside: see `thurl.data.formats.tables.image_path`.

    Raises:
        UsageError: unknown layout.
        MissingRequirementError: no such file.
        DataError: lines with another number of cells, a label that is not 0, 0.5 or 1, an empty or escaping name;
            the first 20 and the count.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    path = Path(path)
    root = Path(images) if images is not None else path.parent
    type = type or _type_in(path.stem)
    problems = RowProblems(str(path))
    found: list[Triplet] = []
    for row, line in enumerate(csv.reader(io.StringIO(read_text(path))), start=1):
        cells = [cell.strip() for cell in line]
        if not any(cells):
            continue
        if len(cells) not in ((6,) if complete else (4, 6)):
            wanted = "x1,x2,ref,g12,g1r,g2r" if complete else "x1,x2,ref,g12[,g1r,g2r]"
            problems.add(row, f"{len(cells)} cells; a line is {wanted}")
            continue
        before = len(problems.problems)
        paths = []
        for name in cells[:3]:
            try:
                inside = diffiqa_path(name) if layout == "diffiqa" else name
                paths.append(image_path(root, inside if name else "", allow_outside=allow_outside))
            except DataError as error:
                problems.add(row, str(error))
        names = ("g12", "g1r", "g2r")[: len(cells) - 3]
        labels = [_label(row, name, cell, problems) for name, cell in zip(names, cells[3:], strict=True)]
        if len(problems.problems) == before:
            g12, g1r, g2r = [*labels, math.nan, math.nan][:3]
            found.append(Triplet(paths[0], paths[1], paths[2], g12, g1r, g2r, type, "", dataset or path.stem))
    problems.raise_if_any()
    if not found:
        raise DataError(f"{path}: no triplet in it; it must hold at least one")
    return found


def write_triplets(
    path: str | os.PathLike[str], triplets: Iterable[Triplet], *, images: str | os.PathLike[str]
) -> None:
    """Write a training file, names relative to `images`. NaN labels are an error, since the format has no word for it.

    Raises:
        DataError: a triplet without all three labels.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for triplet in triplets:
        labels = (triplet.g12, triplet.g1r, triplet.g2r)
        if any(math.isnan(value) for value in labels):
            raise DataError(f"{triplet.first}, {triplet.second}: labels {labels}; a training file needs all three")
        names = (Path(os.path.relpath(name, images)).as_posix() for name in triplet.images)
        writer.writerow([*names, *(f"{value:g}" for value in labels)])
    write_atomically(path, text.getvalue())


def shuffle_labels(triplets: Sequence[Triplet], seed: int = 0) -> list[Triplet]:
    """The same triplets with each of the three labels turned round or not by a fair coin: nothing is left to learn.

    Turning a label round keeps the share of ties, and no order of the images can be learnt from labels that do not
    depend on them.
    """
    import numpy as np

    turns = np.random.default_rng(seed).integers(0, 2, size=(len(triplets), 3)).astype(bool)
    return [
        dataclasses.replace(
            triplet,
            g12=1 - triplet.g12 if turn[0] else triplet.g12,
            g1r=1 - triplet.g1r if turn[1] else triplet.g1r,
            g2r=1 - triplet.g2r if turn[2] else triplet.g2r,
        )
        for triplet, turn in zip(triplets, turns, strict=True)
    ]


def _label(row: int, name: str, cell: str, problems: RowProblems) -> float:
    value = problems.number(row, name, cell)
    if value is not None and value not in (0.0, 0.5, 1.0):
        problems.add(row, f"{name} is {cell}; it must be 0, 0.5 or 1")
    return math.nan if value is None else value


def _type_in(stem: str) -> str:
    last = stem.replace("-", "_").rpartition("_")[2].upper()
    return last if len(last) == 3 and last.endswith("Y") and set(last) <= set(_ORDER) else ""
