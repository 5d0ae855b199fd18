"""The second half of an EXIF run: features of photographs, mixture, calibrated thresholds, held-out false alarms."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thurl.errors import DataError
from thurl.forensics.exif.detector import Detector, save_detector
from thurl.forensics.exif.evaluation import evaluate_tables
from thurl.forensics.exif.features import FeatureTable, FeatureTower, extract_features
from thurl.forensics.exif.fitting import fit_one_class
from thurl.forensics.exif.inputs import content_marks
from thurl.forensics.exif.manifest import FaceRecord
from thurl.forensics.exif.official import DETECTOR_FILE
from thurl.forensics.exif.scoring import Rule
from thurl.recipe.exif_data import FaceStudy


__all__ = ["BAR", "CALIBRATED", "DETECTOR_FILE", "FITTED", "Detection", "detect", "false_alarms"]

logger = logging.getLogger(__name__)

FITTED, CALIBRATED = "fitted_to", "calibrated_with"
"""Entries of a detector's description in which `thurl exif` looks for the photographs it was made with."""

BAR = 3.0
"""Standard errors by which the false-alarm rate on held-out photographs may differ from the nominal one."""


@dataclass(frozen=True)
class Detection:
    """A detector and what it does on held-out pictures.

    Attributes:
        detector: fitted and calibrated.
        alarms: one entry per rate: see `false_alarms`; empty without held-out photographs.
        evaluation: of `thurl.forensics.exif.evaluation.evaluate_tables`; None without generated faces.
        metrics: the numbers that a model card shows, by name.
    """

    detector: Detector
    alarms: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def detect(recipe: Any, study: FaceStudy, model: Any, processor: Any, path: Path | None) -> Detection:
    """Fit a detector to a model's features, calibrate it, and evaluate it on the held-out pictures.

    Args:
        recipe: an `ExifRecipe`.
        study: its pictures.
        model: trained, or at its start.
        processor: its image processor.
        path: where the detector is written; None writes nothing.

    Raises:
        DataError: too few photographs that can be used. Others are left out with a warning.
    """
    section = recipe.detector
    tower = FeatureTower(model, processor, batch_size=section.batch_size)
    unit_length = model.unit_length if section.unit_length is None else section.unit_length
    tables = {name: _features(tower, records) for name, records in
              (("fit", study.fit), ("calibration", study.calibration))}  # fmt: skip
    marks = {}
    if path is not None:
        used = {use: content_marks([record.image for record in records]) for use, records in
                (("fit", study.fit), ("calibration", study.calibration))}  # fmt: skip
        marks = {FITTED: used["fit"], CALIBRATED: {"": used["calibration"]}}
    left_out = {f"{use}_left_out": _warn_of_bad(use, table) for use, table in tables.items()}
    detector = fit_one_class(
        tables["fit"],
        unit_length=unit_length,
        components=section.components or recipe.components,
        covariance=section.covariance,
        pca=section.pca,
        fallback=section.fallback,
        seed=section.seed,
        training={"method": recipe.method, "training_seed": int(recipe.training.get("seed", 42)), **left_out, **marks},
    )
    detector = detector.calibrated(detector.scores(tables["calibration"].usable), section.rates)
    if path is not None:
        save_detector(detector, path)
    if not study.test:
        return Detection(detector)
    test = _features(tower, study.test)
    alarms = false_alarms(detector, test)
    evaluation = None
    metrics = {f"false alarms at {entry['rate']:g}": entry["realised"] for entry in alarms}
    if study.generated:
        generated = {name: _features(tower, records) for name, records in study.generated.items()}
        options = {name: getattr(recipe.evaluation, name) for name in ("limit", "match", "seed")}
        evaluation = evaluate_tables(detector, test, generated, Rule(rate=recipe.evaluation.rate), **options)
        for name, entry in evaluation["generators"].items():
            metrics |= {f"AUC {name}": entry["auc"], f"AUC of both tails {name}": entry["auc_two_sided"]}
    return Detection(detector, alarms, evaluation, metrics)


def false_alarms(detector: Detector, test: FeatureTable) -> list[dict[str, Any]]:
    """How many held-out photographs are called generated, at each rate of the detector.

    Returns:
        per rate: `rate`, `realised` and `realised_two_sided` (NaN where the calibration set is too small for two
        sides), `standard_error` of the realised rate over draws of calibration and test photographs,
        `sqrt(a (1 - a) (1/m + 1/(n + 2)))` for m held-out and n calibration photographs, `within`: whether it lies
        within `BAR` of these of the nominal one, and `official`: the share below the official threshold, the quantile
        of the scores of the photographs that the mixture was fitted to (NaN for rates it has none for).
    """
    calibration = detector.calibration()
    assert calibration is not None
    scores = detector.scores(test.usable)
    found = []
    for rate in calibration.rates:
        realised = float(calibration.generated(scores, rate).mean())
        error = math.sqrt(rate * (1 - rate) * (1 / len(scores) + 1 / (len(calibration.scores) + 2)))
        try:
            two_sided = float(calibration.generated(scores, rate, two_sided=True).mean())
        except DataError:  # two sides need twice the photographs
            two_sided = math.nan
        official = detector.in_sample.get(rate)
        found.append(
            {
                "rate": rate,
                "realised": realised,
                "realised_two_sided": two_sided,
                "standard_error": error,
                "within": abs(realised - rate) <= BAR * error,
                "official": math.nan if official is None else float((scores < official).mean()),
            }
        )
    return found


def _features(tower: FeatureTower, records: Sequence[FaceRecord]) -> FeatureTable:
    return extract_features(tower, [record.image for record in records], [record.box for record in records])


def _warn_of_bad(use: str, table: FeatureTable) -> int:
    """Name the pictures that cannot be used; how many."""
    bad = [(name, error) for name, error in zip(table.names, table.errors, strict=True) if error]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        listed = "; ".join(f"{name}: {error}" for name, error in bad[:3])
        logger.warning("%s: %d of %d photographs are left out: %s%s", use, len(bad), len(table.names), listed, more)
    return len(bad)
