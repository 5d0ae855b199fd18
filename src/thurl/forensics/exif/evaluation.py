"""How well a detector tells generated faces from photographs, per generator and on average.

The papers' protocol: for each generator up to 5,000 faces and as many photographs, drawn anew for each; accuracy at
the threshold, area under the ROC curve, average precision; averages over generators are unweighted. The official
scripts report no error rates and take the average precision of the photographs for one detector and of the generated
faces for the other; here both are given, and false alarms and detections apart, since accuracy mixes the threshold
with the separation. A generator whose faces score too high rather than too low shows in the two-sided numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from thurl.binary_metrics import average_precision, roc_auc
from thurl.errors import DataError
from thurl.forensics.exif.calibration import Calibration, smallest_sample
from thurl.forensics.exif.detector import Detector
from thurl.forensics.exif.features import FeatureTable, FeatureTower, extract_features
from thurl.forensics.exif.scoring import Rule, threshold_of
from thurl.forensics.perturbations import PERTURBATIONS, SpoiledPictures, check_perturbations
from thurl.forensics.reading import Picture


__all__ = ["evaluate_scores", "evaluate_tables", "robustness_report"]

_LIMIT = 5000


def evaluate_scores(
    photographs: Sequence[float] | np.ndarray,
    generated: Mapping[str, Sequence[float] | np.ndarray],
    *,
    threshold: float,
    calibration: Calibration | None = None,
    rate: float | None = None,
    limit: int = _LIMIT,
    match: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of scores, higher meaning more photographic.

    Args:
        photographs: (N,) scores of photographs the detector has never seen; NaN (unusable pictures) are left out.
        generated: name of a generator to the scores of its faces.
        threshold: a picture is called photographic from this score on.
        calibration: for the two-sided numbers, which are NaN without it, and where it is too small for half of `rate`.
        rate: false-alarm rate of the two-sided decisions; needs `calibration`.
        limit: faces per generator at most, drawn with `seed`.
        match: draw as many photographs as a generator has faces, as in the papers; False compares with all of them.
        seed: of the draws; a generator's draw does not depend on the others.

    Returns:
        `photographs` (`n`, `unusable`, `fpr` over all of them, `fpr_two_sided`), `generators` (name to `n`,
        `n_photographs`, `unusable`, `accuracy`, `fpr`, `tpr`, `auc`, `ap_generated`, `ap_photographic`,
        `auc_two_sided`, `tpr_two_sided`, `too_high`: share of faces above the upper two-sided threshold), `mean` (the
        unweighted mean over generators), `threshold`. Shares in [0, 1]; NaN where undefined.

    Raises:
        DataError: no usable photograph, or none of a generator.
    """
    real, lost = _usable(photographs, "photographs")
    results = {}
    for name in sorted(generated):
        fake, unusable = _usable(generated[name], name)
        rng = np.random.default_rng([seed, *name.encode("utf-8", "backslashreplace")])
        fake = _drawn(fake, limit, rng)
        chosen = _drawn(real, len(fake), rng) if match else real
        results[name] = {
            "n": len(fake),
            "n_photographs": len(chosen),
            "unusable": unusable,
            **_metrics(chosen, fake, threshold, calibration, rate),
        }
    names = [name for name in next(iter(results.values()), {}) if name not in ("n", "n_photographs", "unusable")]
    return {
        "photographs": {
            "n": len(real),
            "unusable": lost,
            "fpr": float(np.mean(real < threshold)),
            "fpr_two_sided": _two_sided(real, calibration, rate),
        },
        "generators": results,
        "mean": {name: float(np.mean([result[name] for result in results.values()])) for name in names},
        "threshold": threshold,
    }


