"""Scores of frames beside what is known of them, and their means over videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thurl.errors import DataError


if TYPE_CHECKING:
    from thurl.forensics.deepfake.manifest import FaceItem

__all__ = ["FrameScores", "VideoScores"]


@dataclass(frozen=True)
class VideoScores:
    """One row per video.

    Attributes:
        keys: (dataset, label, manipulation, video) of each.
        scores: (V,) mean P(fake) over its usable frames, float64.
        labels: (V,) 1 forged, 0 real.
        frames: (V,) how many usable frames it has.
    """

    keys: tuple[tuple[str, int, str, str], ...]
    scores: np.ndarray
    labels: np.ndarray
    frames: np.ndarray


@dataclass(frozen=True)
class FrameScores:
    """One row per picture, what the model says and what is known.

    Args:
        names: the n nodes of the label graph; the first is whether the face is forged.
        probabilities: (N, n) marginals in [0, 1]; a row of NaN for a picture that could not be used.
        labels: (N, n) 1, 0 or -1 for unknown.
        datasets, manipulations, videos: N names each.

    Raises:
        DataError: numbers of rows or columns that do not fit, probabilities outside [0, 1], other labels.
    """

    names: Sequence[str]
    probabilities: np.ndarray
    labels: np.ndarray
    datasets: Sequence[str]
    manipulations: Sequence[str]
    videos: Sequence[str]

    def __post_init__(self) -> None:
        values = np.asarray(self.probabilities, dtype=np.float64)
        labels = np.asarray(self.labels, dtype=np.int8)
        object.__setattr__(self, "probabilities", values)
        object.__setattr__(self, "labels", labels)
        rows = len(self.videos)
        shape = (rows, len(self.names))
        if values.shape != shape or labels.shape != shape or not len(self.datasets) == len(self.manipulations) == rows:
            raise DataError(
                f"probabilities {values.shape}, labels {labels.shape}, {len(self.datasets)} data sets, "
                f"{len(self.manipulations)} manipulations and {rows} videos of {len(self.names)} labels do not fit"
            )
        wrong = np.flatnonzero(((values < 0) | (values > 1)).any(axis=1))
        if wrong.size:
            raise DataError(f"row {wrong[0]} ({self.videos[wrong[0]]}) has a probability outside [0, 1]")
        if not np.isin(labels, (-1, 0, 1)).all():
            raise DataError("labels are 1, 0, or -1 for unknown")

    @classmethod
    def of_items(cls, items: Sequence[FaceItem], names: Sequence[str], probabilities: np.ndarray) -> FrameScores:
        """The table of a manifest's items: their labels and videos beside (N, n) probabilities."""
        return cls(
            names,
            probabilities,
            np.array([item.labels for item in items], dtype=np.int8).reshape(len(items), len(names)),
            *([item.video_key[place] for item in items] for place in (0, 2, 3)),  # type: ignore[arg-type]
        )

    @property
    def usable(self) -> np.ndarray:
        """(N,) rows whose picture could be used."""
        return ~np.isnan(self.probabilities).any(axis=1)

    def rows(self, chosen: np.ndarray) -> FrameScores:
        """Some rows: (N,) truth values, or their numbers."""
        places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return FrameScores(
            self.names,
            self.probabilities[places],
            self.labels[places],
            *([side[place] for place in places] for side in (self.datasets, self.manipulations, self.videos)),
        )

    def keys(self) -> list[tuple[str, int, str, str]]:
        """Which video each row belongs to: (dataset, label, manipulation, video)."""
        labels = (int(label) for label in self.labels[:, 0])
        return list(zip(self.datasets, labels, self.manipulations, self.videos, strict=True))

    def by_video(self) -> VideoScores:
        """Means over the usable frames whose first label is known, in order of appearance."""
        members: dict[tuple[str, int, str, str], list[float]] = {}
        for key, value, usable in zip(self.keys(), self.probabilities[:, 0], self.usable, strict=True):
            if usable and key[1] >= 0:
                members.setdefault(key, []).append(float(value))
        return VideoScores(
            tuple(members),
            np.array([np.mean(values) for values in members.values()]),
            np.array([key[1] for key in members], dtype=np.int8),
            np.array([len(values) for values in members.values()], dtype=np.int64),
        )
