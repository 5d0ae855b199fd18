"""Editors behind one interface: same edits as one at a time, what each may move, and how the evaluator counts."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from thurl.editing.baselines import ExtraNeurons, LowRank
from thurl.editing.benchmark_report import write_benchmark
from thurl.editing.classifier import as_classifier
from thurl.editing.delta import edited_weights
from thurl.editing.edit import EditSettings, edit
from thurl.editing.evaluate import EditGroup, EditRow, Evaluator, averages
from thurl.editing.layer_search import layer_windows, search_layers
from thurl.editing.masks import GradientMask, random_mask
from thurl.editing.methods import FineTuning, MaskedEditing
from thurl.editing.separate import edit_separately
from thurl.errors import UsageError

from .editing_models import pictures, small_model


QUICK = EditSettings(rate=5e-3, max_steps=8, stop_loss=0.3)


def failing(classifier, count, seed=0):
    """Pictures with labels the model does not give them."""
    batch = pictures(count, seed=seed)
    with torch.no_grad():
        labels = classifier.logits(batch).topk(2).indices[:, 1]
    return batch, labels


@pytest.mark.parametrize("name", ["timm", "dinov2 swiglu"])
@pytest.mark.parametrize("settings", [QUICK, EditSettings(rate=0.01, max_steps=5, optimizer="adam", l1=0.01, l2=0.1)])
def test_separate_edits_are_those_of_each_picture_alone(name, settings):
    classifier = as_classifier(small_model(name))
    batch, labels = failing(classifier, 3)
    labels[2] = int(classifier.logits(batch[2:]).argmax())
    masks = torch.stack([random_mask(classifier.mask_shape, 0.3, seed) for seed in range(3)])
    found = edit_separately(classifier, batch, labels, masks, settings)
    for index in range(3):
        one = slice(index, index + 1)
        alone = edit(classifier, batch[one], labels[one], masks[index], settings)
        assert found.steps[index] == alone.steps and found.reached[index] == alone.reached
        expected = edited_weights(classifier.model, alone.delta)
        for unit, change in zip(classifier.units, found.changes, strict=True):
            weight = classifier.linear[unit.parameter].weight.detach()
            torch.testing.assert_close(
                weight + change[index], expected.get(unit.parameter, weight), atol=2e-5, rtol=1e-4
            )
    assert found.steps[2] == 0 and not any(change[2].any() for change in found.changes)
    with pytest.raises(UsageError, match="masks of shape"):
        edit_separately(classifier, batch, labels, masks[:2], settings)


METHODS = {
    "masked": MaskedEditing(GradientMask(), 0.1, QUICK, together=2),
    "fine-tuning": FineTuning(QUICK, together=2),
    "low rank": LowRank(rank=2, alpha=2, settings=EditSettings(rate=0.02, max_steps=8)),
    "extra neurons": ExtraNeurons(EditSettings(rate=0.05, max_steps=8, optimizer="adam")),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["timm", "dinov2 swiglu"])
def test_methods_lower_the_loss_and_leave_the_model(method, name):
    classifier = as_classifier(small_model(name))
    before = copy.deepcopy(classifier.model.state_dict())
    batch, labels = failing(classifier, 3)
    random = torch.get_rng_state()
    made = list(method.edit_each(classifier, batch, labels))
    assert torch.equal(torch.get_rng_state(), random) and len(made) == 3
    for index, one in enumerate(made):
        hidden = classifier.prefix(batch[index : index + 1], one.layer)
        old, new = (classifier.suffix(hidden, one.layer, weights) for weights in ({}, one.weights))
        label = labels[index : index + 1]
        loss = torch.nn.functional.cross_entropy
        assert loss(new, label) < loss(old, label) and one.steps > 0 and one.parameters > 0
    again = list(method.edit_each(classifier, batch[:1], labels[:1]))[0]
    for parameter, value in again.weights.items():
        torch.testing.assert_close(value, made[0].weights[parameter])
    after = classifier.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_low_rank_changes_have_that_rank_in_the_units_alone():
    classifier = as_classifier(small_model("vit"))
    (made,) = METHODS["low rank"].edit_each(classifier, *failing(classifier, 1))
    assert made.weights.keys() == {unit.parameter for unit in classifier.units}
    for name, weight in made.weights.items():
        change = weight - classifier.model.get_parameter(name)
        assert torch.linalg.matrix_rank(change.detach(), rtol=1e-3) == 2
    with pytest.raises(UsageError, match="rank is 0"):
        LowRank(rank=0)


@pytest.mark.parametrize(("name", "halves"), [("timm", 1), ("dinov2 swiglu", 2)])
def test_extra_neurons_keep_every_old_weight(name, halves):
    classifier = as_classifier(small_model(name))
    (made,) = METHODS["extra neurons"].edit_each(classifier, *failing(classifier, 1))
    assert made.layer == classifier.depth - 1
    assert len(made.weights) == 3
    for key, value in made.weights.items():
        old = classifier.model.get_parameter(key)
        if value.shape[1:] == old.shape[1:]:
            pairs = list(zip(old.chunk(halves), value.chunk(halves), strict=True))
        else:
            pairs = [(old.T, value.T)]
        for part, new in pairs:
            assert torch.equal(new[: len(part)], part) and len(new) == len(part) + 1


class Always:
    """An editor that makes a set of classes the answer everywhere, by the bias of the head."""

    def __init__(self, offset):
        self.offset = offset

    def edit_each(self, classifier, pixel_values, labels):
        from thurl.editing.methods import Edited

        for label in labels:
            bias = classifier.model.head.bias.detach().clone()
            bias[label] += self.offset
            yield Edited({"head.bias": bias}, classifier.first_layer, 1, True, 1)


def test_evaluator_counts():
    classifier = as_classifier(small_model("timm"))
    batch = pictures(12)
    with torch.no_grad():
        predicted = classifier.logits(batch).argmax(dim=-1)
    label = int((predicted[0] + 1) % 5)
    wrong = batch[predicted != label]
    groups = [EditGroup("large", label, wrong[:4]), EditGroup("single", label, wrong[4:5])]
    evaluator = Evaluator(classifier, groups, {"others": batch}, (batch, predicted), batch_size=5)
    rows = evaluator.run(Always(100.0), 3)
    assert [(row.group, row.edited) for row in rows] == [("large", 0), ("large", 1), ("large", 2), ("single", 0)]
    kept = 100 * float((predicted == label).float().mean())
    for row in rows:
        expected = {"SR": 100.0, "LR_others": kept, "LR_right": kept, "accuracy_drop": 100 - kept}
        assert {name: row.numbers[name] for name in expected} == pytest.approx(expected)
    assert rows[0].numbers["GR"] == 100.0 and rows[0].numbers["GR_official"] == 75.0
    assert math.isnan(rows[3].numbers["GR"])
    found = averages(rows)
    assert (found["GR"].groups, found["GR"].skipped, found["SR"].groups) == (1, 1, 2)
    nothing = evaluator.run(Always(0.0), 1, ["single"])[0].numbers
    assert (nothing["SR"], nothing["LR_others"], nothing["accuracy_drop"], nothing["ECE_rise"]) == (0, 100, 0, 0)
    with pytest.raises(UsageError, match="no group 'x'"):
        evaluator.run(Always(0.0), 1, ["x"])
    with pytest.raises(UsageError, match="picture 0"):
        Evaluator(classifier, [EditGroup("right", int(predicted[0]), batch[:1])])
    with pytest.raises(UsageError, match="same name"):
        Evaluator(classifier, [groups[0], groups[0]])


def test_layer_search():
    classifier = as_classifier(small_model("timm"))
    windows = layer_windows(classifier, 3)
    assert list(windows) == ["ffn 0-2", "ffn 1-3", "attention 0-2", "attention 1-3"]
    assert [unit.label for unit in windows["attention 1-3"]] == [f"layer{layer}.attn_out" for layer in (1, 2, 3)]
    batch, labels = failing(classifier, 1)
    group = EditGroup("group", int(labels), batch)
    found = search_layers(classifier, [EditGroup("group", group.label, batch.repeat(2, 1, 1, 1))], pictures(5, seed=1),
                          FineTuning(QUICK), edits=1)  # fmt: skip
    assert [one.name for one in found] == list(windows) and any(one.on_front for one in found)
    with pytest.raises(UsageError, match="windows of 1 to 4"):
        layer_windows(classifier, 5)


def test_report(tmp_path):
    def row(sr, gr, lr):
        return EditRow("g", 0, {"SR": sr, "GR": gr, "GR_official": gr, "LR_x": lr, "steps": 3.0})

    rows = {
        ("gradient", "5 %"): [row(100.0, 80.0, 90.0)],
        ("gradient", "10 %"): [row(100.0, 90.0, 80.0)],
        ("$LoRA$ <b>", ""): [row(0.0, math.nan, 100.0)],
    }
    summary = write_benchmark(tmp_path, rows, locality="LR_x", official=True)
    assert summary["front_area"] == {"gradient": pytest.approx(0.8 * 0.9 + 0.1 * 0.8)}
    assert json.loads((tmp_path / "summary.json").read_text())["methods"][2]["GR"]["mean"] is None
    lines = (tmp_path / "edits.csv").read_text().splitlines()
    assert lines[0] == "method,setting,group,edited,SR,GR,GR_official,LR_x,steps" and len(lines) == 4
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page and "undefined" in page and "GR_official" in page
