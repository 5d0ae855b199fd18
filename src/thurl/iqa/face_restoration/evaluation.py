"""Evaluation of a folder of restored faces: choose metrics, run them, apply the protocol, report.

What the official script does differently is listed in docs/face_restoration.md. Nothing undefined becomes a number: an
empty cell, a null, and a reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thurl.errors import DataError, ThurlError
from thurl.iqa.face_restoration.cache import ResultCache
from thurl.iqa.face_restoration.discovery import FaceSets, find_faces
from thurl.iqa.face_restoration.interface import SetMetric, SetResult, metric_class
from thurl.iqa.face_restoration.landmarks import read_landmarks
from thurl.iqa.face_restoration.protocol import (
    MAX_FAILURES,
    NTIRE2025,
    SIDE,
    TERMS,
    Validity,
    identity_passes,
    mean_by_dataset,
    overall_means,
    validity,
    weighted_score,
)
from thurl.iqa.face_restoration.runner import PictureResult, run_metrics
from thurl.iqa.face_restoration.settings import IDENTITY, EvaluationSettings, choose_metrics


__all__ = ["FaceEvaluation", "FaceRow", "IdentityRuleError", "IncompleteSetError", "evaluate_faces"]


class IdentityRuleError(ThurlError):
    """The evaluation is done, and the entry breaks the identity rule; exit code 1."""


class IncompleteSetError(ThurlError):
    """The evaluation is done, and pictures or values are missing; exit code 4."""

    exit_code = 4


@dataclass(frozen=True)
class FaceRow:
    """One picture of the result.

    Attributes:
        dataset, name: key.
        values: metric name to number, NaN where undefined; metrics of single pictures only.
        threshold: of the identity check, None where there is none.
        passes: outcome of the check, None where it is undefined.
        error: reasons of empty cells and other problems, joined by "; ".
        restored, lq: files, for a contact sheet.
    """

    dataset: str
    name: str
    values: Mapping[str, float]
    threshold: float | None
    passes: bool | None
    error: str
    restored: Path | None = None
    lq: Path | None = None


@dataclass(frozen=True)
class FaceEvaluation:
    """Result: rows in the order of data set and name, and the summary as JSON values (undefined numbers are NaN)."""

    rows: tuple[FaceRow, ...]
    summary: dict[str, Any]

    def raise_for_status(self, *, strict: bool = False) -> None:
        """Raise what the command line turns into an exit code.

        Args:
            strict: a broken identity rule counts.

        Raises:
            IncompleteSetError: pictures or values are missing and that was not allowed.
            IdentityRuleError: the entry is not valid.
        """
        if self.summary["incomplete"] and not self.summary["settings"]["allow_missing"]:
            raise IncompleteSetError(
                f"the set is not complete: {'; '.join(self.summary['incomplete'])}. There is no score; "
                "--allow-missing computes one from what is there"
            )
        identity = self.summary["identity"]
        if strict and identity["valid"] is False:
            raise IdentityRuleError(
                f"identity rule: {identity['failures']} faces failed, at most {identity['max_failures']} may"
            )


def evaluate_faces(
    settings: EvaluationSettings, progress: Callable[[int, int], None] = lambda done, total: None
) -> FaceEvaluation:
    """Evaluate a folder of restored faces.

    Args:
        settings: what and how.
        progress: called with (pictures done, pictures in all).

    Raises:
        UsageError, MissingRequirementError, DataError: before the first picture is opened.
    """
    start = time.perf_counter()
    names, skipped = choose_metrics(settings)
    points = read_landmarks(settings.landmarks) if settings.landmarks is not None else None
    if not any("landmarks" in metric_class(name).needs for name in names):
        points = None  # faces without landmarks are no trouble then
    found = find_faces(settings.restored, lq=settings.lq, gt=settings.gt, landmarks=points, protocol=settings.protocol)
    if all(item.restored is None for item in found.items):
        raise DataError(f"{settings.restored}: no restored picture can be used: {found.items[0].problems}")
    results, sets, identity = run_metrics(
        found.items,
        names,
        settings.context,
        batch_size=settings.batch_size,
        workers=settings.workers,
        cache=ResultCache(settings.cache),
        progress=lambda done: progress(done, len(found.items)),
    )
    rows = tuple(_row(result, settings) for result in results)
    warnings = [*found.warnings, *_warnings(settings, names, results), *(w for s in sets.values() for w in s.warnings)]
    summary = _summary(settings, names, rows, sets, found, results)
    summary |= {
        "skipped": skipped,
        "metrics": {name: {**_about(name), **identity[name]} for name in names},
        "warnings": warnings,
        "seconds": round(time.perf_counter() - start, 3),
    }
    return FaceEvaluation(rows, summary)


def _row(result: PictureResult, settings: EvaluationSettings) -> FaceRow:
    item = result.item
    if settings.protocol == "ntire2025":
        threshold = NTIRE2025[item.dataset].threshold if item.dataset in NTIRE2025 else None
    else:
        threshold = settings.id_threshold
    if IDENTITY not in result.values:
        threshold = None
    passes = identity_passes(result.values.get(IDENTITY), threshold)
    error = "; ".join(dict.fromkeys(result.errors))
    return FaceRow(item.dataset, item.name, result.values, threshold, passes, error, item.restored, item.lq)


def _summary(
    settings: EvaluationSettings,
    names: Sequence[str],
    rows: Sequence[FaceRow],
    sets: Mapping[str, SetResult],
    found: FaceSets,
    results: Sequence[PictureResult],
) -> dict[str, Any]:
    official = settings.protocol == "ntire2025"
    weights = {name: face.images for name, face in NTIRE2025.items()} if official else None
    counts: dict[str, int] = {}
    for row, result in zip(rows, results, strict=True):
        counts[row.dataset] = counts.get(row.dataset, 0) + (result.item.restored is not None)
    datasets: dict[str, Any] = {name: {"pictures": count, "means": {}, "counts": {}} for name, count in counts.items()}
    overall: dict[str, float] = {}
    for name in (name for name in names if name not in sets):
        means = mean_by_dataset([row.dataset for row in rows], [row.values[name] for row in rows])
        for dataset, (mean, count) in means.items():
            datasets[dataset]["means"][name] = mean
            datasets[dataset]["counts"][name] = count
        overall[name] = overall_means(means, weights)
    overall |= {name: result.value for name, result in sets.items()}
    missing_faces = sum(found.missing.values())
    incomplete = _incomplete(rows, overall, sets, missing_faces)
    checked: Validity | None = None
    if IDENTITY in overall and (official or settings.id_threshold is not None):
        checked = validity([row.passes for row in rows], missing=missing_faces)
        for dataset, entry in datasets.items():
            entry["identity_failures"] = sum(row.passes is False for row in rows if row.dataset == dataset)
    score = weighted_score({name: overall[name] for name in TERMS if name in overall})
    given = not incomplete or settings.allow_missing
    return {
        "format": 1,
        "protocol": settings.protocol,
        "settings": {
            "restored": str(settings.restored),
            "lq": None if settings.lq is None else str(settings.lq),
            "gt": None if settings.gt is None else str(settings.gt),
            "landmarks": None if settings.landmarks is None else str(settings.landmarks),
            "batch_size": settings.batch_size,
            "seed": settings.context.seed,
            "device": settings.context.device,
            "allow_missing": settings.allow_missing,
            "skip_missing": settings.skip_missing,
            "id_threshold": settings.id_threshold,
        },
        "pictures": sum(counts.values()),
        "datasets": datasets,
        "overall": overall,
        "sets": {name: dict(result.details) for name, result in sets.items()},
        "weights": "fixed" if official else "number of pictures",
        "score": {
            "total": score.total if given and score.terms else None,
            "label": score.label,
            "terms": dict(score.terms),
            "missing": list(score.missing),
        },
        "identity": {
            "failures": checked.failures if checked else None,
            "unchecked": checked.unchecked if checked else None,
            "checked": checked.checked if checked else None,
            "max_failures": MAX_FAILURES,
            "valid": checked.valid if checked and official else None,
            "failed": [f"{row.dataset}/{row.name}" for row in rows if row.passes is False],
        },
        "incomplete": incomplete,
    }


def _incomplete(
    rows: Sequence[FaceRow], overall: Mapping[str, float], sets: Mapping[str, SetResult], missing: int
) -> list[str]:
    reasons = []
    if missing:
        reasons.append(f"{missing} pictures of the protocol are not there")
    if wrong := sum(bool(row.error) for row in rows):
        reasons.append(f"{wrong} pictures with errors (column `error` of per_image.csv)")
    if undefined := [name for name in sets if math.isnan(overall[name])]:
        reasons.append(f"undefined: {', '.join(undefined)}")
    return reasons


def _warnings(settings: EvaluationSettings, names: Sequence[str], results: Sequence[PictureResult]) -> list[str]:
    warnings = []
    if settings.landmarks is None and any("landmarks" in metric_class(name).needs for name in names):
        warnings.append(
            "no --landmarks: the fixed points of FFHQ-aligned pictures are taken for every face; the challenge has "
            "points of its own for each"
        )
    notes: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            notes.setdefault(note, []).append(result.item.key)
    warnings += [f"{note} ({len(keys)}): {_some(keys)}" for note, keys in notes.items()]
    if settings.protocol == "ntire2025":
        odd = [result.item.key for result in results if result.size not in (None, (SIDE, SIDE))]
        if odd:
            warnings.append(f"{len(odd)} pictures are not {SIDE}x{SIDE} pixels, as the challenge's are: {_some(odd)}")
    copies = [result.item.key for result in results if result.copied]
    if copies:
        warnings.append(f"{len(copies)} restored files are copies of their input, identity and all: {_some(copies)}")
    return warnings


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _about(name: str) -> dict[str, Any]:
    cls = metric_class(name)
    return {
        "lower_is_better": cls.lower_is_better,
        "range": list(cls.range),
        "tier": cls.tier,
        "set": issubclass(cls, SetMetric),
    }
