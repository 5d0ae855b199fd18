"""What evaluating a model gives, and what an evaluator looks like to the trainer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from thurl.errors import DataError
from thurl.training.results import plain, write_atomically


__all__ = ["EvaluationResults", "Evaluator", "Predict"]

Predict = Callable[[Any], dict[str, np.ndarray]]
"""A data set to the model's tensors per row, each (N, ...) in the order of the data set."""


@dataclass(frozen=True)
class EvaluationResults:
    """Numbers of one model on one data set.

    Args:
        metrics: name to number; NaN where one is undefined, never a plausible value.
        items: one record per row of the data set, in its order; JSON values. May be empty.
        settings: what the numbers depend on (threshold, transform, number of rows), JSON values.

    Raises:
        DataError: a metric that is no number.
    """

    metrics: Mapping[str, float]
    items: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [f"{name!r}: {value!r}" for name, value in self.metrics.items() if not hasattr(value, "__float__")]
        if wrong:
            raise DataError(f"metrics {', '.join(wrong)} are no numbers; leave them to `items` or `settings`")
        object.__setattr__(self, "metrics", {name: float(value) for name, value in self.metrics.items()})

    def write_items(self, path: str | os.PathLike[str]) -> None:
        """Write `items` as JSON lines; undefined numbers are null."""
        lines = [json.dumps(plain(item), ensure_ascii=False, allow_nan=False) + "\n" for item in self.items]
        write_atomically(path, "".join(lines))


class Evaluator(Protocol):
    """Judges a model on a data set; called on every process, which must all return the same."""

    def __call__(self, model: Any, dataset: Any, predict: Predict) -> EvaluationResults:
        """
        Args:
            model: the bare model in evaluation mode, on its device, without gradients.
            dataset: the evaluation data set.
            predict: runs the model over a data set, shared out over the processes, and gives every process all rows
                exactly once and in order: each tensor of the model's output with one row per item.
        """
