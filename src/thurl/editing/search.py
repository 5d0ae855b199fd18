"""The densest mask that keeps the predictions on a locality set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from thurl.editing.classifier import Classifier
from thurl.editing.delta import Delta, edited_weights
from thurl.editing.edit import Edit, EditSettings, edit
from thurl.editing.masks import binarise, neurons_of
from thurl.errors import UsageError


__all__ = ["DensitySearch", "Locality", "Trial", "densest_within"]

logger = logging.getLogger(__name__)


class Locality:
    """Pictures whose predictions an edit should keep, with what they need more than once.

    Args:
        classifier: the base model.
        batches: pictures [B, channels, H, W] each; their labels are not used.

    Raises:
        UsageError: no pictures.
    """

    def __init__(self, classifier: Classifier, batches: Sequence[torch.Tensor]) -> None:
        if not any(len(batch) for batch in batches):
            raise UsageError("a locality set without pictures; give at least one")
        self._classifier = classifier
        self._layer = classifier.first_layer
        self._hidden = [classifier.prefix(batch, self._layer) for batch in batches]
        self.before = self.predictions()

    @property
    def size(self) -> int:
        """Number of pictures."""
        return len(self.before)

    def rate(self, delta: Delta) -> float:
        """Share of the pictures, in [0, 1], that are predicted as before the edit."""
        return float((self.predictions(delta) == self.before).float().mean())

    @torch.no_grad()
    def predictions(self, delta: Delta | None = None) -> torch.Tensor:
        """Classes int64 [N] of the pictures, by the model as it is or with an edit."""
        weights = None if delta is None else edited_weights(self._classifier.model, delta)
        suffix = self._classifier.suffix
        return torch.cat([suffix(hidden, self._layer, weights).argmax(dim=-1) for hidden in self._hidden])


@dataclass(frozen=True, eq=False)
class Trial:
    """One density that was tried.

    Args:
        neurons: in the mask.
        density: share of all neurons.
        locality: share of the locality set predicted as before, in [0, 1].
        edit: what was made.
    """

    neurons: int
    density: float
    locality: float
    edit: Edit


@dataclass(frozen=True, eq=False)
class DensitySearch:
    """Result of `densest_within`.

    Args:
        best: the densest trial within the budget; None when there is none.
        trials: all, in the order they were made.
    """

    best: Trial | None
    trials: tuple[Trial, ...]


def densest_within(
    classifier: Classifier,
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    soft: torch.Tensor,
    locality: Locality,
    budget: float = 0.98,
    settings: EditSettings | None = None,
    *,
    densities: tuple[float, float] = (0.01, 1.0),
    max_trials: int = 8,
) -> DensitySearch:
    """Edit with the densest mask of which the locality rate is at least the budget.

    Bisection in the logarithm of the density: fewer neurons change fewer predictions. That holds on average and not
    for every mask, so the result is the densest mask that was tried and kept, not a proof that no denser one would.
    Whether its edit succeeds is for the caller to look at (`best.edit.success`): a budget may leave too few neurons.

    Args:
        soft: float [T, M], scores of the neurons.
        budget: share of the locality set that must be predicted as before, in [0, 1].
        densities: the lowest and the highest to try.
        max_trials: edits made at most; two or more.

    Raises:
        UsageError: a value out of range, and whatever `edit` raises.
    """
    low, high = densities
    problems = []
    if not 0 <= budget <= 1:
        problems.append(f"budget {budget}: the share of predictions to keep must be in [0, 1]")
    if not 0 < low <= high <= 1:
        problems.append(f"densities {low} to {high}: must be in (0, 1], the lower one first")
    if max_trials < 2:
        problems.append(f"max_trials {max_trials}: must be at least 2")
    if problems:
        raise UsageError(problems)
    total = soft.shape[-1] * soft.shape[-2]
    trials: list[Trial] = []

    def within(neurons: int) -> bool:
        mask = binarise(soft, neurons / total)
        made = edit(classifier, pixel_values, labels, mask, settings)
        trials.append(Trial(neurons, neurons / total, locality.rate(made.delta), made))
        return trials[-1].locality >= budget

    fewest, most = neurons_of(low, total), neurons_of(high, total)
    if not within(most) and fewest < most and within(fewest):
        while len(trials) < max_trials and most - fewest > 1:
            middle = min(max(round((fewest * most) ** 0.5), fewest + 1), most - 1)
            if within(middle):
                fewest = middle
            else:
                most = middle
    kept = [trial for trial in trials if trial.locality >= budget]
    best = max(kept, key=lambda trial: trial.neurons, default=None)
    if best is None:
        logger.warning("no mask from %d neurons on keeps %.1f %% of the locality set", fewest, 100 * budget)
    return DensitySearch(best, tuple(trials))
