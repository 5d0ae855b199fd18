"""An edit is the released one, changes what its mask allows and nothing else, and says what it could not do."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from thurl.editing.classifier import as_classifier
from thurl.editing.delta import apply_delta, edited_weights
from thurl.editing.edit import EditSettings, edit
from thurl.editing.masks import binarise, gradient_scores, random_mask
from thurl.editing.units import resolve_attention_outputs
from thurl.editing.updates import OPTIMIZERS
from thurl.errors import DataError, UsageError

from .editing_models import MODELS, golden, golden_model, pictures, small_model


FAST = EditSettings(rate=4e-3, max_steps=12, stop_loss=0.5)


def failure(classifier, count=1, dtype=torch.float32):
    """Pictures, and for each a class the model does not see in it."""
    images = pictures(count).to(dtype)
    with torch.no_grad():
        return images, classifier.logits(images).argsort(dim=-1)[:, -2]


def whole(delta, label, model):
    """Change of a unit as a full matrix."""
    unit = next(unit for unit in delta.units if unit.label == label)
    full = torch.zeros_like(model.get_parameter(unit.parameter))
    for change in delta.changes:
        if change.unit == unit:
            change.write(full, change.change.to(full.dtype))
    return full


def released_edit(model, units, images, labels, mask, settings):
    """As the release does it: the whole model, masks on the gradients, torch's optimizer."""
    model = copy.deepcopy(model)
    weights = [model.get_parameter(unit.parameter) for unit in units]
    base = [weight.detach().clone() for weight in weights]
    kind = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[settings.optimizer]
    optimizer = kind(weights, lr=settings.rate)
    steps = 0
    while steps < settings.max_steps:
        logits = as_classifier(model).logits(images)
        loss = functional.cross_entropy(logits, labels)
        if loss.item() <= settings.stop_loss and (logits.argmax(dim=-1) == labels).all():
            break
        steps += 1
        optimizer.zero_grad()
        loss.backward()
        for unit, row, weight in zip(units, mask, weights, strict=True):
            kept = row.repeat(unit.groups).to(weight)
            weight.grad *= kept[:, None] if unit.axis == 0 else kept
        optimizer.step()
    return model, [weight.detach() - one for weight, one in zip(weights, base, strict=True)], steps


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_released_edit(library):
    stored = golden("tiny_io")
    model = golden_model(library)
    classifier = as_classifier(model)
    mask = stored["edit_mask"].bool()
    done = edit(classifier, stored["image"][:1], stored["edit_target"], mask, EditSettings(rate=2e-3, max_steps=6))
    for unit in classifier.units:
        wanted = stored[f"edit_delta.{unit.label}"]
        torch.testing.assert_close(whole(done.delta, unit.label, model), wanted, rtol=0, atol=1e-5)
    logits = classifier.logits(stored["image"], edited_weights(model, done.delta))
    torch.testing.assert_close(logits, stored["edited_logits"], rtol=0, atol=1e-5)
    assert done.steps == 6 and len(done.losses) == 7 and not done.already_right
    assert torch.equal(done.delta.mask, mask)


@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "rmsprop") for name in MODELS), *(("timm swiglu", one) for one in OPTIMIZERS)]
)
def test_cached_prefix_and_slices_are_the_edit_of_the_whole_model(name, optimizer):
    settings = EditSettings(rate={"sgd": 0.02}.get(optimizer, 1e-3), max_steps=5, optimizer=optimizer)
    model = small_model(name).double()  # rounding, which RMSprop turns into steps where a gradient is near zero
    classifier = as_classifier(model)
    images, labels = failure(classifier, 2, torch.float64)
    mask = random_mask(classifier.mask_shape, 0.3, 1)
    done = edit(classifier, images, labels, mask, settings)
    changed, deltas, steps = released_edit(model, classifier.units, images, labels, mask, settings)
    assert done.steps == steps > 0
    for unit, wanted in zip(classifier.units, deltas, strict=True):
        torch.testing.assert_close(whole(done.delta, unit.label, model), wanted, rtol=0, atol=1e-7)
    logits = as_classifier(changed).logits(images)
    torch.testing.assert_close(done.logits, logits, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["timm", "vit", "dinov2 swiglu"])
