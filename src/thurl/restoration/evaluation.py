"""Full-reference evaluation of a restoration model, beside the degraded input and clean-ups without learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from thurl.errors import UsageError
from thurl.restoration.cleanup import clean_up, tune
from thurl.restoration.dataset import RestorationPairs
from thurl.training.evaluation import EvaluationResults, Predict


__all__ = ["PictureMetric", "RestorationEvaluator", "tuned_strengths"]

PictureMetric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Pictures and references, (B, 3, H, W) float32 in [0, 1], to a number for each, (B,)."""

_CHUNK = 32
"""Pictures held in memory at a time."""


class _Inputs(Dataset):
    """Some rows of a data set without their targets, so that no loss is computed."""

    def __init__(self, dataset: Any, rows: Sequence[int]):
        self.dataset, self.rows = dataset, list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.dataset[self.rows[index]]["pixel_values"]}


class RestorationEvaluator:
    """An evaluator of `MethodTrainer` on `RestorationPairs` with `fixed=True`.

    All pictures are rounded to 8 bits before they are judged. Metrics: `<metric>` of the model, `<metric>_degraded` of
    its input and `<metric>_<name>` of each clean-up, means over the pictures. Items: the same for each picture, with
    what its degradation drew. Only the model is judged anew each time.

    Args:
        metrics: name to function; larger is better in all of them.
        strengths: clean-up to its strength, chosen on other pictures (`tuned_strengths`).
    """

    def __init__(self, metrics: Mapping[str, PictureMetric], strengths: Mapping[str, float] | None = None):
        if not metrics:
            raise UsageError("the evaluator has no metric; give it at least one")
        self.metrics, self.strengths = dict(metrics), dict(strengths or {})
        self._known: dict[int, tuple[Any, list[dict[str, float]]]] = {}

    def __call__(self, model: Any, dataset: RestorationPairs, predict: Predict) -> EvaluationResults:
        """Judge `model`; see `thurl.training.evaluation.Evaluator`.

        Raises:
            UsageError: pairs that change from epoch to epoch.
        """
        if not getattr(dataset, "fixed", True):
            raise UsageError("evaluation needs the same pairs every time; build `RestorationPairs` with `fixed=True`")
        others = self._references(dataset)
        items = []
        for start in range(0, len(dataset), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(dataset)))
            restored = predict(_Inputs(dataset, rows))["restored"]
            pairs = [dataset.pair(row) for row in rows]
            judged = self._judge(_bytes(restored), np.stack([clean for _, clean, _ in pairs]))
            for place, row in enumerate(rows):
                ours = {name: values[place] for name, values in judged.items()}
                known = {"row": row, "photo": dataset.name(row), "degradation": pairs[place][2].record()}
                items.append({**known, **ours, **others[row]})
        names = [*self.metrics, *others[0]]
        means = {name: float(np.mean([item[name] for item in items])) for name in names}
        settings = {"pictures": len(dataset), "size": dataset.size, "strengths": self.strengths}
        return EvaluationResults(means, items, settings)

    def _references(self, dataset: RestorationPairs) -> list[dict[str, float]]:
        """Degraded inputs and clean-ups, judged once for each data set."""
        known = self._known.get(id(dataset))
        if known is not None and known[0] is dataset:
            return known[1]
        items: list[dict[str, float]] = []
        for start in range(0, len(dataset), _CHUNK):
            degraded, clean = stacked_pairs(dataset, range(start, min(start + _CHUNK, len(dataset))))
            judged = {f"{name}_degraded": values for name, values in self._judge(degraded, clean).items()}
            for cleanup, strength in self.strengths.items():
                found = self._judge(clean_up(degraded, cleanup, strength), clean)
                judged |= {f"{name}_{cleanup}": values for name, values in found.items()}
            items += [{name: values[place] for name, values in judged.items()} for place in range(len(degraded))]
        self._known[id(dataset)] = (dataset, items)
        return items

    def _judge(self, pictures: NDArray[np.uint8], clean: NDArray[np.uint8]) -> dict[str, list[float]]:
        ours, theirs = _tensor(pictures), _tensor(clean)
        return {name: [float(value) for value in metric(ours, theirs)] for name, metric in self.metrics.items()}


def stacked_pairs(dataset: RestorationPairs, rows: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Degraded and clean pictures of some rows, each (N, H, W, 3) uint8."""
    pairs = [dataset.pair(row) for row in rows]
    return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])


def tuned_strengths(dataset: RestorationPairs, cleanups: Sequence[str], most: int = 64) -> dict[str, float]:
    """Strengths of clean-ups chosen on the first `most` pairs of a data set that is not the test set."""
    if not cleanups:
        return {}
    return tune(*stacked_pairs(dataset, range(min(most, len(dataset)))), cleanups)


def _tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(torch.float32).div(255)


def _bytes(restored: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(N, 3, H, W) in [0, 1] to (N, H, W, 3) uint8.

    Raises:
        UsageError: values that are not finite, which no metric may turn into a number.
    """
    if not np.isfinite(restored).all():
        raise UsageError(
            "the model returned pixels that are no numbers; training has diverged, lower the learning rate"
        )
    return np.ascontiguousarray(np.clip(np.rint(255 * restored), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
