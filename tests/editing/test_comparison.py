"""Editors by name: which methods they are, that each edits, and what is refused."""

from __future__ import annotations

import pytest
import torch

from thurl.editing.classifier import as_classifier
from thurl.editing.comparison import EDITORS, Comparison
from thurl.editing.edit import EditSettings
from thurl.editing.evaluate import EditGroup, Evaluator
from thurl.editing.masks import GradientMask, RandomMask
from thurl.editing.methods import MaskedEditing
from thurl.errors import UsageError

from .editing_models import pictures, small_model


SETTINGS = EditSettings(rate=5e-3, max_steps=4)


@pytest.fixture(scope="module")
def evaluator():
    classifier = as_classifier(small_model("timm"))
    batch = pictures(16)
    with torch.no_grad():
        predicted = classifier.logits(batch).argmax(dim=-1)
    groups = []
    for label in (0, 1):
        wrong = batch[predicted != label]
        groups.append(EditGroup(f"group {label}", label, wrong[3 * label :][:3]))
    return Evaluator(classifier, groups, {"others": batch})


def test_every_editor_edits(evaluator):
    plan = Comparison(tuple(EDITORS), SETTINGS, (0.1, 0.3), strengths=(0.01, 1.0), ranks=(1, 2))
    runs = plan.runs(GradientMask())
    assert [name for name, _ in runs] == [
        *(name for name in ("grad", "random", "learned", "hybrid", "mean") for _ in range(2)),
        "full", "l1", "l1", "l2", "l2", "lora", "lora", "neurons",
    ]  # fmt: skip
    rows = {key: run(evaluator, 2) for key, run in runs.items()}
    for found in rows.values():
        assert [(row.group, row.edited) for row in found] == [(f"group {g}", e) for g in (0, 1) for e in (0, 1)]
        assert all(row.numbers["steps"] > 0 for row in found)

    def parameters(*key):
        return rows[key][0].numbers["parameters"]

    assert parameters("grad", "0.1") < parameters("grad", "0.3") < parameters("full", "all")
    assert parameters("lora", "rank 1") * 2 == parameters("lora", "rank 2")
    # Masks of the same scores are the same edits; a mean over the group is another mask.
    assert [row.numbers for row in rows["learned", "0.1"]] == [row.numbers for row in rows["grad", "0.1"]]


def test_a_penalty_holds_the_change_back():
    classifier = as_classifier(small_model("timm"))
    batch = pictures(1)
    old = {name: module.weight.detach() for name, module in classifier.linear.items()}
    label = classifier.logits(batch).topk(2).indices[:, 1]
    norms = {}
    for name, strength in (("full", 0.0), ("l1", 1.0), ("l2", 100.0)):
        plan = Comparison((name,), EditSettings(rate=1e-3, max_steps=10, stop_loss=0.0), strengths=(strength,))
        ((_, method),) = plan._methods(name, None)
        (made,) = method.edit_each(classifier, batch, label)
        norms[name] = sum(float((weight - old[key]).norm()) for key, weight in made.weights.items())
    assert norms["l1"] < norms["full"] and norms["l2"] < norms["full"]


def test_random_masks_differ_between_pictures_and_seeds():
    classifier = as_classifier(small_model("timm"))
    batch, labels = pictures(2), torch.zeros(2, dtype=torch.int64)
    source = RandomMask(3, per_picture=True)
    first, second = (source.scores(classifier, one, labels[:1]) for one in batch.split(1))
    assert not torch.equal(first, second)
    assert torch.equal(source.scores(classifier, batch[:1].clone(), labels[:1]), first)
    assert not torch.equal(RandomMask(4, per_picture=True).scores(classifier, batch[:1], labels[:1]), first)
    fixed = RandomMask(3)
    assert torch.equal(*(fixed.scores(classifier, one, labels[:1]) for one in batch.split(1)))


def test_a_threshold_gives_each_picture_its_own_number_of_neurons():
    classifier = as_classifier(small_model("timm"))
    batch = pictures(2)
    labels = classifier.logits(batch).topk(2).indices[:, 1]
    (alone,) = MaskedEditing(GradientMask(), 0.1, SETTINGS, threshold=0.5).edit_each(classifier, batch[:1], labels[:1])
    soft = GradientMask().scores(classifier, batch[:1], labels[:1])
    expected = sum(
        int((row >= 0.5).sum()) * classifier.linear[unit.parameter].weight.shape[1 - unit.axis]
        for unit, row in zip(classifier.units, soft, strict=True)
    )
    assert alone.parameters == expected


def test_what_cannot_be_compared_is_refused_at_once():
    with pytest.raises(UsageError) as caught:
        Comparison(("grda", "full", "full"), densities=(0.0,), strengths=(-1.0,), ranks=(0,))
    text = str(caught.value)
    for words in ("did you mean `grad`", "named twice", "density 0.0", "strength -1.0", "rank 0"):
        assert words in text
    with pytest.raises(UsageError, match="no editor"):
        Comparison(())
    with pytest.raises(UsageError, match="need a hypernetwork"):
        Comparison(("grad", "mean")).runs()
