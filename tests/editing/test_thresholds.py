"""One threshold for all pictures: the density is a mean, and a picture with more high scores gets more neurons."""

from __future__ import annotations

import pytest
import torch

from thurl.editing.classifier import as_classifier
from thurl.editing.thresholds import above, common_threshold
from thurl.errors import UsageError

from .editing_models import pictures, small_model


class Scores:
    """Uniform scores of each picture, pushed up by its label."""

    def __init__(self, shape):
        self.soft = torch.rand(shape, generator=torch.Generator().manual_seed(0))

    def scores(self, classifier, pixel_values, labels):
        return (self.soft + int(labels)) / 3


def test_the_density_is_the_mean_over_pictures():
    classifier = as_classifier(small_model("timm"))
    source = Scores(classifier.mask_shape)
    batches = [(pictures(2), torch.tensor([0, 1])), (pictures(1), torch.tensor([2]))]
    threshold = common_threshold(source, classifier, batches, 0.4)
    kept = [float(above(source.scores(None, None, label), threshold).float().mean()) for label in (0, 1, 2)]
    assert kept[0] == pytest.approx(1 / source.soft.numel()) and 0.1 < kept[1] < 0.3 and kept[2] == 1.0
    total = 3 * source.soft.numel()
    assert sum(kept[1:]) / 3 == pytest.approx(0.4, abs=1 / total)


def test_a_mask_is_never_empty_and_ties_are_kept():
    soft = torch.tensor([[0.2, 0.9, 0.9, 0.1]])
    assert above(soft, 0.95).tolist() == [[False, True, True, False]]
    assert above(soft, 0.2).tolist() == [[True, True, True, False]]


def test_bad_input():
    classifier = as_classifier(small_model("timm"))
    source = Scores(classifier.mask_shape)
    with pytest.raises(UsageError, match="no pictures"):
        common_threshold(source, classifier, [], 0.1)
    with pytest.raises(UsageError, match="density 0"):
        common_threshold(source, classifier, [], 0)
    source.soft[0, 0] = float("nan")
    with pytest.raises(UsageError, match="1 NaN"):
        common_threshold(source, classifier, [(pictures(1), torch.tensor([0]))], 0.1)
    with pytest.raises(UsageError, match="1 NaN"):
        above(source.soft, 0.1)
