"""Null-space protection: an edit that leaves what the edited layers do to given activations alone.

Paper: "AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models" (arXiv 2410.02355). A change D of a
weight W leaves (W + D) x = W x for every x when D x = 0, so each update is projected onto the null space of the
covariance of the protected inputs. Activations of pictures fill all directions a little; what counts as null space is
a threshold on the eigenvalues. Different from the paper: it is relative to the largest eigenvalue, so that it does
not depend on the scale of the activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from thurl.editing.classifier import Classifier
from thurl.editing.delta import touched
from thurl.editing.units import Unit
from thurl.errors import UsageError


__all__ = ["Protection", "null_space_projector", "protect"]


@dataclass(frozen=True, eq=False)
class Protection:
    """Projectors of the updates of an edit.

    Args:
        mask: bool [T, M], of the edit they are for.
        projectors: float64 [inputs, inputs] by label of the unit: of all inputs of its rows, or of its touched
            columns.
        free: directions that are left to each unit, of all its inputs: the rank of its projector.
    """

    mask: torch.Tensor
    projectors: Mapping[str, torch.Tensor]
    free: Mapping[str, int]

    def check(self, mask: torch.Tensor) -> None:
        """Raise `UsageError` unless it was made for this mask."""
        if not torch.equal(mask.cpu(), self.mask):
            raise UsageError("the protection was made for another mask; make it for the mask of the edit")


def null_space_projector(covariance: torch.Tensor, threshold: float) -> tuple[torch.Tensor, int]:
    """Projector onto the eigenvectors with an eigenvalue of at most `threshold` times the largest.

    Args:
        covariance: X^T X of inputs X [n, D], symmetric float [D, D].
        threshold: in [0, 1); 0 keeps only what is exactly null, which rounding rarely leaves.

    Returns:
        float64 [D, D], symmetric and idempotent, and its rank.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    kept = vectors[:, values <= threshold * values[-1].clamp(min=0)]
    return kept @ kept.T, kept.shape[1]


def protect(
    classifier: Classifier, batches: Iterable[torch.Tensor], mask: torch.Tensor, threshold: float = 1e-2
) -> Protection:
    """Protect what the touched layers do to some pictures, such as a locality set.

    Args:
        batches: pictures [B, channels, H, W] each; all tokens of them are protected.
        mask: bool [T, M], of the edit.
        threshold: see `null_space_projector`; higher leaves an edit more freedom and protects less.

    Raises:
        UsageError: a threshold out of range, no pictures, a mask of another shape, or a unit with no direction left.
    """
    if not 0 <= threshold < 1:
        raise UsageError(f"threshold {threshold}: must be in [0, 1)")
    if tuple(mask.shape) != classifier.mask_shape:
        raise UsageError(f"a mask of shape {list(mask.shape)}; the units need {list(classifier.mask_shape)}")
    chosen = touched(classifier.units, mask)
    sums: dict[str, torch.Tensor] = {}

    def add(unit: Unit, neurons: torch.Tensor) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            if unit.axis == 1:
                rows = rows.index_select(-1, neurons.to(rows.device))
            product = (rows.T @ rows).cpu()
            sums[unit.label] = sums[unit.label] + product if unit.label in sums else product

        return hook

    with torch.no_grad(), ExitStack() as stack:
        for unit, neurons in chosen:
            stack.callback(classifier.linear[unit.parameter].register_forward_pre_hook(add(unit, neurons)).remove)
        for pixel_values in batches:
            classifier.logits(pixel_values)
    if not sums:
        raise UsageError("nothing to protect; give at least one picture and a mask with a neuron")
    projectors, free = {}, {}
    for label, covariance in sums.items():
        projectors[label], free[label] = null_space_projector(covariance, threshold)
    bound = [label for label, rank in free.items() if not rank]
    if bound:
        raise UsageError(
            f"no direction is left to {', '.join(bound)} below {threshold} of the largest eigenvalue; raise the "
            "threshold, protect fewer pictures or edit more neurons"
        )
    return Protection(mask.cpu().clone(), projectors, free)
