"""Which layers to edit: fine-tuning of every window of blocks, feed-forward networks or projections of attention.

"Learning Where to Edit Vision Transformers" (arXiv 2411.01948) chose its three feed-forward networks that way, by the
front of generalisation and locality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from thurl.editing.classifier import Classifier
from thurl.editing.evaluate import EditGroup, Evaluator, averages
from thurl.editing.methods import EditMethod
from thurl.editing.metrics import MacroAverage, pareto_front
from thurl.editing.units import Unit, resolve_attention_outputs, resolve_ffn
from thurl.errors import UsageError


__all__ = ["LayerResult", "layer_windows", "search_layers"]


@dataclass(frozen=True)
class LayerResult:
    """One window.

    Args:
        name: such as `ffn 7-9` or `attention 0-2`, layers from 0.
        averages: over groups, of `thurl.editing.evaluate.averages`.
        on_front: no other window is at least as good in both rates and better in one.
    """

    name: str
    averages: Mapping[str, MacroAverage]
    on_front: bool


def layer_windows(classifier: Classifier, width: int = 3) -> dict[str, tuple[Unit, ...]]:
    """Units of every `width` blocks in a row: feed-forward networks first, then projections of attention.

    Raises:
        UsageError: a width below 1 or above the number of blocks.
    """
    if not 1 <= width <= classifier.depth:
        raise UsageError(f"width is {width}; the model has windows of 1 to {classifier.depth} blocks")
    found: dict[str, tuple[Unit, ...]] = {}
    for kind, resolve in (("ffn", resolve_ffn), ("attention", resolve_attention_outputs)):
        for first in range(classifier.depth - width + 1):
            last = first + width - 1
            found[f"{kind} {first}-{last}"] = tuple(resolve(classifier.model, range(first, last + 1)))
    return found


def search_layers(
    classifier: Classifier,
    groups: Sequence[EditGroup],
    unrelated: torch.Tensor,
    method: EditMethod,
    *,
    edits: int = 5,
    width: int = 3,
    batch_size: int = 64,
) -> list[LayerResult]:
    """Edit with every window and judge it, in the order of `layer_windows`.

    Args:
        groups: failures.
        unrelated: pictures [N, channels, H, W] whose predictions should stay; their rate is `LR_unrelated`.
        method: edits the units of the classifier it is given, such as `FineTuning`.
        edits: of each group.

    Raises:
        UsageError: as `layer_windows` and `Evaluator`.
    """
    results = {}
    for name, units in layer_windows(classifier, width).items():
        evaluator = Evaluator(classifier.with_units(units), groups, {"unrelated": unrelated}, batch_size=batch_size)
        results[name] = averages(evaluator.run(method, edits))
    points = [(found["LR_unrelated"].mean, found["GR"].mean) for found in results.values()]
    front = pareto_front(points)
    return [LayerResult(name, found, index in front) for index, (name, found) in enumerate(results.items())]
