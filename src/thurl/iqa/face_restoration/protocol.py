"""The rules of the NTIRE 2025 Real-World Face Restoration challenge (arXiv 2504.14600) as pure functions.

Score of an entry, from the means over the whole set:

    S = CLIPIQA + MANIQA + MUSIQ/100 + max(0, (10 - NIQE)/10) + QALIGN/5 + max(0, (100 - FID)/100)

The formula is applied once, to the overall means, never to single pictures: because of the two max() that differs.
Nothing is clamped from above; the nominal maximum is 6. Without Q-Align the official script leaves the term out (at
most 5); such a score must not be compared with one of six terms, hence every `Score` names its terms.

A face fails the identity check when the cosine between the AdaFace embeddings of the low-quality input and of the
restored face is below the threshold of its data set; equality passes. More than ten failures among the 450 faces make
an entry invalid. The official script counts failures but does not apply this rule; it is in the challenge's text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


__all__ = [
    "MAX_FAILURES",
    "NTIRE2025",
    "PROTOCOLS",
    "SIDE",
    "TERMS",
    "TERM_RANGE",
    "FaceSet",
    "Score",
    "Validity",
    "identity_passes",
    "mean_by_dataset",
    "overall_means",
    "score_terms",
    "validity",
    "weighted_score",
]


@dataclass(frozen=True)
class FaceSet:
    """One data set of the challenge.

    Attributes:
        images: pictures in each of the splits `test` and `val`; the weight of the set's mean in the overall mean.
        threshold: smallest cosine that passes the identity check.
    """

    images: int
    threshold: float


NTIRE2025: Mapping[str, FaceSet] = MappingProxyType(
    {
        "CelebA": FaceSet(100, 0.5),
        "CelebChild-Test": FaceSet(50, 0.6),
        "LFW-Test": FaceSet(100, 0.6),
        "WebPhoto-Test": FaceSet(100, 0.3),
        "Wider-Test": FaceSet(100, 0.3),
    }
)
"""Folder name to data set, as the organisers' evaluation script has them."""

PROTOCOLS = ("ntire2025", "free")

MAX_FAILURES = 10
"""An entry with more failed faces is invalid."""

SIDE = 512
"""Width and height of every picture of the challenge, in pixels."""

TERMS = ("clipiqa", "maniqa", "musiq", "niqe", "qalign", "fid")
"""The six terms of the score, by metric name."""

# What one unit of the normalised term is worth; the official code divides, which is not the same as multiplying.
_NORMALISED = {
    "clipiqa": lambda value: value,
    "maniqa": lambda value: value,
    "musiq": lambda value: value / 100,
    "niqe": lambda value: max(0.0, (10 - value) / 10),
    "qalign": lambda value: value / 5,
    "fid": lambda value: max(0.0, (100 - value) / 100),
}

TERM_RANGE: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "clipiqa": (0.0, 1.0),
        "maniqa": (0.0, 1.0),
        "musiq": (0.0, 100.0),
        "niqe": (0.0, math.inf),
        "qalign": (1.0, 5.0),
        "fid": (0.0, math.inf),
    }
)
"""Nominal range of each metric before it is normalised; the challenge does not enforce it."""


@dataclass(frozen=True)
class Score:
    """A weighted score and what it consists of.

    Attributes:
        total: sum of the terms; NaN when a term is undefined or none is there.
        terms: metric name to normalised term, the present ones only, in the order of `TERMS`.
    """

    total: float
    terms: Mapping[str, float]

    @property
    def missing(self) -> tuple[str, ...]:
        """Terms of the official score that are not in this one."""
        return tuple(name for name in TERMS if name not in self.terms)

    @property
    def label(self) -> str:
        """`"6 of 6"` for a whole score, `"partial (5 of 6)"` for one that must not be compared with whole ones."""
        present = f"{len(self.terms)} of {len(TERMS)}"
        return present if len(self.terms) == len(TERMS) else f"partial ({present})"


