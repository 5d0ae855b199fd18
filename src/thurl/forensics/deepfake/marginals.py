"""The joint distribution over the legal states of a label graph: marginals, the most probable state, partial labels.

"Semantics-Oriented Multitask Learning for DeepFake Detection" (arXiv 2408.16305): every node j has an energy f_j; a
legal state s has the energy `a_s = sum_j s_j f_j` and the probability `softmax(a)_s`; the answer to question j is its
marginal, the sum over the states in which it is on.

Deliberate difference: both a marginal and its complement come as logarithms from sums of their own, in float64, so
that neither rounds to 0 or 1 (the official code stores marginals in float32). Finite for energies of several hundred.
"""

from __future__ import annotations

import torch


__all__ = ["agreeing", "log_marginals", "map_state", "observed_log_likelihood", "state_energies"]


def state_energies(logits: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """`a_s = sum_j s_j f_j`.

    Args:
        logits: (B, n) floating, the energies of the nodes.
        states: (S, n) bool.

    Returns:
        (B, S) float64.

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits.dim() != 2 or states.dim() != 2 or logits.shape[1] != states.shape[1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and states {tuple(states.shape)}: they must have the shapes (B, n), (S, n)"
        )
    return logits.double() @ states.to(logits.device).double().T


def log_marginals(logits: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of the marginals and of their complements.

    Args:
        logits: (B, n) floating.
        states: (S, n) bool, in which every node is on somewhere and off somewhere.

    Returns:
        `log P(node on)` and `log P(node off)`, each (B, n) float64, at most 0.
    """
    energies = state_energies(logits, states)
    whole = energies.logsumexp(dim=1, keepdim=True)
    on, off = [], []
    for column in states.to(logits.device).T:
        # Filled and not picked out, which would make a GPU wait for the CPU to count.
        on.append(energies.masked_fill(~column, -torch.inf).logsumexp(dim=1))
        off.append(energies.masked_fill(column, -torch.inf).logsumexp(dim=1))
    # Rounding may carry the logarithm of a probability of 1 above 0.
    return (torch.stack(on, dim=1) - whole).clamp_max(0), (torch.stack(off, dim=1) - whole).clamp_max(0)


def map_state(logits: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The most probable legal state of each row, the first of several equal ones.

    Args:
        logits: (B, n) floating.
        states: (S, n) bool.

    Returns:
        (B, n) bool.
    """
    return states.to(logits.device)[state_energies(logits, states).argmax(dim=1)]


def agreeing(labels: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Which states agree with the known labels of each row.

    Args:
        labels: (B, n), 1, 0 and negative where unknown.
        states: (S, n) bool.

    Returns:
        (B, S) bool.
    """
    on = states.to(labels.device).double()
    against = (labels == 1).double() @ (1 - on).T + (labels == 0).double() @ on.T
    return against == 0


def observed_log_likelihood(logits: torch.Tensor, labels: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Logarithm of the probability of the known labels, whatever the unknown ones are.

    Args:
        logits: (B, n) floating.
        labels: (B, n), 1, 0 and negative where unknown.
        states: (S, n) bool.

    Returns:
        (B,) float64, at most 0; exactly 0, with zero gradients, where nothing is known.

    Raises:
        ValueError: labels with which no legal state agrees; names the rows.
    """
    energies = state_energies(logits, states)
    agree = agreeing(labels.to(logits.device), states)
    if not bool(agree.any(dim=1).all()):
        rows = (~agree.any(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"labels in row {', '.join(map(str, rows[:5]))}: no legal state agrees with them")
    return energies.masked_fill(~agree, -torch.inf).logsumexp(dim=1) - energies.logsumexp(dim=1)
