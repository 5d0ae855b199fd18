"""Evaluation of scores that are in a file already."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from thurl.data.records import RatedImage
from thurl.errors import DataError
from thurl.rl.decoding import QualityScore
from thurl.rl.evaluation import Grouping, summarise_scores
from thurl.rl.score_files import read_scores, settings_path


__all__ = ["evaluate_predictions"]


def evaluate_predictions(
    path: str | os.PathLike[str],
    records: Sequence[RatedImage],
    *,
    grouping: Grouping = "global",
    bootstrap: int = 1000,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """The result of `evaluate_model` for a score file.

    A picture is found by its path, by the file the path leads to, or by its name where that is unique on both sides.

    Args:
        path: CSV with the columns `image` and `score`, for example from `thurl score --csv`.
        records: rated pictures; scores of other pictures are left alone.
        grouping, bootstrap: as in `evaluate_scores`.
        allow_missing: count pictures without a prediction as failed.

    Raises:
        DataError: pictures without a prediction (the first 20 and the count), a picture with two, or a broken file.
    """
    rows = read_scores(path)
    match = _matcher([row.image for row in rows], [record.image for record in records])
    found = [match(record.image) for record in records]
    missing = [record.where for record, index in zip(records, found, strict=True) if index is None]
    if missing and not allow_missing:
        shown = "".join(f"\n  {name}" for name in missing[:20])
        more = f"\n  ... and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise DataError(
            f"{path} has no score for {len(missing)} of {len(records)} pictures:{shown}{more}\n"
            "Score them, or count them as failed with --allow-missing."
        )
    scores = []
    for index in found:
        if index is None:
            scores.append(QualityScore(math.nan, math.nan, "", False, error="no prediction"))
            continue
        row = rows[index]
        samples = (row.score,) * max(row.n_ok, int(row.ok)) + (math.nan,) * (row.n_samples - row.n_ok)
        scores.append(QualityScore(row.score, row.std, row.text, row.ok, row.error, samples))
    settings: dict[str, Any] = {"predictions": str(path)}
    sidecar = settings_path(path)
    if sidecar.is_file():
        settings |= json.loads(sidecar.read_text(encoding="utf-8")).get("settings") or {}
    return summarise_scores(scores, records, settings=settings, grouping=grouping, bootstrap=bootstrap)


def _matcher(predicted: Sequence[str], labelled: Sequence[str]) -> Callable[[str], int | None]:
    """A function from a labelled path to the index of its prediction: same path, same file, or same unique name."""
    by_path: dict[str, int] = {}
    by_name: dict[str, list[int]] = {}
    for index, path in enumerate(predicted):
        for key in {path, os.path.realpath(path)}:
            if key in by_path:
                raise DataError(f"{path} has two scores; remove one of the rows")
            by_path[key] = index
        by_name.setdefault(os.path.basename(path), []).append(index)
    names = [os.path.basename(path) for path in labelled]
    unique = {name for name, count in Counter(names).items() if count == 1}

    def match(path: str) -> int | None:
        for key in (path, os.path.realpath(path)):
            if key in by_path:
                return by_path[key]
        name = os.path.basename(path)
        candidates = by_name.get(name, [])
        return candidates[0] if len(candidates) == 1 and name in unique else None

    return match