@dataclass(frozen=True)
class Validity:
    """Outcome of the identity rule.

    Attributes:
        failures: faces below their threshold.
        unchecked: faces without a similarity, among them pictures that are not there.
        checked: faces with a similarity and a threshold.
        valid: at most `MAX_FAILURES` failures; None while unchecked faces leave it open.
    """

    failures: int
    unchecked: int
    checked: int
    valid: bool | None


def score_terms(means: Mapping[str, float]) -> dict[str, float]:
    """Normalised terms of the score.

    Args:
        means: overall mean by metric name; names that are not in `TERMS` are ignored. NaN gives a NaN term, where a
            bare max(0, NaN) would give 0, which looks like the worst value and is none.

    Returns:
        the terms that `means` has, in the order of `TERMS`, without unit.
    """
    terms = {}
    for name in TERMS:
        if name in means:
            value = float(means[name])
            terms[name] = math.nan if math.isnan(value) else float(_NORMALISED[name](value))
    return terms


def weighted_score(means: Mapping[str, float]) -> Score:
    """The score S of overall means (arXiv 2504.14600; organisers' evaluation script).

    Args:
        means: as in `score_terms`.
    """
    terms = score_terms(means)
    return Score(math.fsum(terms.values()) if terms else math.nan, terms)


def identity_passes(similarity: float | None, threshold: float | None) -> bool | None:
    """Whether a face keeps its identity: `similarity >= threshold`, None when one of the two is undefined.

    Args:
        similarity: cosine in [-1, 1].
        threshold: cosine in [-1, 1].
    """
    if similarity is None or threshold is None or math.isnan(similarity) or math.isnan(threshold):
        return None
    return not similarity < threshold


def validity(passes: Iterable[bool | None], *, missing: int = 0, max_failures: int = MAX_FAILURES) -> Validity:
    """Apply the rule of ten failures.

    Args:
        passes: outcome of `identity_passes` per face.
        missing: faces of the protocol that are not among them.
        max_failures: largest number of failures of a valid entry.
    """
    outcomes = list(passes)
    failures = sum(outcome is False for outcome in outcomes)
    unchecked = sum(outcome is None for outcome in outcomes) + missing
    valid: bool | None = failures <= max_failures
    if valid and unchecked:
        valid = None
    return Validity(failures, unchecked, len(outcomes) + missing - unchecked, valid)


def mean_by_dataset(datasets: Sequence[str], values: Sequence[float]) -> dict[str, tuple[float, int]]:
    """Mean and number of defined values per data set, in the order in which the sets appear.

    Args:
        datasets: name of the set of each picture, (N,).
        values: one number per picture, (N,); NaN is left out.

    Returns:
        set name to (mean, number of values behind it); the mean is NaN where no value is defined.
    """
    columns: dict[str, list[float]] = {}
    for dataset, value in zip(datasets, values, strict=True):
        column = columns.setdefault(dataset, [])
        if not math.isnan(value):
            column.append(value)
    return {name: (_mean(column), len(column)) for name, column in columns.items()}


def overall_means(means: Mapping[str, tuple[float, int]], weights: Mapping[str, float] | None = None) -> float:
    """Mean over the data sets.

    Args:
        means: from `mean_by_dataset`.
        weights: weight per data set. Fixed ones (`NTIRE2025`) are those of the challenge, whatever the number of
            pictures that are there; a set of `weights` without a mean makes the result NaN. None weighs each set by
            its number of values, which is the mean over all pictures.
    """
    if weights is None:
        weights = {name: count for name, (_, count) in means.items() if count}
    total = math.fsum(weights.values())
    if not total:
        return math.nan
    return math.fsum(means.get(name, (math.nan, 0))[0] * weight for name, weight in weights.items()) / total


def _mean(values: Sequence[float]) -> float:
    if not values:
        return math.nan
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values) / len(values)
