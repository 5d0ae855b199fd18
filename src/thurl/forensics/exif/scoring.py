"""Pictures to verdicts: an encoder, its image processor and a detector together.

EXIF is not read here: camera settings are what the encoder was trained with, a picture is judged by its pixels, and a
picture whose metadata was removed is judged the same.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from thurl.errors import DataError, UsageError
from thurl.forensics.exif.calibration import Drift
from thurl.forensics.exif.detector import Detector, load_detector
from thurl.forensics.exif.features import FeatureTower
from thurl.forensics.reading import Picture, picture_name
from thurl.training.results import write_atomically


__all__ = ["COLUMNS", "FaceDetector", "Rule", "Verdict", "csv_text", "jsonl_text", "threshold_of", "write_verdicts"]

COLUMNS = (
    "image",
    "decision",
    "p_value",
    "log_likelihood",
    "probability_generated",
    "threshold",
    "fpr_target",
    "error",
)


@dataclass(frozen=True)
class Rule:
    """How a score becomes a decision.

    Attributes:
        rate: false-alarm rate, the share of photographs that are called generated; None takes the smallest rate stored
            in the detector.
        two_sided: call scores that are too high generated, too.
        domain: kind of photographs to compare with; the default calibration when empty.
        official: the official threshold instead (one-class: a rate of 0.01 or 0.05 and the scores of the fitted
            features; binary: a probability of 0.5), for comparison with published numbers.
    """

    rate: float | None = None
    two_sided: bool = False
    domain: str = ""
    official: bool = False


@dataclass(frozen=True)
class Verdict:
    """What is said about one picture.

    Attributes:
        image: its path, or "picture 0" and so on.
        decision: "photographic" or "generated"; "" for a picture that could not be used.
        score: log-likelihood in nats (one-class) or log odds of photographic (binary); NaN if unusable.
        kind: of the detector, "oc" or "bc".
        p_value: share of calibration photographs that look as little photographic; NaN without calibration.
        threshold: scores below it are called generated. With a two-sided rule scores far above it are, too.
        fpr_target: false-alarm rate of the threshold; NaN for the official threshold of a binary detector.
        error: why the picture could not be used, else "".
    """

    image: str
    decision: str
    score: float
    kind: str
    p_value: float
    threshold: float
    fpr_target: float
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is a decision."""
        return not self.error

    def row(self) -> dict[str, Any]:
        """One JSON object with the keys `COLUMNS`; undefined numbers are null."""
        one_class = self.kind == "oc"
        values = {
            "image": self.image,
            "decision": self.decision or None,
            "p_value": self.p_value,
            "log_likelihood": self.score if one_class else math.nan,
            "probability_generated": math.nan if one_class else _probability(self.score),
            "threshold": self.threshold,
            "fpr_target": self.fpr_target,
            "error": self.error or None,
        }
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


