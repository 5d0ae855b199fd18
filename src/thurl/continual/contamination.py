"""How much of a pool the encoder knows already: accuracy per class without any continual learning.

A sequence is hard because its classes are alike, or because the encoder never saw their kind. The two are told apart
by how well the frozen encoder tells a class from the rest of the pool: nearest neighbours for any encoder, its own
words for CLIP.
"""

from __future__ import annotations

import torch

from thurl.continual.class_data import ClassData
from thurl.continual.ridge import cosine_logits
from thurl.errors import UsageError


__all__ = ["class_contamination", "knn_accuracy", "zero_shot_accuracy"]


def class_contamination(
    data: ClassData, text: torch.Tensor | None = None, *, split: str = "val"
) -> dict[str, dict[str, float]]:
    """What a sequence file says of each class: `knn`, see `knn_accuracy`, and with text features `zero_shot`, see
    `zero_shot_accuracy`.
    """
    found = {"knn": knn_accuracy(data, split=split)}
    if text is not None:
        found["zero_shot"] = zero_shot_accuracy(data, text, split=split)
    return {uid: {name: values[uid] for name, values in found.items()} for uid in data.classes}


def knn_accuracy(data: ClassData, *, neighbours: int = 5, split: str = "val") -> dict[str, float]:
    """Share of each class's `split` that its nearest training samples of the whole pool name rightly, in [0, 1].

    Nearest by cosine; the majority wins, and of equal ones that with the nearer samples.

    Args:
        neighbours: at least 1, at most the training samples of the pool.

    Raises:
        UsageError: a wrong number of neighbours, or no features.
    """
    everything = range(len(data.classes))
    train, held = data.rows(everything, "train"), data.rows(everything, split)
    if not 1 <= neighbours <= len(train):
        raise UsageError(f"neighbours is {neighbours}; it must be 1 to {len(train)}, the training samples")
    known, found = data.frozen(train), []
    for rows in held.split(1024):
        near = cosine_logits(data.frozen(rows), known).topk(neighbours, dim=1)
        votes = torch.zeros(len(rows), len(data.classes), dtype=torch.float64)
        # A vote counts 1; the closeness, below 1 over all votes, decides between equal numbers of them.
        worth = 1 + (near.values + 1) / (4 * neighbours)
        votes.scatter_add_(1, data.labels[train][near.indices], worth)
        found.append(votes.argmax(dim=1))
    return _per_class(data, held, torch.cat(found))


def zero_shot_accuracy(data: ClassData, text: torch.Tensor, *, split: str = "val") -> dict[str, float]:
    """Share of each class's `split` whose nearest text by cosine is that of the class, in [0, 1].

    Args:
        text: float [C, D], a text feature for each class of the pool, in its order.

    Raises:
        UsageError: another number or size of text features.
    """
    rows = data.rows(range(len(data.classes)), split)
    pictures = data.frozen(rows)
    if tuple(text.shape) != (len(data.classes), pictures.shape[1]):
        raise UsageError(
            f"text features are {tuple(text.shape)}; there must be {(len(data.classes), pictures.shape[1])}"
        )
    return _per_class(data, rows, cosine_logits(pictures, text).argmax(dim=1))


def _per_class(data: ClassData, rows: torch.Tensor, predicted: torch.Tensor) -> dict[str, float]:
    hits = (predicted == data.labels[rows]).double()
    labels = data.labels[rows]
    return {uid: float(hits[labels == index].mean()) for index, uid in enumerate(data.classes)}
