"""How hard the sequence found for one learner is for the others: from sequence files to a table, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thurl.errors import DataError, UsageError
from thurl.training.page import number
from thurl.training.results import plain, write_atomically


__all__ = ["check_transfer_file", "owners_of", "transfer_table", "write_transfer"]

Matrix = Mapping[str, Mapping[str, float]]


def owners_of(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The learner each sequence was found for, as its configuration, by its name.

    Args:
        documents: sequence files by the names of the files.

    Raises:
        DataError: files of the joint mode, two of one learner, or of different pools or encoders; all of them.
    """
    problems, owners = [], {}
    first = next(iter(documents.values()))
    for file, document in documents.items():
        learners = document["learners"]
        if document["mode"] != "individual" or len(learners) != 1:
            problems.append(f"{file}: found for {len(learners)} learners; search with one --learner each")
            continue
        name = learners[0]["name"]
        if name in owners:
            problems.append(f"{file}: there is another sequence for {name}; give one for each learner")
        owners[name] = dict(learners[0])
        for key in ("pool_hash", "encoder"):
            if document.get(key) != first.get(key):
                problems.append(f"{file}: another {key.replace('_', ' ')} than in the first file; search with one")
    if len(documents) < 2:
        problems.append("there is one sequence; give two or more, found for different learners")
    if problems:
        raise DataError("\n".join(problems))
    return owners


def transfer_table(matrix: Matrix) -> list[list[str]]:
    """Rows of text, the first as headings: a sequence per row, a learner per column."""
    names = list(next(iter(matrix.values())))
    rows = [["sequence found for", *names]]
    return rows + [[owner, *(number(row[name]) for name in names)] for owner, row in matrix.items()]


def write_transfer(path: Path, matrix: Matrix, agreement: Mapping[str, float], more: Mapping[str, Any]) -> None:
    """Write a matrix with all digits; undefined numbers are empty in CSV and null in JSON.

    Args:
        path: `.csv`, a row per sequence and a column per learner, or `.json` with `transfer`, `agreement` and `more`.
        matrix: of `thurl.continual.replay.transfer_matrix`.
        agreement: of `thurl.continual.replay.agreements`.
        more: further entries of the JSON file.

    Raises:
        UsageError: another ending.
    """
    check_transfer_file(path)
    if path.suffix == ".json":
        document = plain({**more, "transfer": matrix, "agreement": agreement})
        write_atomically(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names: Sequence[str] = list(next(iter(matrix.values())))
    writer.writerow(["sequence", *names])
    for owner, row in matrix.items():
        writer.writerow([owner, *(row[name] if math.isfinite(row[name]) else "" for name in names)])
    write_atomically(path, text.getvalue())


def check_transfer_file(path: Path) -> None:
    """Whether the ending is one of those `write_transfer` knows.

    Raises:
        UsageError: it is not.
    """
    if path.suffix not in (".csv", ".json"):
        raise UsageError(f"{path}: the name must end in .csv or .json")
