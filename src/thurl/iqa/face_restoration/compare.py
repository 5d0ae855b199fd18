"""Two evaluations of the same pictures: paired differences with bootstrap intervals."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thurl.errors import DataError
from thurl.iqa.face_restoration.protocol import NTIRE2025


__all__ = ["Difference", "Run", "compare_runs", "read_run"]

_NO_METRICS = ("dataset", "name", "id_threshold", "id_pass", "error")


@dataclass(frozen=True)
class Run:
    """A finished evaluation, read from its folder.

    Attributes:
        folder: where it lies.
        keys: (data set, name) of each picture.
        values: metric name to (N,) float64, NaN where undefined.
        summary: content of `summary.json`.
    """

    folder: str
    keys: tuple[tuple[str, str], ...]
    values: Mapping[str, NDArray[np.float64]]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """Difference of two runs in one metric, B minus A, over the pictures that both have.

    Attributes:
        metric: name.
        pictures: number of pairs with a value in both runs.
        a, b: means over the pairs.
        difference: b - a.
        low, high: bootstrap interval of the difference.
        better: "a", "b", or "" where the interval holds 0 or nothing can be said.
    """

    metric: str
    pictures: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    better: str


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read `per_image.csv` and `summary.json` of an evaluation.

    Raises:
        DataError: not a folder of an evaluation.
    """
    place = Path(folder)
    try:
        summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
        with open(place / "per_image.csv", newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
        if not isinstance(summary, dict) or not {"dataset", "name"} <= set(columns):
            raise ValueError("the columns `dataset` and `name` are missing")
        names = [name for name in columns if name not in _NO_METRICS]
        values = {name: np.array([float(row[name]) if row[name] else math.nan for row in rows]) for name in names}
    except FileNotFoundError as error:
        raise DataError(f"{place}: {Path(error.filename).name} is not there; give the --out folder of a run") from None
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(f"{place}: not the folder of an evaluation: {error}") from None
    return Run(os.fspath(folder), tuple((row["dataset"], row["name"]) for row in rows), values, summary)


def compare_runs(
    a: Run, b: Run, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[list[Difference], list[str]]:
    """Paired bootstrap: pictures are drawn again inside each data set, the same in both runs.

    Means are taken as the protocol takes them: with its fixed weights where both runs are of ntire2025, else over all
    pairs. FID and other numbers of a whole set have no pairs and are left out.

    Args:
        a, b: two runs.
        resamples: number of resamples.
        level: probability of the intervals, in (0, 1).
        seed: of the draws.

    Returns:
        one line per metric that both runs have, and warnings.

    Raises:
        DataError: no picture or no metric in common.
    """
    if resamples < 100 or not 0 < level < 1:
        raise DataError(f"resamples={resamples}, level={level}: at least 100 resamples, a level between 0 and 1")
    place_a, place_b = ({key: i for i, key in enumerate(run.keys)} for run in (a, b))
    common = [key for key in a.keys if key in place_b]
    names = [name for name in a.values if name in b.values]
    if not common or not names:
        what = "picture" if not common else "metric"
        raise DataError(f"{a.folder} and {b.folder} have no {what} in common: compare runs of the same set")
    warnings = []
    if lost := len(a.keys) + len(b.keys) - 2 * len(common):
        warnings.append(f"{lost} pictures are in one run only and are left out")
    official = all(run.summary.get("protocol") == "ntire2025" for run in (a, b))
    fixed = {name: face.images for name, face in NTIRE2025.items()} if official else None
    take_a, take_b = ([place[key] for key in common] for place in (place_a, place_b))
    sets = np.array([dataset for dataset, _ in common])
    lines = []
    for name in names:
        other = [run.summary.get("metrics", {}).get(name, {}).get("fingerprint") for run in (a, b)]
        if other[0] != other[1]:
            warnings.append(f"{name}: the runs were computed with different weights or settings")
        x, y = a.values[name][take_a], b.values[name][take_b]
        finite = np.isfinite(x) & np.isfinite(y)
        if dropped := int((~finite).sum()):
            warnings.append(f"{name}: {dropped} pairs without a finite value on both sides are left out")
        if not finite.any():
            continue
        lines.append(
            _difference(
                name, x[finite], y[finite], sets[finite], fixed, _direction(a, b, name), resamples, level, seed
            )
        )
    return lines, warnings


def _difference(
    name: str,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    sets: NDArray[np.str_],
    fixed: Mapping[str, float] | None,
    lower: bool | None,
    resamples: int,
    level: float,
    seed: int,
) -> Difference:
    rng = np.random.default_rng(seed)  # the same draws for every metric
    groups = sorted(set(sets.tolist()))
    weights = np.array([float(fixed[g]) if fixed and g in fixed else float((sets == g).sum()) for g in groups])
    weights /= weights.sum()
    means, drawn = np.zeros(2), np.zeros(resamples)
    for weight, group in zip(weights, groups, strict=True):
        part = np.flatnonzero(sets == group)
        means += weight * np.array([x[part].mean(), y[part].mean()])
        picks = rng.integers(0, len(part), (resamples, len(part)))
        drawn += weight * (y - x)[part][picks].mean(axis=1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    better = ""
    if lower is not None and (low > 0 or high < 0):
        better = "b" if (low > 0) != lower else "a"
    return Difference(
        name, len(x), float(means[0]), float(means[1]), float(means[1] - means[0]), float(low), float(high), better
    )


def _direction(a: Run, b: Run, name: str) -> bool | None:
    """Whether lower is better; None when the runs do not say so."""
    found: Sequence[Any] = [run.summary.get("metrics", {}).get(name, {}).get("lower_is_better") for run in (a, b)]
    return found[0] if isinstance(found[0], bool) and found[0] == found[1] else None
