"""As many neurons as a picture needs: one threshold for all pictures in place of one density.

Ours. The paper ("Learning Where to Edit Vision Transformers", arXiv 2411.01948) keeps the same number of neurons for
every picture, whatever its soft mask says of their number. Here the threshold is set once, on pictures at hand such as
pseudo-failures, so that their masks have a density on average; a picture with more high scores gets more neurons.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from thurl.editing.classifier import Classifier
from thurl.editing.masks import MaskSource, neurons_of
from thurl.errors import UsageError


__all__ = ["above", "common_threshold"]


def common_threshold(
    source: MaskSource,
    classifier: Classifier,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    density: float,
) -> float:
    """Score that the given share of all neurons of all pictures reaches, each picture scored alone.

    Scores that tie with it, such as those saturated at the clamp of a hypernetwork, are above it, too.

    Args:
        source: of the soft masks.
        batches: pairs of pictures [B, channels, H, W] and labels int64 [B].
        density: mean over the pictures, in (0, 1].

    Raises:
        UsageError: a density out of range, no pictures, or scores that are NaN.
    """
    if not 0 < density <= 1:
        raise UsageError(f"density {density}: the share of neurons to edit must be in (0, 1]")
    found = [
        source.scores(classifier, pixel_values[index : index + 1], labels[index : index + 1]).flatten().cpu()
        for pixel_values, labels in batches
        for index in range(len(labels))
    ]
    if not found:
        raise UsageError("no pictures to set the threshold on; give at least one")
    scores = torch.cat(found)
    if scores.isnan().any():
        raise UsageError(f"soft masks with {int(scores.isnan().sum())} NaN scores; every neuron needs a number")
    return float(scores.topk(neurons_of(density, len(scores))).values[-1])


def above(soft: torch.Tensor, threshold: float) -> torch.Tensor:
    """Neurons with at least this score; the best one where there is none, so that a mask is never empty.

    Args:
        soft: float [T, M].
        threshold: of `common_threshold`.

    Returns:
        bool [T, M].

    Raises:
        UsageError: scores that are NaN.
    """
    if soft.isnan().any():
        raise UsageError(f"a soft mask with {int(soft.isnan().sum())} NaN scores; every neuron needs a number")
    return soft >= min(threshold, float(soft.max()))
