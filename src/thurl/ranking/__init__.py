"""Thurstone comparison, fidelity, and the losses made of them: pure functions that every method of thurl shares.

`thurl.ranking.comparison`: from scores to a preference probability, and the fidelity of two probabilities.
`thurl.ranking.losses`: one minus the fidelity as a training loss, for pairs, classes and labels that may be missing.
"""

from thurl.ranking.comparison import fidelity, preference_probability
from thurl.ranking.losses import (
    binary_fidelity_loss,
    class_fidelity_loss,
    expected_level,
    fidelity_loss,
    log_fidelity_loss,
    masked_mean,
    multilabel_fidelity_loss,
    pairwise_fidelity_loss,
)


__all__ = [
    "binary_fidelity_loss",
    "class_fidelity_loss",
    "expected_level",
    "fidelity",
    "fidelity_loss",
    "log_fidelity_loss",
    "masked_mean",
    "multilabel_fidelity_loss",
    "pairwise_fidelity_loss",
    "preference_probability",
]
