"""Herding against brute force, its ties, and the classifier of nearest exemplar means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thurl.continual.exemplars import exemplar_means, herding, unit_rows
from thurl.continual.ridge import cosine_logits


def by_force(features, count):
    """Algorithm 4 of iCaRL as it is written, over samples not chosen yet."""
    rows = features.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    mean, chosen = rows.mean(axis=0), []
    for k in range(1, min(count, len(rows)) + 1):
        left = [n for n in range(len(rows)) if n not in chosen]
        distance = [np.linalg.norm(mean - (rows[n] + sum(rows[j] for j in chosen)) / k) for n in left]
        chosen.append(left[int(np.argmin(distance))])
    return chosen


@pytest.mark.parametrize("seed", range(8))
def test_herding_is_the_search_over_all_samples(seed):
    features = torch.randn(13, 5, generator=torch.Generator().manual_seed(seed)) + 0.5
    assert herding(features, 6).tolist() == by_force(features, 6)
    everything = herding(features, 99)
    assert everything.tolist() == by_force(features, 99) and sorted(everything.tolist()) == list(range(13))
    # A smaller budget keeps the beginning of a larger one; lengths do not matter.
    assert herding(features, 3).tolist() == everything.tolist()[:3]
    lengths = 2.0 ** torch.randint(-2, 3, (13, 1), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(herding(features * lengths, 13), everything)


def test_herding_by_hand_and_its_ties():
    # The mean of (1,0), (0,1), (0,1) and (1,0) points at 45 degrees: all are equally far, the first one is taken, and
    # then the first of the other kind balances it.
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert herding(features, 4).tolist() == [0, 1, 2, 3]
    assert herding(features[[1, 0, 3, 2]], 4).tolist() == [0, 1, 2, 3]
    # Three copies of one sample and the one nearest to the mean.
    assert herding(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 1).tolist() == [2]
    assert herding(features, 0).tolist() == [] and herding(features[:0], 3).tolist() == []


def test_herding_beats_the_first_samples():
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    units = unit_rows(features)
    near = [float((units[rows].mean(0) - units.mean(0)).norm()) for rows in (herding(features, 10), torch.arange(10))]
    assert near[0] < 0.25 * near[1]


def test_the_nearest_mean_is_the_greatest_cosine():
    generator = torch.Generator().manual_seed(3)
    features, labels = torch.randn(12, 4, generator=generator), torch.tensor([7, 2, 5] * 4)
    classes = torch.tensor([5, 7, 2])
    means = exemplar_means(features, labels, classes)
    torch.testing.assert_close(means.norm(dim=1), torch.ones(3, dtype=torch.float64))
    by_hand = unit_rows(features[labels == 7]).mean(0)
    torch.testing.assert_close(means[1], by_hand / by_hand.norm())
    queries = torch.randn(40, 4, generator=generator)
    assert torch.equal(cosine_logits(queries, means).argmax(1), torch.cdist(unit_rows(queries), means).argmin(1))
