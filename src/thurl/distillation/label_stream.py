"""Labels of the samples: implied by runs of classes in the header, range-coded, or soft ones beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from thurl.distillation.range_coder import PRECISION, Decoder, Encoder
from thurl.errors import DataError


__all__ = ["decode_labels", "encode_labels", "label_runs", "labels_of_runs"]


def label_runs(labels: NDArray[np.int32]) -> list[int]:
    """Labels (n,) as runs [first class, number of classes, samples of each, ...]: whole classes one after the other.

    `0 0 0 1 1 1 2 2 2` is `[0, 3, 3]`, `0 0 1` is `[0, 1, 2, 1, 1, 1]`.
    """
    starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    counts = np.diff(starts, append=len(labels))
    runs: list[int] = []
    for label, count in zip(labels[starts].tolist(), counts.tolist(), strict=True):
        if runs and runs[-1] == count and label == runs[-3] + runs[-2]:
            runs[-2] += 1
        else:
            runs += [label, 1, count]
    return runs


def labels_of_runs(runs: Sequence[int]) -> NDArray[np.int32]:
    """The labels `label_runs` was given; the caller has checked that their number is reasonable."""
    parts = [
        np.repeat(np.arange(first, first + classes), count)
        for first, classes, count in zip(runs[::3], runs[1::3], runs[2::3], strict=True)
    ]
    return np.concatenate(parts).astype(np.int32)


def encode_labels(encoder: Encoder, labels: NDArray[np.int32], classes: int) -> None:
    """Write labels (n,), each with the frequencies of those before it."""
    counts = np.ones(classes, np.int64)
    for label in labels:
        encoder.encode(np.array([label]), _excess(counts))
        counts[label] += 1


def decode_labels(decoder: Decoder, count: int, classes: int) -> NDArray[np.int32]:
    """Read `count` labels."""
    counts = np.ones(classes, np.int64)
    labels = np.empty(count, np.int32)
    for i in range(count):
        labels[i] = decoder.decode(_excess(counts))[0]
        counts[labels[i]] += 1
    return labels


def _excess(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Frequencies minus 1 in proportion to counts; the ends of the classes are rounded down."""
    free = 2**PRECISION - len(counts)
    if len(counts) < 2:
        raise DataError("labels of one class need no code")
    ends = np.cumsum(counts) * free // counts.sum()
    return np.diff(ends, prepend=0).astype(np.float32)[None]
