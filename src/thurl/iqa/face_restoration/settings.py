"""What an evaluation is asked to do, and which metrics that means."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from thurl.errors import MissingRequirementError, UsageError
from thurl.iqa.face_restoration.interface import MetricContext, metric_class, metric_names
from thurl.iqa.face_restoration.protocol import PROTOCOLS, TERMS


__all__ = ["GROUPS", "IDENTITY", "EvaluationSettings", "choose_metrics"]

IDENTITY = "id_sim"
GROUPS = ("all", "classic", "learned", "official")
"""Names that stand for several metrics; `official` is the six terms of the score and the identity check."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate and how.

    Attributes:
        restored, lq, gt: roots with one folder per data set.
        landmarks: CSV file; None takes the fixed points of FFHQ-aligned pictures.
        protocol: one of `PROTOCOLS`. "ntire2025" fixes data sets, weights, thresholds and counts; "free" weighs by the
            number of pictures.
        metrics: names and groups (`GROUPS`); empty takes "official" with ntire2025, else "classic".
        context: weights, device and seed.
        batch_size, workers: as `run_metrics` takes them. Workers change no bit; with another batch size learned
            metrics may move in the last digits of float32.
        skip_missing: leave out metrics that lack weights or packages.
        allow_missing: give means and a score although pictures or values are missing.
        id_threshold: threshold of the identity check with "free"; None checks nothing.
        cache: folder for results that are kept.
    """

    restored: Path
    lq: Path | None = None
    gt: Path | None = None
    landmarks: Path | None = None
    protocol: str = "free"
    metrics: tuple[str, ...] = ()
    context: MetricContext = field(default_factory=MetricContext)
    batch_size: int = 8
    workers: int = 0
    skip_missing: bool = False
    allow_missing: bool = False
    id_threshold: float | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("restored", "lq", "gt", "landmarks", "cache"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        problems = []
        if self.protocol not in PROTOCOLS:
            problems.append(f"protocol {self.protocol!r} is none of {', '.join(PROTOCOLS)}")
        if self.batch_size < 1 or self.workers < 0:
            problems.append(f"batch size {self.batch_size}, workers {self.workers}: at least 1 and 0")
        if self.id_threshold is not None and not -1 <= self.id_threshold <= 1:
            problems.append(f"identity threshold {self.id_threshold}: a cosine lies in [-1, 1]")
        if self.id_threshold is not None and self.protocol == "ntire2025":
            problems.append("ntire2025 has thresholds of its own; an identity threshold goes with the protocol free")
        if problems:
            raise UsageError(problems)


def choose_metrics(settings: EvaluationSettings) -> tuple[list[str], dict[str, list[str]]]:
    """Metrics to compute, and those left out with their reasons.

    A group takes the metrics whose inputs are given; a metric chosen by name must have them.

    Raises:
        UsageError: unknown names, a metric whose input is not given, an identity rule without LQ pictures.
        MissingRequirementError: with every missing item of all metrics, unless `skip_missing`.
    """
    chosen = settings.metrics or (("official",) if settings.protocol == "ntire2025" else ("classic",))
    given = {"landmarks"} | {kind for kind in ("lq", "gt") if getattr(settings, kind) is not None}
    names: list[str] = []
    problems: list[str] = []
    skipped: dict[str, list[str]] = {}
    for word in chosen:
        if word not in GROUPS:
            try:
                cls = metric_class(word)
            except UsageError as error:
                problems += error.problems
                continue
            if lacking := sorted(cls.needs - given):
                problems.append(f"metric {word} needs --{' and --'.join(lacking)}")
            names.append(word)
            continue
        for name in _group(word):
            cls = metric_class(name)
            if lacking := sorted(cls.needs - given):
                if word == "official" and settings.protocol == "ntire2025":
                    problems.append(f"the identity rule of ntire2025 needs --{' and --'.join(lacking)}")
                else:
                    skipped[name] = [f"--{' and --'.join(lacking)} is not given"]
            elif not cls.explicit or not cls.missing(settings.context):
                names.append(name)
    if problems:
        raise UsageError(problems)
    names = list(dict.fromkeys(names))
    if not names:
        raise UsageError(f"no metric is left of {', '.join(chosen)}: give --lq or --gt, or other metrics")
    missing = {name: metric_class(name).missing(settings.context) for name in names}
    missing = {name: messages for name, messages in missing.items() if messages}
    if missing and not settings.skip_missing:
        raise MissingRequirementError(
            [*_listed(missing), "--skip-missing leaves these metrics out; --metrics classic needs no weights"]
        )
    names = [name for name in names if name not in missing]
    if not names:
        raise MissingRequirementError([*_listed(missing), "no metric is left"])
    return names, skipped | missing


def _listed(missing: dict[str, list[str]]) -> list[str]:
    """One message per missing thing, with all metrics that want it."""
    users: dict[str, list[str]] = {}
    for name, messages in missing.items():
        for message in messages:
            users.setdefault(message, []).append(name)
    return [f"{', '.join(names)}: {message}" for message, names in users.items()]


def _group(word: str) -> list[str]:
    if word == "official":
        return [*TERMS, IDENTITY]
    return metric_names(None if word == "all" else word)
