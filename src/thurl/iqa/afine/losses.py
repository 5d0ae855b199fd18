"""Losses of A-FINE's three stages: fidelity of pairwise preferences, on scores of which LESS is better.

Paper: arXiv 2503.11221. `P(x1 better than x2) = Phi((u2 - u1) / sqrt(2))`; the loss of a pair is that of
`thurl.ranking.fidelity_loss`, slightly negative at its best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thurl.ranking import fidelity_loss, preference_probability


if TYPE_CHECKING:
    import torch


__all__ = ["TERMS", "pair_loss", "stage_terms"]

TERMS = {
    "naturalness": ("first_second", "first_reference", "second_reference"),
    "fidelity": ("first_second",),
    "adapter": ("first_second",),
}
"""Loss terms of each stage; all have the weight 1."""


def pair_loss(u1: torch.Tensor, u2: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Mean fidelity loss of pairs.

    Args:
        u1, u2: (B,) scores, lower is better, any floating dtype.
        g: (B,) 1 where the first is better, 0.5 equal, 0 worse; NaN: unknown, takes part in nothing.

    Returns:
        scalar, float32 at least; 0 with a graph when no label is known.
    """
    p, not_p = (preference_probability(a, b, 1.0, 1.0, eps=0.0) for a, b in ((u2, u1), (u1, u2)))
    return fidelity_loss(p, g, complement=not_p)


def stage_terms(
    u1: torch.Tensor,
    u2: torch.Tensor,
    reference: torch.Tensor | None,
    g12: torch.Tensor,
    g1r: torch.Tensor | None = None,
    g2r: torch.Tensor | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss terms of a batch, and which of them have a label in it.

    Args:
        u1, u2: (B,) scores of the two images: raw naturalness, raw fidelity, or D.
        reference: (B,) score of the reference (first stage only), `None` otherwise.
        g12, g1r, g2r: (B,) labels, NaN where unknown.

    Returns:
        terms by the names in `TERMS`, and truth values of the same names.
    """
    pairs = {"first_second": (u1, u2, g12)}
    if reference is not None and g1r is not None and g2r is not None:
        pairs["first_reference"] = (u1, reference, g1r)
        pairs["second_reference"] = (u2, reference, g2r)
    terms = {name: pair_loss(*pair) for name, pair in pairs.items()}
    return terms, {name: (~pair[2].isnan()).any() for name, pair in pairs.items()}
