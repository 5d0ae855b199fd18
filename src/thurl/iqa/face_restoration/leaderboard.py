"""A table of entries: the score is computed again from the six metrics, and entries are ranked by the rules.

The report's table could not be read when this was written, so no numbers are shipped: `TEMPLATE` is the header to
fill."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass

from thurl.errors import DataError
from thurl.iqa.face_restoration.protocol import MAX_FAILURES, TERMS, weighted_score


__all__ = ["COLUMNS", "TEMPLATE", "TOLERANCE", "Entry", "read_leaderboard"]

COLUMNS = ("team", *TERMS, "failed_ids", "score")
TEMPLATE = ",".join(COLUMNS) + "\n"

TOLERANCE = 0.005
"""Largest difference between a reported and a computed score that is not flagged."""


@dataclass(frozen=True)
class Entry:
    """One team.

    Attributes:
        team: name.
        computed: score from the metrics; NaN when none is given.
        label: "6 of 6", or "partial (k of 6)".
        reported: score in the file, NaN where the cell is empty.
        difference: computed - reported, NaN where one is not there.
        flagged: the difference is larger than the tolerance.
        failed_ids: faces that fail the identity check, None where the cell is empty.
        valid: whether the identity rule holds, None where it is not known.
        rank: place among valid entries with all six terms, by computed score; None for the others.
    """

    team: str
    computed: float
    label: str
    reported: float
    difference: float
    flagged: bool
    failed_ids: int | None
    valid: bool | None
    rank: int | None


def read_leaderboard(path: str | os.PathLike[str], *, tolerance: float = TOLERANCE) -> list[Entry]:
    """Read a table and compute its scores.

    Args:
        path: CSV with the columns of `COLUMNS`; an empty cell is an unknown value. Terms may be missing as columns.
        tolerance: differences above it are flagged.

    Returns:
        entries: ranked ones first, then the others, by computed score.

    Raises:
        DataError: no such file, columns missing, cells that are no numbers, a team that occurs twice; all together.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; --template writes an empty one") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file: {error}") from None
    problems = []
    if "team" not in columns or not set(TERMS) & set(columns):
        problems.append(
            f"the columns are {', '.join(columns) or 'none'}: `team` and some of {', '.join(TERMS)} needed"
        )
    if unknown := [name for name in columns if name not in COLUMNS]:
        problems.append(f"unknown columns {', '.join(unknown)}; known ones are {', '.join(COLUMNS)}")
    teams: set[str] = set()
    entries = []
    for number, row in enumerate(rows, start=2):
        team = (row.get("team") or "").strip()
        if not team:
            problems.append(f"line {number}: no team")
        elif team in teams:
            problems.append(f"line {number}: team {team!r} occurs twice")
        teams.add(team)
        numbers: dict[str, float] = {}
        for name in (name for name in COLUMNS[1:] if (row.get(name) or "").strip()):
            try:
                numbers[name] = float(row[name])
                if not math.isfinite(numbers[name]):
                    raise ValueError
            except ValueError:
                problems.append(f"line {number} ({team}): {name}={row[name]!r} is no finite number")
        failed = numbers.get("failed_ids")
        if failed is not None and (failed < 0 or failed != int(failed)):
            problems.append(f"line {number} ({team}): failed_ids={row['failed_ids']!r} is no count")
            failed = None
        entries.append(_entry(team, numbers, None if failed is None else int(failed), tolerance))
    if problems:
        raise DataError("\n".join(f"{path}: {problem}" for problem in problems))
    return _ranked(entries)


def _entry(team: str, numbers: dict[str, float], failed: int | None, tolerance: float) -> Entry:
    score = weighted_score({name: numbers[name] for name in TERMS if name in numbers})
    reported = numbers.get("score", math.nan)
    difference = score.total - reported
    # Beyond the tolerance by more than the rounding of the decimal number in the file.
    flagged = abs(difference) > tolerance + 1e-9
    valid = None if failed is None else failed <= MAX_FAILURES
    return Entry(team, score.total, score.label, reported, difference, flagged, failed, valid, None)


def _ranked(entries: list[Entry]) -> list[Entry]:
    def order(entry: Entry) -> float:
        return math.inf if math.isnan(entry.computed) else -entry.computed

    can_rank = sorted((e for e in entries if e.valid and e.label == f"{len(TERMS)} of {len(TERMS)}"), key=order)
    ranked = [
        # Equal scores share a place.
        Entry(**{**vars(e), "rank": 1 + sum(other.computed > e.computed for other in can_rank)})
        for e in can_rank
    ]
    return ranked + sorted((e for e in entries if e not in can_rank), key=order)