def test_float32_agrees_with_the_whole_model_to_a_millionth(name):
    settings = EditSettings(rate=2e-5, max_steps=6)
    model = small_model(name)
    classifier = as_classifier(model)
    images, labels = failure(classifier)
    mask = binarise(gradient_scores(classifier, images, labels), 0.1)
    done = edit(classifier, images, labels, mask, settings)
    changed, deltas, _ = released_edit(model, classifier.units, images, labels, mask, settings)
    for unit, wanted in zip(classifier.units, deltas, strict=True):
        torch.testing.assert_close(whole(done.delta, unit.label, model), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(done.logits, as_classifier(changed).logits(images).detach(), rtol=0, atol=1e-6)


def test_half_precision_is_edited_with_the_weights_it_will_have():
    model = small_model("vit").to(torch.bfloat16)
    classifier = as_classifier(model)
    images, labels = failure(classifier, dtype=torch.bfloat16)
    mask = random_mask(classifier.mask_shape, 0.3, 0)
    done = edit(classifier, images, labels, mask, EditSettings(rate=5e-3, max_steps=15))
    assert done.success and done.delta.changes[0].change.dtype == torch.float32
    edited = copy.deepcopy(model)
    apply_delta(edited, done.delta)
    logits = as_classifier(edited).logits(images)
    torch.testing.assert_close(logits.float(), done.logits, rtol=0.02, atol=0.02)
    assert logits.argmax(dim=-1).tolist() == labels.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_an_edit_succeeds_and_touches_the_mask_only(name):
    model = small_model(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    classifier = as_classifier(model)
    images, labels = failure(classifier, 3)
    mask = binarise(gradient_scores(classifier, images, labels), 0.2)
    done = edit(classifier, images, labels, mask, FAST)
    assert done.success and not any(done.right_before) and done.losses[-1] < done.losses[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    apply_delta(model, done.delta)
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {change.unit.parameter for change in done.delta.changes}
    for unit, row in zip(classifier.units, mask, strict=True):
        new, old = model.get_parameter(unit.parameter), before[unit.parameter]
        different = (new != old).any(dim=1 - unit.axis).reshape(unit.groups, unit.size).all(dim=0)
        assert torch.equal(different, row)
    assert classifier.logits(images).argmax(dim=-1).tolist() == labels.tolist()


def test_both_libraries_are_edited_alike():
    stored = golden("tiny_io")
    done = {}
    for library in ("timm", "transformers"):
        classifier = as_classifier(golden_model(library))
        labels = torch.tensor([3, 0, 6])
        scores = gradient_scores(classifier, stored["image"], labels)
        done[library] = edit(
            classifier, stored["image"], labels, binarise(scores, 0.2), EditSettings(rate=1e-3, max_steps=8)
        )
    one, other = done.values()
    assert one.steps == other.steps and torch.equal(one.delta.mask, other.delta.mask)
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-4)
    for first, second in zip(one.delta.changes, other.delta.changes, strict=True):
        assert torch.nn.functional.cosine_similarity(first.change.flatten(), second.change.flatten(), dim=0) > 0.9999


def test_attention_outputs_are_edited_too():
    model = small_model("vit")
    classifier = as_classifier(model, resolve_attention_outputs(model, [1, 2]))
    images, labels = failure(classifier)
    done = edit(classifier, images, labels, binarise(gradient_scores(classifier, images, labels), 0.5), FAST)
    assert done.success and {change.unit.name for change in done.delta.changes} == {"attn_out"}


def test_the_stop_rule_is_checked_before_an_update():
    classifier = as_classifier(small_model("timm"))
    images, labels = failure(classifier)
    mask = random_mask(classifier.mask_shape, 1.0, 0)
    long = edit(classifier, images, labels, mask, FAST)
    assert long.reached and long.losses[-1] <= FAST.stop_loss < long.losses[-2]
    for steps in (long.steps, long.steps - 1):
        short = edit(classifier, images, labels, mask, replace(FAST, max_steps=steps))
        assert short.steps == steps and short.reached == (steps == long.steps)
        assert short.losses == pytest.approx(long.losses[: steps + 1], abs=1e-5)


def test_pictures_that_are_right_are_not_edited(caplog):
    classifier = as_classifier(small_model("vit"))
    images = pictures(2)
    labels = classifier.logits(images).argmax(dim=-1)
    mask = random_mask(classifier.mask_shape, 0.1, 0)
    done = edit(classifier, images, labels, mask, FAST)
    assert done.already_right and done.success and done.steps == 0 and not done.delta.changes
    assert "already right: 2 of 2 pictures" in caplog.text
    torch.testing.assert_close(done.logits, classifier.logits(images).detach(), rtol=0, atol=1e-6)
    wrong = torch.stack([labels[0], (labels[1] + 1) % 5])
    half = edit(classifier, images, wrong, mask, FAST)
    assert half.right_before == (True, False) and half.steps > 0 and half.delta.history[0]["labels"] == wrong.tolist()


def test_edits_are_the_same_each_time():
    classifier = as_classifier(small_model("dinov2"))
    images, labels = failure(classifier)
    state = torch.get_rng_state()
    mask = random_mask(classifier.mask_shape, 0.2, 5)
    first, second = (edit(classifier, images, labels, mask, FAST) for _ in range(2))
    assert first.losses == second.losses
    assert all(torch.equal(a.change, b.change) for a, b in zip(first.delta.changes, second.delta.changes, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_penalties_keep_the_change_small():
    classifier = as_classifier(small_model("timm"))
    images, labels = failure(classifier)
    mask = random_mask(classifier.mask_shape, 1.0, 0)
    options = {"rate": 1e-3, "max_steps": 8, "stop_loss": 0}
    free = edit(classifier, images, labels, mask, EditSettings(**options))
    for penalty in ("l1", "l2"):
        held = edit(classifier, images, labels, mask, EditSettings(**options, **{penalty: 0.1}))
        assert held.delta.norm < 0.9 * free.delta.norm


def test_a_large_change_is_warned_about(caplog):
    classifier = as_classifier(small_model("timm"))
    images, labels = failure(classifier)
    mask = random_mask(classifier.mask_shape, 0.3, 0)
    with caplog.at_level(logging.WARNING):
        done = edit(classifier, images, labels, mask, replace(FAST, change_cap=1e-3))
    assert all(value > 1e-3 for value in done.relative_change.values())
    assert "layer1.fc1 by 0." in caplog.text and "more than 0.001" in caplog.text


def test_steps_are_watched():
    classifier = as_classifier(small_model("timm"))
    images, labels = failure(classifier)
    seen = []
    mask = random_mask(classifier.mask_shape, 0.3, 0)
    done = edit(
        classifier, images, labels, mask, FAST, watch=lambda *step: seen.append(step), note={"picture": "a.png"}
    )
    assert seen == list(enumerate(done.losses[:-1]))
    entry = done.delta.history[0]
    assert entry["picture"] == "a.png" and entry["settings"]["rate"] == FAST.rate and entry["steps"] == done.steps


def test_a_loss_that_is_not_finite_ends_the_edit_and_leaves_the_model():
    model = small_model("timm")
    classifier = as_classifier(model)
    images, labels = failure(classifier)
    mask = random_mask(classifier.mask_shape, 1.0, 0)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match="the loss is .* nothing is edited; lower the rate"):
        edit(classifier, images, labels, mask, EditSettings(rate=1e30, optimizer="sgd"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    with pytest.raises(UsageError, match="step 0, nothing is edited; check the pictures and the model's weights"):
        edit(classifier, images, labels, mask, FAST)


def test_wrong_input_is_told_all_at_once():
    classifier = as_classifier(small_model("timm"))
    images, mask = pictures(1), random_mask(classifier.mask_shape, 0.1, 0)
    with pytest.raises(UsageError) as error:
        edit(classifier, images, torch.tensor([1, 7]), mask[:2], FAST)
    assert len(error.value.problems) == 3
    cases = {
        "class 5: the model has the classes 0 to 4": (images, torch.tensor([5]), mask),
        "class -1:": (images, torch.tensor([-1]), mask),
        "labels of torch.float32": (images, torch.tensor([1.0]), mask),
        "labels of shape": (images[0], torch.tensor([1]), mask),
        "a mask of torch.float32": (images, torch.tensor([1]), mask.float()),
        "without any neuron": (images, torch.tensor([1]), torch.zeros_like(mask)),
    }
    for message, arguments in cases.items():
        with pytest.raises(UsageError, match=message):
            edit(classifier, *arguments, FAST)
    with pytest.raises(DataError, match="NaN or infinite"):
        edit(classifier, images * math.nan, torch.tensor([1]), mask, FAST)


def test_settings_out_of_range_are_told_all_at_once():
    with pytest.raises(UsageError) as error:
        EditSettings(rate=0, max_steps=0, stop_loss=-1, optimizer="rmspro", l1=math.nan, l2=-1, change_cap=math.inf)
    assert len(error.value.problems) == 7
    assert "did you mean" in str(error.value)
