"""Two-class metrics against scikit-learn, ties and empty sides included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from thurl.binary_metrics import average_precision, roc_auc


@pytest.mark.parametrize("levels", [None, 5, 1], ids=["no ties", "many ties", "all equal"])
@pytest.mark.parametrize(("n", "m"), [(40, 60), (1, 30), (30, 1)])
def test_values_are_those_of_scikit_learn(n, m, levels):
    rng = np.random.default_rng([n, m])
    high, low = rng.normal(size=n) + 0.5, rng.normal(size=m)
    if levels:
        high, low = (np.clip(np.rint(side), 0, levels - 1) for side in (high, low))
    labels, scores = np.r_[np.ones(n), np.zeros(m)], np.r_[high, low]
    assert roc_auc(high, low) == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)
    assert average_precision(high, low) == pytest.approx(average_precision_score(labels, scores), rel=1e-12)


def test_extremes_and_undefined_values():
    assert roc_auc([2, 3], [0, 1]) == 1 and roc_auc([0, 1], [2, 3]) == 0 and roc_auc([1], [1]) == 0.5
    assert average_precision([2, 3], [0, 1]) == 1 and average_precision([1], []) == 1
    assert roc_auc([math.inf], [-math.inf, 0]) == 1
    for high, low in (([], [1]), ([1], []), ([math.nan], [1]), ([1], [math.nan])):
        assert math.isnan(roc_auc(high, low))
    assert math.isnan(average_precision([], [1])) and math.isnan(average_precision([1], [math.nan]))
