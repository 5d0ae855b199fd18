"""Budgets of locality, and edits one after another."""

from __future__ import annotations

import copy

import pytest
import torch

from thurl.editing.classifier import as_classifier
from thurl.editing.delta import apply_delta, revert_delta
from thurl.editing.edit import EditSettings, edit
from thurl.editing.masks import GradientMask, binarise, gradient_scores
from thurl.editing.search import Locality, densest_within
from thurl.editing.sequence import edit_in_sequence
from thurl.errors import UsageError

from .editing_models import pictures, small_model


FAST = EditSettings(rate=4e-3, max_steps=8, stop_loss=0.5)


@pytest.fixture(scope="module")
def base():
    classifier = as_classifier(small_model("timm"))
    images = pictures(64, seed=1)
    failing = images[:1]
    label = classifier.logits(failing).argsort(dim=-1)[:, -2]
    return classifier, failing, label, [images[1:30], images[30:]]


def test_locality_is_the_share_of_predictions_that_stay(base):
    classifier, failing, label, batches = base
    locality = Locality(classifier, batches)
    assert locality.size == 63
    before = torch.cat([classifier.logits(batch).argmax(dim=-1) for batch in batches])
    assert torch.equal(locality.before, before)
    soft = gradient_scores(classifier, failing, label)
    done = edit(classifier, failing, label, binarise(soft, 1.0), FAST)
    changed = copy.deepcopy(classifier)
    apply_delta(changed.model, done.delta)
    after = torch.cat([changed.logits(batch).argmax(dim=-1) for batch in batches])
    assert locality.rate(done.delta) == pytest.approx(float((before == after).float().mean()))
    assert 0 < locality.rate(done.delta) < 1
    with pytest.raises(UsageError, match="without pictures"):
        Locality(classifier, [batches[0][:0]])


def test_the_densest_mask_within_a_budget_is_found(base):
    classifier, failing, label, batches = base
    soft = gradient_scores(classifier, failing, label)
    locality = Locality(classifier, batches)
    full = densest_within(classifier, failing, label, soft, locality, 0.0, FAST)
    assert len(full.trials) == 1 and full.best.density == 1
    rate = full.best.locality
    budget = (1 + rate) / 2
    found = densest_within(classifier, failing, label, soft, locality, budget, FAST, max_trials=6)
    assert found.best.locality >= budget and 2 < len(found.trials) <= 6
    neurons = [trial.neurons for trial in found.trials]
    assert neurons[:2] == [144, 1] and len(set(neurons)) == len(neurons)
    denser = [trial for trial in found.trials if trial.neurons > found.best.neurons]
    assert denser and all(trial.locality < budget for trial in denser)
    assert int(found.best.edit.delta.mask.sum()) == found.best.neurons


def test_a_budget_that_no_mask_keeps(base, caplog):
    classifier, failing, label, batches = base
    soft = gradient_scores(classifier, failing, label)
    strong = EditSettings(rate=0.5, max_steps=2)
    found = densest_within(
        classifier, failing, label, soft, Locality(classifier, batches), 1.0, strong, densities=(0.5, 1.0)
    )
    assert found.best is None and len(found.trials) == 2
    assert "no mask from 72 neurons on keeps 100.0 %" in caplog.text


def test_search_options_out_of_range(base):
    classifier, failing, label, batches = base
    locality = Locality(classifier, batches)
    with pytest.raises(UsageError) as error:
        densest_within(
            classifier, failing, label, torch.rand(6, 24), locality, 1.5, FAST, densities=(0.5, 0.1), max_trials=1
        )
    assert len(error.value.problems) == 3


def test_edits_in_sequence_are_one_delta_with_a_report():
    model = small_model("timm")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classifier = as_classifier(model)
    images = pictures(3, seed=2)
    labels = classifier.logits(images).argsort(dim=-1)[:, -2]
    failures = [(images[i : i + 1], labels[i : i + 1]) for i in range(3)]
    locality = [pictures(20, seed=3)]
    done = edit_in_sequence(classifier, failures, GradientMask(), 0.2, FAST, locality)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [len(step.right) for step in done.steps] == [1, 2, 3] and done.steps[0].right == (True,)
    assert done.steps[2].retention == sum(done.steps[2].right) / 3
    assert [entry["sequence"] for entry in done.delta.history] == [0, 1, 2]
    followed = copy.deepcopy(classifier)
    for number, step in enumerate(done.steps):
        apply_delta(followed.model, step.edit.delta)
        right = [bool(followed.logits(image).argmax() == label) for image, label in failures[: number + 1]]
        assert list(step.right) == right
        own = as_classifier(model).logits(locality[0]).argmax(dim=-1)
        assert step.locality == pytest.approx(float((followed.logits(locality[0]).argmax(-1) == own).float().mean()))
    drifts = [max(step.drift.values()) for step in done.steps]
    assert 0 < drifts[0] < drifts[2]
    whole = copy.deepcopy(model)
    apply_delta(whole, done.delta)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, followed.model.state_dict()[name], rtol=0, atol=1e-7)
    revert_delta(whole, done.delta)
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())
    with pytest.raises(UsageError, match="no failures"):
        edit_in_sequence(classifier, [], GradientMask(), 0.2)
