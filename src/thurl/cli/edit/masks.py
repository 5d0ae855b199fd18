"""What stands behind `--mask` and `--hypernetwork`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch

    from thurl.editing.classifier_files import LoadedClassifier
    from thurl.editing.masks import MaskSource
    from thurl.editing.meta_training import LearnedMask

__all__ = ["MASKS", "learned_mask", "predicted_batches", "source_of"]

MASKS = ("grad", "random", "mean", "learned", "hybrid")


def learned_mask(folder: Path, classifier: Any, device: str, force: bool) -> LearnedMask:
    """A hypernetwork of the classifier and its units, on a device."""
    from thurl.editing.hypernetwork import load_hypernetwork
    from thurl.editing.meta_training import LearnedMask

    labels = [unit.label for unit in classifier.units]
    return LearnedMask(load_hypernetwork(folder, classifier.fingerprint(), labels, force).to(device))


def source_of(
    mask: str,
    hypernetwork: Path | None,
    mean_over: Path | None,
    seed: int,
    loaded: LoadedClassifier,
    classifier: Any,
    device: str,
    batch_size: int,
    force: bool,
) -> MaskSource:
    """What scores the neurons for `--mask`."""
    from thurl.editing.masks import FixedMask, GradientMask, HybridMask, RandomMask, mean_scores

    if hypernetwork is None:
        return RandomMask(seed) if mask == "random" else GradientMask()
    learned = learned_mask(hypernetwork, classifier, device, force)
    if mask == "hybrid":
        return HybridMask((learned, GradientMask()))
    if mean_over is None:
        return learned
    pairs = predicted_batches(mean_over, loaded, classifier, batch_size, device)
    return FixedMask(mean_scores(learned, classifier, pairs))


def predicted_batches(
    folder: Path, loaded: LoadedClassifier, classifier: Any, batch_size: int, device: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pictures without labels with what the model says of them, which stands for the labels."""
    from thurl.editing.edit_inputs import folder_batches

    _, batches = folder_batches(folder, loaded.preprocessing, batch_size, device)
    return [(batch, classifier.logits(batch).argmax(dim=-1).detach()) for batch in batches]
