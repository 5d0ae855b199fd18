"""Edits of failing digits with several kinds of masks: what the tiny recipe shows at its end.

Success is that of the picture edited. Generality is the share of the other pictures of its group that are right
afterwards, locality the share of unshifted test pictures whose answer stays, of those the model had right.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from thurl.editing.classifier import Classifier
from thurl.editing.delta import edited_weights
from thurl.editing.digits import Digits, FailureGroup, failure_groups
from thurl.editing.edit import EditSettings, edit
from thurl.editing.hypernetwork import MaskHypernetwork
from thurl.editing.masks import (
    FixedMask,
    GradientMask,
    HybridMask,
    MaskSource,
    RandomMask,
    binarise,
    mean_scores,
)
from thurl.editing.meta_training import LearnedMask


__all__ = ["edit_digits"]

logger = logging.getLogger(__name__)
_PERCENT = 100.0


def edit_digits(
    hypernetwork: MaskHypernetwork, classifier: Classifier, digits: Digits, section: Any, *, seed: int
) -> list[dict[str, Any]]:
    """Mean over the edits, for each mask and density.

    Args:
        hypernetwork: trained for the classifier.
        classifier: of the digits.
        digits: its pictures.
        section: `thurl.recipe.edit_vit.EditEvaluationSection`.
        seed: of the random masks; each edit has another one.

    Returns:
        `mask`, `density`, `edits`, and `success`, `generality` and `locality` in percent; nothing where the model has
        no group of failures.
    """
    groups = failure_groups(classifier, digits)
    if not groups:
        logger.warning("The classifier has no group of twelve failures of one kind; nothing is edited")
        return []
    chosen = [groups[number % len(groups)] for number in range(section.edits)]
    places = [number // len(groups) for number in range(section.edits)]
    with torch.no_grad():
        plain = classifier.logits(digits.test).argmax(dim=-1)
    kept = digits.test[plain == digits.test_labels]
    hypernetwork.eval()
    settings = EditSettings(rate=section.rate, max_steps=section.max_steps, stop_loss=section.stop_loss)
    rows = []
    for name in section.masks:
        scores = []
        for number, (group, place) in enumerate(zip(chosen, places, strict=True)):
            source = _source(name, hypernetwork, classifier, group, seed * 10_007 + number)
            scores.append(source.scores(classifier, _picture(group, place), torch.tensor([group.true])))
        for density in section.densities:
            found = [
                _one(classifier, group, place, binarise(soft, density), settings, kept)
                for group, place, soft in zip(chosen, places, scores, strict=True)
            ]
            means = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
            rows.append({"mask": name, "density": density, "edits": len(found), **means})
    return rows


def _source(
    name: str, hypernetwork: MaskHypernetwork, classifier: Classifier, group: FailureGroup, seed: int
) -> MaskSource:
    learned = LearnedMask(hypernetwork)
    if name == "mean":
        return FixedMask(mean_scores(learned, classifier, _batches(group)))
    kinds: Mapping[str, MaskSource] = {
        "learned": learned,
        "grad": GradientMask(),
        "random": RandomMask(seed),
        "hybrid": HybridMask((learned, GradientMask())),
    }
    return kinds[name]


def _batches(group: FailureGroup) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield group.pictures, torch.full((len(group.pictures),), group.true)


def _picture(group: FailureGroup, place: int) -> torch.Tensor:
    place %= len(group.pictures)
    return group.pictures[place : place + 1]


def _one(
    classifier: Classifier,
    group: FailureGroup,
    place: int,
    mask: torch.Tensor,
    settings: EditSettings,
    kept: torch.Tensor,
) -> dict[str, float]:
    picture, place = _picture(group, place), place % len(group.pictures)
    done = edit(classifier, picture, torch.tensor([group.true]), mask, settings)
    others = torch.cat([group.pictures[:place], group.pictures[place + 1 :]])
    layer = classifier.first_layer
    weights = edited_weights(classifier.model, done.delta)
    with torch.no_grad():
        hidden, intact = classifier.prefix(others, layer), classifier.prefix(kept, layer)
        right = classifier.suffix(hidden, layer, weights).argmax(dim=-1) == group.true
        before = classifier.suffix(intact, layer).argmax(dim=-1)
        same = classifier.suffix(intact, layer, weights).argmax(dim=-1) == before
    return {
        "success": _PERCENT * float(done.success),
        "generality": _PERCENT * float(right.float().mean()),
        "locality": _PERCENT * float(same.float().mean()),
    }
