"""Losses of the three tasks from the energies of a batch and its labels, some of which may be unknown.

"Semantics-Oriented Multitask Learning for DeepFake Detection" (arXiv 2408.16305): per task, the mean fidelity loss of
the marginals over the batch and the nodes of its level. Deliberate differences:

- An unknown label takes part in nothing; the mean is over the known ones. The official loss takes all as known.
- Marginals and complements come in logarithms. The official constant of 1e-8 below the roots, which makes a perfect
  loss slightly negative, is an option (`eps`).
- The fidelity loss is bounded, so a confidently wrong face gives almost no gradient. Cross-entropy or the likelihood
  of the known labels can be mixed in; both are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from thurl.forensics.deepfake.marginals import log_marginals, observed_log_likelihood
from thurl.ranking import log_fidelity_loss, masked_mean


__all__ = ["known_tasks", "likelihood_terms", "task_terms"]


def task_terms(
    logits: torch.Tensor,
    labels: torch.Tensor,
    states: torch.Tensor,
    tasks: Mapping[str, slice],
    *,
    eps: float = 0.0,
    cross_entropy: float = 0.0,
    likelihood: float = 0.0,
) -> dict[str, torch.Tensor]:
    """One loss per task.

    Args:
        logits: (B, n) floating, the energies of the nodes.
        labels: (B, n) integers, 1, 0 and negative where unknown.
        states: (S, n) bool, the legal states.
        tasks: name to columns, from the top of the graph.
        eps: added inside the roots of the fidelity (official: 1e-8).
        cross_entropy: share of the cross-entropy of the marginals, in [0, 1].
        likelihood: share of `likelihood_terms`, in [0, 1]; fidelity has what the two leave.

    Returns:
        task to scalar float64; 0 with a graph where no label of a task is known.

    Raises:
        ValueError: shapes that do not fit; with `likelihood`, labels that no legal state has.
    """
    if labels.shape != logits.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and logits {tuple(logits.shape)}: both must have one shape")
    labels = labels.to(logits.device)
    log_p, log_not_p = log_marginals(logits, states)
    chained = likelihood_terms(logits, labels, states, tasks) if likelihood else {}
    terms = {}
    for task, columns in tasks.items():
        on, off, own = log_p[:, columns], log_not_p[:, columns], labels[:, columns]
        share = 1.0 - cross_entropy - likelihood
        term = share * log_fidelity_loss(on, off, own, eps=eps)
        if cross_entropy:
            term = term + cross_entropy * masked_mean(-torch.where(own == 1, on, off), own >= 0)
        if likelihood:
            term = term + likelihood * chained[task]
        terms[task] = term
    return terms


def likelihood_terms(
    logits: torch.Tensor, labels: torch.Tensor, states: torch.Tensor, tasks: Mapping[str, slice]
) -> dict[str, torch.Tensor]:
    """Minus the log-likelihood of the known labels, split over the tasks by the chain rule.

    A task's share is `-log P(its labels | labels of the tasks above)`; the shares of a face add up to the likelihood
    of all its known labels under the joint distribution. Each is divided by the number of known labels of its task in
    the batch.

    Args:
        logits, labels, states, tasks: as `task_terms` takes them.

    Returns:
        task to scalar float64, at least 0 but for rounding, in nats per known label.

    Raises:
        ValueError: labels that no legal state has; names the rows.
    """
    seen = torch.full_like(labels, -1)
    before = torch.zeros(len(labels), dtype=torch.float64, device=logits.device)
    terms = {}
    for task, columns in tasks.items():
        seen[:, columns] = labels[:, columns]
        until = observed_log_likelihood(logits, seen, states)
        count = (labels[:, columns] >= 0).sum().clamp_min(1)
        terms[task] = (before - until).sum() / count
        before = until
    return terms


def known_tasks(labels: torch.Tensor, tasks: Mapping[str, slice]) -> dict[str, torch.Tensor]:
    """Which tasks a batch has labels for, truth values as tensors without dimensions.

    Args:
        labels: (B, n), negative where unknown.
        tasks: name to columns.
    """
    return {task: (labels[:, columns] >= 0).any() for task, columns in tasks.items()}