def evaluate_tables(
    detector: Detector,
    photographs: FeatureTable,
    generated: Mapping[str, FeatureTable],
    rule: Rule | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`evaluate_scores` of feature tables under a rule.

    Args:
        detector: of the encoder that made the tables.
        photographs: `FeatureTable` of photographs.
        generated: name of a generator to its `FeatureTable`.
        rule: how to decide; the smallest stored rate when None. With `official`, the official threshold.
        options: `limit`, `match` and `seed` of `evaluate_scores`.

    Returns:
        as `evaluate_scores`, with `rule` (what the threshold is) and `fpr_target` besides.

    Raises:
        DataError: tables of another encoder, or as `evaluate_scores`.
        UsageError: a rule that the detector has no threshold for.
    """
    rule = rule or Rule()
    for name, table in {"photographs": photographs, **generated}.items():
        if table.encoder != detector.encoder:
            raise DataError(f"{name}: features of another encoder than the detector's; extract them again")
    threshold, rate = threshold_of(detector, rule)
    calibration = detector.calibration(rule.domain)
    result = evaluate_scores(
        detector.scores(photographs.features),
        {name: detector.scores(table.features) for name, table in generated.items()},
        threshold=threshold,
        calibration=calibration,
        rate=None if calibration is None or math.isnan(rate) else rate,
        **options,
    )
    return {**result, "rule": "official" if rule.official else "calibrated", "fpr_target": rate}


# --- robustness ------------------------------------------------------------------------------------------------------


def robustness_report(
    tower: FeatureTower,
    detector: Detector,
    photographs: Sequence[Picture],
    generated: Mapping[str, Sequence[Picture]],
    rule: Rule | None = None,
    *,
    perturbations: Sequence[str] = tuple(PERTURBATIONS),
    boxes: Mapping[str, Sequence[Sequence[float] | None]] | None = None,
    chunk: int = 256,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Evaluate again with every picture, photographs too, recompressed, shrunk or blurred; the threshold stays.

    Args:
        tower: encoder and image processor.
        detector: of this encoder.
        photographs: pictures the detector has never seen.
        generated: name of a generator to its pictures.
        rule: as in `evaluate_tables`.
        perturbations: names of `PERTURBATIONS`.
        boxes: face boxes in pixels of the unchanged pictures, or None for a whole one, by generator; those of the
            photographs under "". Where a perturbation changes the size they follow.
        chunk: pictures held in memory at a time.
        progress: called with the pictures done so far, every one counted once per perturbation.
        options: of `evaluate_scores`.

    Returns:
        name of the perturbation to the result of `evaluate_tables`.

    Raises:
        UsageError: an unknown perturbation.
        DataError: as `evaluate_tables`.
    """
    check_perturbations(perturbations)
    detector.check_encoder(tower.encoder)
    upright = bool(getattr(tower.processor, "upright", False))
    report = {}
    done = 0
    for name in perturbations:
        tables = {}
        for group, pictures in {"": photographs, **generated}.items():
            spoiled = SpoiledPictures(pictures, (boxes or {}).get(group), PERTURBATIONS[name], upright)
            parts = []
            for start in range(0, len(spoiled), chunk):
                changed = [spoiled.one(place) for place in range(start, min(start + chunk, len(spoiled)))]
                parts.append(extract_features(tower, [p for p, _ in changed], [box for _, box in changed]))
                done += len(changed)
                if progress is not None:
                    progress(done)
            tables[group] = _joined(parts, group or "photographs")
        real = tables.pop("")
        report[name] = evaluate_tables(detector, real, tables, rule, **options)
    return report


def _joined(parts: Sequence[FeatureTable], name: str) -> FeatureTable:
    if not parts:
        raise DataError(f"{name}: no pictures")
    return dataclasses.replace(
        parts[0],
        features=torch.cat([part.features for part in parts]),
        names=[text for part in parts for text in part.names],
        errors=[text for part in parts for text in part.errors],
    )


# --- numbers ---------------------------------------------------------------------------------------------------------


def _metrics(
    real: np.ndarray, fake: np.ndarray, threshold: float, calibration: Calibration | None, rate: float | None
) -> dict[str, float]:
    fpr, tpr = float(np.mean(real < threshold)), float(np.mean(fake < threshold))
    right = (1 - fpr) * len(real) + tpr * len(fake)
    auc_two_sided, too_high = math.nan, math.nan
    if calibration is not None:
        tails = [calibration.p_values(side, two_sided=True) for side in (real, fake)]
        auc_two_sided = roc_auc(*tails)
        if rate is not None and _has_two_sides(calibration, rate):
            too_high = float(np.mean(fake > calibration.upper_threshold(rate)))
    return {
        "accuracy": right / (len(real) + len(fake)),
        "fpr": fpr,
        "tpr": tpr,
        "auc": roc_auc(real, fake),
        "ap_generated": average_precision(-fake, -real),
        "ap_photographic": average_precision(real, fake),
        "auc_two_sided": auc_two_sided,
        "tpr_two_sided": _two_sided(fake, calibration, rate),
        "too_high": too_high,
    }


def _two_sided(scores: np.ndarray, calibration: Calibration | None, rate: float | None) -> float:
    if calibration is None or rate is None or not _has_two_sides(calibration, rate):
        return math.nan
    return float(np.mean(calibration.generated(scores, rate, two_sided=True)))


def _has_two_sides(calibration: Calibration, rate: float) -> bool:
    """Whether there are thresholds on both sides; one for each needs about twice the photographs of a single one."""
    return calibration.scores.size >= smallest_sample(rate, two_sided=True)


def _usable(scores: Sequence[float] | np.ndarray, name: str) -> tuple[np.ndarray, int]:
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    good = values[~np.isnan(values)]
    if not good.size:
        raise DataError(f"{name}: none of {values.size} pictures could be used")
    return good, int(values.size - good.size)


def _drawn(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` of them without repetition, in their old order."""
    if count >= len(values):
        return values
    return values[np.sort(rng.choice(len(values), count, replace=False))]
