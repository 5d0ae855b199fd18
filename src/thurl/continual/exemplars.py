"""Samples that stand for a class: iCaRL's herding and its classifier (arXiv 1611.07725, algorithms 1 and 4).

Features have length 1, and so have means of features, as in the paper. Float64 throughout.
"""

from __future__ import annotations

import numpy as np
import torch

from thurl.continual.ridge import class_means


__all__ = ["exemplar_means", "herding", "unit_rows"]


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Each row [D] divided by its Euclidean length (1e-12 at least), float64 [N, D]."""
    wide = features.double()
    return wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-12)


def herding(features: torch.Tensor, count: int) -> torch.Tensor:
    """Rows whose mean follows the mean of all rows, the best first: int64 [min(count, N)] without repetition.

    Row k is the one, of those not chosen yet, that brings the mean of the k chosen nearest to the mean of all. Among
    rows that are equally near, to the last bit of float64, the first in order is taken. The paper's formula may choose
    a sample twice; here none is, as in PyCIL, so that a class keeps what its budget allows.

    Args:
        features: of one class, [N, D]; brought to length 1 here.
        count: 0 or more.
    """
    rows = unit_rows(features).numpy()
    mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
    chosen: list[int] = []
    total = np.zeros(rows.shape[1])
    free = np.ones(len(rows), dtype=bool)
    for size in range(1, min(count, len(rows)) + 1):
        # Row by row, not as a matrix product, which may round equal rows differently.
        apart = np.square(mean - (total + rows) / size).sum(axis=1)
        chosen.append(int(np.where(free, apart, np.inf).argmin()))
        free[chosen[-1]] = False
        total = total + rows[chosen[-1]]
    return torch.tensor(chosen, dtype=torch.int64)


def exemplar_means(features: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Mean of the unit features of each class, brought to length 1, float64 [C, D].

    The nearest of them is the one with the greatest cosine (`thurl.continual.ridge.cosine_logits`): the squared
    distance of unit vectors is 2 - 2 cos. Equally near ones: the class that came first.

    Args:
        features: [N, D] of the exemplars.
        labels: class number of each row, int64 [N].
        classes: class numbers wanted, int64 [C], each with a row at least.
    """
    return unit_rows(class_means(unit_rows(features), labels, classes))
