"""The one record type every label format is read into, and the checks all formats share.

Nothing here imports torch or opens a picture, so labels can be validated in a fraction of a second.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from thurl.errors import DataError


__all__ = ["RatedImage", "RowProblems", "check_rated_images", "listed", "parse_number"]

# How many bad rows an error message lists; the rest is counted.
SHOWN = 20

# ASCII digits only: float() would also take "1_000", "nan", "infinity" and non-Latin digits.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")


@dataclass(frozen=True)
class RatedImage:
    """One picture and what people thought of it.

    Args:
        image: path of the picture, or a reference that `thurl.data.images.open_image` understands.
        mos: mean opinion score on the scale of its own data set, finite. Larger is better.
        std: standard deviation of the single opinions, 0 or more, on the scale the label file gives it in
            (for SPAQ's shipped file that is not the scale of `mos`); `None` when the file has none.
        dataset: name of the data set. Only pictures of one data set are ever compared.
        reference: name of the pristine picture it was made from, `None` when there is none.
        row: row in `source`, counted from 1 the way an editor or a spreadsheet counts (a header is row 1).
        source: label file the row comes from.
        extra: further columns, as text (for example `kind` and `level` of a degradation).

    Raises:
        DataError: `mos` is not finite, or `std` is negative or not finite.
    """

    image: str
    mos: float
    std: float | None = None
    dataset: str = ""
    reference: str | None = None
    row: int = 0
    source: str = ""
    extra: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.mos):
            raise DataError(f"{self.where}: mos is {self.mos}; it must be a finite number")
        if self.std is not None and not (math.isfinite(self.std) and self.std >= 0):
            raise DataError(f"{self.where}: std is {self.std}; it must be a finite number of 0 or more")

    @property
    def where(self) -> str:
        """Picture and origin in words, for messages."""
        return f"{self.image} ({self.source} row {self.row})" if self.source else self.image


class RowProblems:
    """Collects what is wrong with the rows of one label file and raises all of it at once.

    Args:
        source: name of the label file, for the message.
        fix: closing sentence that says what to do.

    Attributes:
        file: the file being read, set by formats that read several; empty otherwise.
    """

    def __init__(self, source: str, fix: str = "Correct or remove these rows."):
        self.source = source
        self.fix = fix
        self.file = ""
        self.problems: list[tuple[str, int, str]] = []

    def add(self, row: int, message: str) -> None:
        """Note that `row` (counted from 1) of the file `self.file` breaks a rule."""
        self.problems.append((self.file, row, message))

    def number(self, row: int, name: str, value: object, *, minimum: float | None = None) -> float | None:
        """The number in a cell; notes a problem and returns `None` when it is not a usable one."""
        try:
            return parse_number(value, name, minimum=minimum)
        except DataError as error:
            self.add(row, str(error))
            return None

    def raise_if_any(self) -> None:
        """Raises DataError with the first 20 problems and the count of all of them."""
        if not self.problems:
            return
        problems = sorted(self.problems)
        bad_rows = len({(file, row) for file, row, _ in problems})
        lines = [f"{self.source}: {bad_rows} row{'s' if bad_rows != 1 else ''} cannot be used"]
        lines.append(listed([f"{file} row {row}: {text}".removeprefix(" ") for file, row, text in problems]))
        lines.append(self.fix)
        raise DataError("\n".join(lines))


def listed(lines: Sequence[str]) -> str:
    """The first 20 lines of a message, indented, and the count of the others."""
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"  {line}" for line in lines[:SHOWN]] + more)


def parse_number(value: object, name: str, *, minimum: float | None = None) -> float:
    """A finite float from a cell of a table.

    Args:
        value: text or number.
        name: column name, for the message.
        minimum: smallest allowed value.

    Raises:
        DataError: missing, not a number in ASCII digits with a decimal point, NaN, infinite, or below `minimum`.
    """
    if isinstance(value, bool) or value is None or (isinstance(value, str) and not value.strip()):
        shown = "empty" if not isinstance(value, bool) else repr(value)
        raise DataError(f"{name} is {shown}; it must be a finite number")
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            hint = f" (decimal comma: write {text.replace(',', '.')})" if _DECIMAL_COMMA.fullmatch(text) else ""
            raise DataError(f"{name} is {_short(text)}; it must be a finite number{hint}")
        number = float(text)
    else:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{name} is {_short(value)}; it must be a finite number") from None
    if not math.isfinite(number):
        raise DataError(f"{name} is {value}; it must be a finite number")
    if minimum is not None and number < minimum:
        raise DataError(f"{name} is {number:g}; it must be {minimum:g} or more")
    return number


def check_rated_images(records: Sequence[RatedImage], problems: RowProblems) -> None:
    """Notes pictures that are rated twice in one data set: such a picture would be compared with itself."""
    first: dict[tuple[str, str], RatedImage] = {}
    several = len({record.source for record in records}) > 1
    for record in records:
        key = (record.dataset, record.image)
        if key in first:
            problems.file = os.path.basename(record.source) if several else ""
            where = first[key].where if several else f"row {first[key].row}"
            problems.add(record.row, f"{record.image} is already rated in {where}; a picture may have one row only")
        else:
            first[key] = record


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
