"""Where to start lambda: at the value that gives rate and utility gradients of one size."""

from __future__ import annotations

import math

import torch

from thurl.distillation.joint import DistilledSet
from thurl.errors import DataError


__all__ = ["balanced_lambda"]


def balanced_lambda(model: DistilledSet, draws: int = 8) -> float:
    """Ratio of the norms of both gradients on the latents, each the mean over draws.

    Of the mean, since a single gradient of the utility is mostly noise of its network and its real pictures. Model and
    utility are left as they were.

    Args:
        model: with its objective.
        draws: steps that are looked at, other ones than those of the run.

    Raises:
        DataError: a gradient that is 0 or not finite.
    """
    objective = model.objective
    state, weight, steps = objective.utility.state_dict(), objective.weight, objective.steps
    grids = [grid for codec in model.codecs for grid in codec.grids]
    sums = {name: [torch.zeros_like(grid) for grid in grids] for name in ("rate", "utility")}
    try:
        objective.weight = 1.0
        # Numbers beyond the run, which must be soft steps all the same.
        objective.steps = 4 * (steps + draws)
        for step in range(steps, steps + draws):
            terms = model(torch.tensor([step])).terms
            for name, total in sums.items():
                found = torch.autograd.grad(terms[name], grids, retain_graph=name == "rate", allow_unused=True)
                for value, gradient in zip(total, found, strict=True):
                    if gradient is not None:
                        value += gradient
    finally:
        objective.weight, objective.steps = weight, steps
        objective.utility.load_state_dict(state)
        for parameter in model.parameters():
            parameter.grad = None
    norms = [math.sqrt(sum(float(v.double().square().sum()) for v in total)) / draws for total in sums.values()]
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        raise DataError(
            f"gradients of rate and utility have the norms {norms[0]:.3g} and {norms[1]:.3g}; both must be above 0 "
            "and finite to balance them. Set `rate.start`"
        )
    return norms[0] / norms[1]
