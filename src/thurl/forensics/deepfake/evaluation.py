"""How well marginals find forged faces: per frame and per video, per test set, attribute and region.

The paper's protocol (official code, GitHub `MZMMSEC/SJEDD`): the score of a video is the mean of P(fake) over its
frames, the AUC is over videos. A video is known by data set, label, manipulation and name, so that `000_003` of four
manipulations and of a real source are five videos: DeepfakeBench joins videos by the name of their folder alone and
gives such a mixture of real and forged frames the label `int(mean)`.

A test set of one class has no AUC: it is named with its reason, and no number stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thurl.binary_metrics import (
    average_precision,
    best_threshold,
    binary_calibration_error,
    equal_error_rate,
    roc_auc,
    tpr_at_fpr,
)
from thurl.forensics.deepfake.score_tables import FrameScores, VideoScores
from thurl.metrics import bootstrap_interval


__all__ = ["METRICS", "Thresholds", "choose_thresholds", "evaluate_frames"]

METRICS = (
    "auc",
    "auc_low",
    "auc_high",
    "ap",
    "eer",
    "accuracy",
    "balanced_accuracy",
    "accuracy_chosen",
    "balanced_accuracy_chosen",
    "tpr_at_fpr_1",
    "ece",
)
"""Of frames and of videos: see `evaluate_frames`."""

_RATE = 0.01


@dataclass(frozen=True)
class Thresholds:
    """P(fake) from which on a frame or a video counts as forged, with the largest balanced accuracy on validation
    data; NaN where there were not both classes."""

    frame: float = float("nan")
    video: float = float("nan")


def choose_thresholds(validation: FrameScores) -> Thresholds:
    """Thresholds from data that is not tested on, of all its sets together."""
    known = validation.rows(validation.usable & (validation.labels[:, 0] >= 0))
    videos = known.by_video()
    return Thresholds(
        best_threshold(*_sides(known.probabilities[:, 0], known.labels[:, 0])),
        best_threshold(*_sides(videos.scores, videos.labels)),
    )


def evaluate_frames(
    table: FrameScores,
    tasks: Mapping[str, slice],
    *,
    thresholds: Thresholds | None = None,
    resamples: int = 1000,
    seed: int = 0,
    bins: int = 15,
) -> dict[str, Any]:
    """All numbers of all test sets of a table.

    Args:
        table: the frames.
        tasks: columns of the tasks `global` and `local`, as `LabelGraph.tasks`.
        thresholds: of other data (`choose_thresholds`); without them the numbers at a chosen threshold are NaN.
        resamples: of the bootstrap interval of each AUC, over whole videos; 0 leaves it NaN.
        seed: of the bootstrap.
        bins: of the calibration error.

    Returns:
        `datasets`, name to
            `frames`, `videos`: `n`, `real`, `fake`, and `METRICS`: AUC with the bounds of its 95 % interval, average
            precision, equal error rate, accuracy and balanced accuracy at 0.5 and at the chosen threshold, share of
            forgeries found at a false-alarm rate of 1 %, calibration error of P(fake);
            `manipulations`: name to `frames`, `videos` (numbers of them), `frame_auc`, `video_auc` against all real
            ones of the set;
            `attributes`, `regions`: name to AUC over frames whose label is known; `attribute_auc`, `region_auc`: the
            mean over those that have one;
            `unusable`: pictures that could not be used; `unlabelled`: frames not known to be real or forged;
            `not_scored`: what has no number, and why;
        `mean`: unweighted, over the sets with both classes, of `frame_<metric>`, `video_<metric>`, `attribute_auc`,
        `region_auc`; `not_scored`: the sets with one class, and why; `thresholds`.
    """
    thresholds = thresholds or Thresholds()
    sets = {}
    for name in dict.fromkeys(table.datasets):
        own = table.rows(np.array([dataset == name for dataset in table.datasets]))
        sets[name] = _one_set(own, tasks, thresholds, resamples, seed, bins)
    scored = [entry for entry in sets.values() if entry["frames"]["real"] and entry["frames"]["fake"]]
    flat = [
        {
            **{f"frame_{name}": entry["frames"][name] for name in METRICS},
            **{f"video_{name}": entry["videos"][name] for name in METRICS},
            "attribute_auc": entry["attribute_auc"],
            "region_auc": entry["region_auc"],
        }
        for entry in scored
    ]
    return {
        "datasets": sets,
        "mean": {name: float(np.mean([entry[name] for entry in flat])) for name in (flat[0] if flat else ())},
        "not_scored": {
            name: entry["not_scored"]["all"] for name, entry in sets.items() if "all" in entry["not_scored"]
        },
        "thresholds": {"frame": thresholds.frame, "video": thresholds.video},
    }


def _one_set(
    table: FrameScores,
    tasks: Mapping[str, slice],
    thresholds: Thresholds,
    resamples: int,
    seed: int,
    bins: int,
) -> dict[str, Any]:
    usable = table.rows(table.usable)
    known = usable.rows(usable.labels[:, 0] >= 0)
    videos = known.by_video()
    scores, labels = known.probabilities[:, 0], known.labels[:, 0]
    not_scored: dict[str, str] = {}
    lacking = [what for what, label in (("real", 0), ("forged", 1)) if not (labels == label).any()]
    if lacking:
        not_scored["all"] = (
            f"has no {' and no '.join(lacking)} face that could be used; metrics of two classes are undefined. Add "
            "such faces under the same `dataset`"
        )
    options = {"resamples": resamples, "seed": seed, "bins": bins}
    found: dict[str, Any] = {
        "frames": _binary(scores, labels, known.keys(), thresholds.frame, **options),
        "videos": _binary(videos.scores, videos.labels, None, thresholds.video, **options),
        "manipulations": _per_manipulation(known, videos) if not lacking else {},
        "unusable": int((~table.usable).sum()),
        "unlabelled": int((usable.labels[:, 0] < 0).sum()),
    }
    for task, kind, macro in (("global", "attributes", "attribute_auc"), ("local", "regions", "region_auc")):
        values = {}
        for column in range(len(table.names))[tasks.get(task, slice(0))]:
            name = table.names[column]
            values[name] = roc_auc(*_sides(usable.probabilities[:, column], usable.labels[:, column]))
            if np.isnan(values[name]):
                not_scored[name] = "is not both present and absent among the frames whose label is known"
        defined = [value for value in values.values() if not np.isnan(value)]
        found[kind], found[macro] = values, float(np.mean(defined)) if defined else float("nan")
    return {**found, "not_scored": not_scored}


def _binary(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Any] | None,
    threshold: float,
    *,
    resamples: int,
    seed: int,
    bins: int,
) -> dict[str, Any]:
    fake, real = _sides(scores, labels)
    counts = {"n": len(scores), "real": len(real), "fake": len(fake)}
    if not len(real) or not len(fake):
        return {**counts, **dict.fromkeys(METRICS, float("nan"))}
    low = high = float("nan")
    if resamples:
        low, high = bootstrap_interval(
            lambda values, truth: roc_auc(*_sides(values, truth)),
            scores,
            labels,
            groups=groups,
            n=resamples,
            seed=seed,
        )
    half, chosen = (_accuracies(fake, real, at) for at in (0.5, threshold))
    values = (
        roc_auc(fake, real),
        low,
        high,
        average_precision(fake, real),
        equal_error_rate(fake, real),
        *half,
        *chosen,
        tpr_at_fpr(fake, real, _RATE),
        binary_calibration_error(scores, labels, bins),
    )
    return {**counts, **dict(zip(METRICS, values, strict=True))}


def _accuracies(fake: np.ndarray, real: np.ndarray, threshold: float) -> tuple[float, float]:
    """Share of right decisions, and its mean over both classes."""
    if np.isnan(threshold):
        return float("nan"), float("nan")
    found, passed = float((fake >= threshold).mean()), float((real < threshold).mean())
    right = (found * len(fake) + passed * len(real)) / (len(fake) + len(real))
    return right, (found + passed) / 2


def _per_manipulation(frames: FrameScores, videos: VideoScores) -> dict[str, dict[str, float]]:
    real = frames.labels[:, 0] == 0
    real_videos = videos.scores[videos.labels == 0]
    names = np.array(frames.manipulations, dtype=object)
    of_videos = np.array([key[2] for key in videos.keys], dtype=object)
    found = {}
    for name in dict.fromkeys(names[~real]):
        own = frames.probabilities[~real & (names == name), 0]
        own_videos = videos.scores[(videos.labels == 1) & (of_videos == name)]
        found[str(name)] = {
            "frames": len(own),
            "videos": len(own_videos),
            "frame_auc": roc_auc(own, frames.probabilities[real, 0]),
            "video_auc": roc_auc(own_videos, real_videos),
        }
    return found


def _sides(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of forged and of real ones."""
    return scores[labels == 1], scores[labels == 0]