class FaceDetector:
    """Judges pictures.

    Scores do not depend on the batch a picture is in, beyond the rounding of float32 in the encoder, nor on the order.

    Args:
        tower: encoder and image processor.
        detector: made with this encoder.

    Raises:
        DataError: the detector was made with another encoder or another input transform.
    """

    def __init__(self, tower: FeatureTower, detector: Detector):
        detector.check_encoder(tower.encoder)
        _check_transform(tower.transform, detector.transform)
        self.tower = tower
        self.detector = detector.to(tower.encoder.conv1.weight.device)

    @classmethod
    def from_pretrained(
        cls,
        encoder: str | os.PathLike[str],
        detector: str | os.PathLike[str],
        *,
        device: str = "cpu",
        batch_size: int = 32,
        workers: int = 0,
    ) -> FaceDetector:
        """Load a trained model's folder (encoder and `preprocessor_config.json`) and a detector file.

        Raises:
            DataError, MissingRequirementError: see `load_tower` and `load_detector`.
        """
        from thurl.forensics.exif.loading import load_tower

        tower = load_tower(encoder, device=device, batch_size=batch_size, workers=workers)
        return cls(tower, load_detector(detector))

    def iterate(
        self,
        pictures: Sequence[Picture],
        rule: Rule | None = None,
        *,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> Iterator[Verdict]:
        """Verdicts in the order of the pictures, as the batches get ready. A bad picture is a verdict with an error.

        Args:
            pictures: paths, encoded bytes, PIL pictures or arrays.
            rule: how to decide; the smallest stored rate, one-sided, when None.
            boxes: a face box in pixels for each picture, None for pictures used whole.

        Raises:
            UsageError: a rule that this detector has no threshold for; before any picture is read.
            DataError: too few calibration photographs for the rate.
        """
        judge = _Judge(self.detector, rule or Rule())
        return self._iterate(pictures, judge, boxes)

    def score(
        self,
        pictures: Picture | Sequence[Picture],
        rule: Rule | None = None,
        *,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> list[Verdict]:
        """`iterate` as a list; a single picture gives a list of one."""
        several: list[Any] = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
        return list(self.iterate(several, rule, boxes=boxes))

    def drift(self, verdicts: Iterable[Verdict], domain: str = "") -> Drift:
        """Compare the scores of `verdicts` with the calibration photographs; warns where they differ.

        Raises:
            UsageError: the detector is not calibrated.
        """
        calibration = self.detector.calibration(domain)
        if calibration is None:
            raise UsageError("the detector is not calibrated; there is nothing to compare with")
        return calibration.drift([verdict.score for verdict in verdicts])

    def _iterate(
        self, pictures: Sequence[Picture], judge: _Judge, boxes: Sequence[Sequence[float] | None] | None
    ) -> Iterator[Verdict]:
        place = 0
        for errors, features in self.tower.batches(pictures, boxes):
            names = [picture_name(pictures[place + k], place + k) for k in range(len(errors))]
            place += len(errors)
            yield from judge(names, errors, self.detector.scores(features))


class _Judge:
    def __init__(self, detector: Detector, rule: Rule):
        self.kind = detector.kind
        self.calibration = detector.calibration(rule.domain)
        self.rule = rule
        self.rate = rule.rate if rule.rate is not None else math.nan
        if rule.official:
            if rule.two_sided or rule.domain:
                raise UsageError("the official threshold has one side and no domains")
            self.threshold = self._official(detector)
        elif self.calibration is None:
            if detector.kind == "oc" or rule.rate is not None or rule.two_sided:
                raise UsageError(
                    "the detector is not calibrated: it has no threshold for a false-alarm rate. Calibrate it with "
                    "photographs that were not used in training, or ask for the official threshold."
                )
            self.threshold = 0.0  # a probability of 0.5
        else:
            self.rate = min(self.calibration.rates, default=0.05) if rule.rate is None else rule.rate
            self.threshold = self.calibration.threshold(self.rate, two_sided=rule.two_sided)

    def _official(self, detector: Detector) -> float:
        if detector.kind == "bc":
            self.rate = math.nan
            return 0.0
        self.rate = 0.05 if self.rule.rate is None else self.rule.rate
        if self.rate not in detector.in_sample:
            known = ", ".join(f"{rate:g}" for rate in sorted(detector.in_sample)) or "none"
            raise UsageError(f"no official threshold for the rate {self.rate:g}; the detector has {known}")
        return detector.in_sample[self.rate]

    def __call__(self, names: Sequence[str], errors: Sequence[str], scores: Any) -> Iterator[Verdict]:
        rule, calibration = self.rule, self.calibration
        if calibration is None:
            p_values = [math.nan] * len(scores)
        else:
            p_values = calibration.p_values(scores, two_sided=rule.two_sided).tolist()
        if calibration is None or rule.official:
            generated = [not score >= self.threshold for score in scores]
        else:
            generated = calibration.generated(scores, self.rate, two_sided=rule.two_sided).tolist()
        for name, error, score, p_value, flag in zip(names, errors, scores, p_values, generated, strict=True):
            decision = "" if error else ("generated" if flag else "photographic")
            yield Verdict(name, decision, float(score), self.kind, p_value, self.threshold, self.rate, error)


def threshold_of(detector: Detector, rule: Rule) -> tuple[float, float]:
    """Threshold of a rule and its false-alarm rate, NaN where there is none.

    Raises:
        UsageError: a rule that the detector has no threshold for.
        DataError: too few calibration photographs for the rate.
    """
    judge = _Judge(detector, rule)
    return judge.threshold, judge.rate


def csv_text(verdicts: Iterable[Verdict], *, header: bool = True) -> str:
    """Verdicts as CSV with the columns `COLUMNS`; undefined numbers are empty. Numbers round-trip exactly."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    for verdict in verdicts:
        row = verdict.row()
        writer.writerow(["" if row[name] is None else _printable(row[name]) for name in COLUMNS])
    return buffer.getvalue()


def jsonl_text(verdicts: Iterable[Verdict]) -> str:
    """Verdicts as one JSON object per line with the keys `COLUMNS`; undefined numbers are null."""
    rows = ({name: _printable(value) for name, value in verdict.row().items()} for verdict in verdicts)
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_verdicts(verdicts: Sequence[Verdict], path: str | os.PathLike[str]) -> None:
    """Write a report in one step; the ending decides: `.csv`, `.json` (a list) or `.jsonl`.

    Raises:
        UsageError: another ending.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending == ".csv":
        text = csv_text(verdicts)
    elif ending == ".jsonl":
        text = jsonl_text(verdicts)
    elif ending == ".json":
        text = "[" + ",\n ".join(jsonl_text(verdicts).splitlines()) + "]\n"
    else:
        raise UsageError(f"{path}: reports end in .csv, .json or .jsonl")
    write_atomically(path, text)


def _printable(value: Any) -> Any:
    """File names that are not UTF-8 hold surrogates, which cannot be written."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _probability(log_odds: float) -> float:
    """Probability of generated from the log odds of photographic."""
    if math.isnan(log_odds):
        return math.nan
    if log_odds >= 0:
        return math.exp(-log_odds) / (1 + math.exp(-log_odds))
    return 1 / (1 + math.exp(log_odds))


def _check_transform(ours: dict[str, Any], made_with: Any) -> None:
    different = [
        f"{name} is {ours.get(name)!r} here and was {made_with.get(name)!r}"
        for name in sorted({*ours, *made_with})
        if made_with and ours.get(name) != made_with.get(name) and not name.startswith("_")
    ]
    if different:
        raise DataError(
            f"the detector was made with another input transform ({'; '.join(different)}); use the image processor "
            "that was saved beside the encoder"
        )
