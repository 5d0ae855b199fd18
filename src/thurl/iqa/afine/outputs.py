"""What `AFineModel` returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from thurl.training.method_output import MethodOutput


__all__ = ["AFineOutput"]


@dataclass
class AFineOutput(MethodOutput):
    """All stages of B comparisons, each (B,), float32 at least. Lower is better in every score.

    `loss`, `terms` and `present` belong to whoever trains the model and are None here.

    Attributes:
        naturalness_ref_raw, naturalness_dis_raw: unbounded naturalness of both pictures.
        naturalness_ref, naturalness_dis: N, in (-2, 2).
        fidelity_raw: in [0, 2), 0 for equal pictures.
        fidelity: F, in (-2, 2).
        adapter_weight: lambda, above 0.
        afine: D, not bounded.
        afine_scaled: D_s, in [0, 100].
        past_turning_point: truth values, where D is not to be trusted (`thurl.iqa.afine.mathematics`).
    """

    naturalness_ref_raw: torch.Tensor | None = None
    naturalness_dis_raw: torch.Tensor | None = None
    naturalness_ref: torch.Tensor | None = None
    naturalness_dis: torch.Tensor | None = None
    fidelity_raw: torch.Tensor | None = None
    fidelity: torch.Tensor | None = None
    adapter_weight: torch.Tensor | None = None
    afine: torch.Tensor | None = None
    afine_scaled: torch.Tensor | None = None
    past_turning_point: torch.Tensor | None = None
