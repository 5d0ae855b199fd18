"""Named losses of both EXIF methods, from scores or logits of a batch and its labels.

"Self-Supervised Learning for Detecting AI-Generated Faces as Anomalies" (arXiv 2501.02207): `ordinal_terms`.
"Bi-Level Optimization for Self-Supervised AI-Generated Face Detection" (BLADES, arXiv 2507.22824): `blades_terms`.

Labels are a mapping from task (`thurl.forensics.exif.tasks.TASKS`) to a tensor over the batch; what a picture lacks
is NaN or -1, a task that the batch lacks altogether may be left out. Either way its term is 0 and its gradient too.
The official code needs every tag of every picture, hence drops most photographs.

A manipulated picture keeps the tags of its source and takes part in all losses, as officially.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, OFFICIAL_COLUMNS, ORDINAL_TASKS, columns_of
from thurl.ranking import (
    binary_fidelity_loss,
    class_fidelity_loss,
    expected_level,
    multilabel_fidelity_loss,
    pairwise_fidelity_loss,
)


if TYPE_CHECKING:
    import torch

__all__ = ["HEADS", "blades_terms", "gathered_labels", "ordinal_terms", "present_tasks", "total_loss"]

HEADS = (*ORDINAL_TASKS, "coarse_face")
"""Order of the five heads' columns."""

RANK_SCALE = 2**0.5 / 2


def ordinal_terms(
    scores: torch.Tensor, labels: Mapping[str, torch.Tensor], *, rank_scale: float = RANK_SCALE
) -> dict[str, torch.Tensor]:
    """The five losses of the one-class method: ranking of four settings, two-way fidelity of the face task.

    Args:
        scores: (N, 5), columns as in `HEADS`; the last is the logit of "manipulated".
        labels: per task (N,): settings in any unit that rises with the setting, NaN if absent; `coarse_face` 0
            photographic, 1 manipulated, -1 if unknown. Other entries are left alone.
        rank_scale: c of `p = (1 + erf((s_i - s_j) / c)) / 2`.

    Returns:
        task to scalar, in the order of `HEADS`; 0 where no label is known.

    Raises:
        ValueError: shapes that do not fit.
    """
    if scores.dim() != 2 or scores.shape[1] != len(HEADS):
        raise ValueError(f"scores {tuple(scores.shape)}: the shape (N, {len(HEADS)}) is needed, columns {HEADS}")
    terms = {}
    for column, task in enumerate(HEADS):
        own = scores[:, column]
        label = _label(labels, task, (len(own),))
        if label is None:
            terms[task] = _nothing(own)
        elif task == "coarse_face":
            terms[task] = binary_fidelity_loss(own, label)
        else:
            terms[task] = pairwise_fidelity_loss(own, label, scale=rank_scale)
    return terms


def blades_terms(
    logits: torch.Tensor,
    labels: Mapping[str, torch.Tensor],
    *,
    columns: Mapping[str, int] = OFFICIAL_COLUMNS,
    rank_scale: float = RANK_SCALE,
    focal_gamma: float = 2.0,
) -> dict[str, torch.Tensor]:
    """The eleven losses of BLADES, each from its own columns of the joint embedding's logits.

    | task | loss |
    |---|---|
    | ordinal | ranking by the expected level |
    | category | class fidelity times `(1 - p_true)^focal_gamma` |
    | coarse_face | class fidelity |
    | fine_face | mean of the regions' two-way fidelities |

    Args:
        logits: (N, sum of the widths).
        labels: per task (N,), `fine_face` (N, R) with at least as many regions as the model has columns: three labels
            (mouth, eye, nose) serve a model with the first two regions. See `thurl.forensics.exif.tasks`.
        columns: width per task, in the order of the columns.
        rank_scale: c of `p = (1 + erf((s_i - s_j) / c)) / 2`.
        focal_gamma: exponent of the focal factor.

    Returns:
        task to scalar, in the order of `columns`; 0 where no label is known.

    Raises:
        ValueError: shapes that do not fit.
    """
    total = sum(columns.values())
    if logits.dim() != 2 or logits.shape[1] != total:
        raise ValueError(f"logits {tuple(logits.shape)}: the shape (N, {total}) is needed, columns {dict(columns)}")
    terms = {}
    for task, place in columns_of(columns).items():
        own = logits[:, place]
        if task == "fine_face":
            label = _label(labels, task, (len(own), columns[task]))
        else:
            label = _label(labels, task, (len(own),))
        if label is None:
            terms[task] = _nothing(own)
        elif task in ORDINAL_TASKS:
            terms[task] = pairwise_fidelity_loss(expected_level(own), label, scale=rank_scale)
        elif task in CATEGORICAL_TASKS:
            terms[task] = class_fidelity_loss(own, label, gamma=focal_gamma)
        elif task == "coarse_face":
            terms[task] = class_fidelity_loss(own, label)
        else:
            terms[task] = multilabel_fidelity_loss(own, label)
    return terms


def present_tasks(labels: Mapping[str, torch.Tensor], tasks: Iterable[str]) -> dict[str, torch.Tensor]:
    """Which tasks a batch has labels for: two for a ranking, which needs a pair, one for the others.

    A task that is not there must not be rewarded by the bi-level step.

    Args:
        labels: as the losses take them.
        tasks: names to look for.

    Returns:
        task to a truth value, a tensor without dimensions.
    """
    import torch

    found = {}
    for task in tasks:
        label = labels.get(task)
        if label is None:
            found[task] = torch.zeros((), dtype=torch.bool)
            continue
        # Settings may be anything that can be compared; classes and regions are negative where unknown.
        known = ~label.isnan() if task in ORDINAL_TASKS and label.is_floating_point() else label >= 0
        found[task] = known.sum() >= (2 if task in ORDINAL_TASKS else 1)
    return found


def gathered_labels(
    scores: torch.Tensor, labels: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores and labels of the batches of all processes; gradients flow back to where a row came from.

    Every process must call it, with the same tasks.

    Args:
        scores: (N, columns).
        labels: task to (N,) or (N, regions).
    """
    from thurl.training.gather import gather_with_gradient

    if not labels:
        return gather_with_gradient(scores), {}
    tasks = list(labels)
    together = gather_with_gradient(scores, *(labels[task] for task in tasks))
    return together[0], dict(zip(tasks, together[1:], strict=True))


def total_loss(
    terms: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor | float] | None = None
) -> torch.Tensor:
    """Weighted sum of named losses, scalar.

    Args:
        terms: task to scalar; at least one.
        weights: task to weight; 1 for every task when `None`, and for a task that is not named.
    """
    weights = weights or {}
    values = [weights.get(task, 1.0) * term for task, term in terms.items()]
    return sum(values[1:], start=values[0])


def _label(labels: Mapping[str, torch.Tensor], task: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    label = labels.get(task)
    if label is None:
        return None
    if len(shape) == 2 and label.dim() == 2 and label.shape[1] > shape[1]:
        label = label[:, : shape[1]]
    if tuple(label.shape) != shape:
        raise ValueError(f"labels of {task} have the shape {tuple(label.shape)}, the scores need {shape}")
    return label


def _nothing(scores: torch.Tensor) -> torch.Tensor:
    """Zero that depends on the scores, with a gradient of exact zeros."""
    return scores.float()[:0].sum()
