"""Protected activations go through the edited layers as before."""

from __future__ import annotations

import copy

import pytest
import torch

from thurl.editing.classifier import as_classifier
from thurl.editing.delta import apply_delta
from thurl.editing.edit import EditSettings, edit
from thurl.editing.masks import random_mask
from thurl.editing.protection import null_space_projector, protect
from thurl.errors import UsageError

from .editing_models import pictures, small_model


def test_projector_keeps_what_the_inputs_do_not_span():
    inputs = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).double()
    projector, rank = null_space_projector(inputs.T @ inputs, 1e-9)
    assert rank == 7 and projector.shape == (12, 12)
    torch.testing.assert_close(projector @ projector, projector)
    torch.testing.assert_close(projector, projector.T)
    assert (inputs @ projector).abs().max() < 1e-9
    spread = torch.diag(torch.tensor([100.0, 10.0, 0.9, 0.0]))
    assert [null_space_projector(spread, one)[1] for one in (0, 0.01, 0.2, 0.5)] == [1, 2, 3, 3]
    assert null_space_projector(10 * spread, 0.01)[1] == 2  # free of scale


@pytest.mark.parametrize("name", ["timm", "timm swiglu", "vit", "dinov2"])
def test_protected_pictures_keep_their_logits_and_the_edit_still_works(name):
    # Few tokens in many inputs: an exact null space is left.
    model = small_model(name).double()
    classifier = as_classifier(model)
    images = pictures(2).double()
    held, failing = images[:1], images[1:]
    label = classifier.logits(failing).argsort(dim=-1)[:, -2]
    mask = random_mask(classifier.mask_shape, 1.0, 0)
    settings = EditSettings(rate=1e-2, max_steps=8, stop_loss=0.5)
    free = edit(classifier, failing, label, mask, settings)
    protection = protect(classifier, [held], mask, 1e-9)
    assert all(0 < rank < 16 * 2 for rank in protection.free.values())
    done = edit(classifier, failing, label, mask, settings, protection=protection)
    assert done.losses[-1] < done.losses[0] and done.delta.history[0]["protected"]
    with torch.no_grad():
        before = classifier.logits(held)
    moved = {}
    for kind, delta in (("free", free.delta), ("protected", done.delta)):
        changed = copy.deepcopy(model)
        apply_delta(changed, delta)
        moved[kind] = float((as_classifier(changed).logits(held) - before).detach().abs().max())
    assert moved["protected"] < 1e-7 < 1e-3 < moved["free"]


def test_a_threshold_trades_protection_for_freedom():
    model = small_model("vit")
    classifier = as_classifier(model)
    held = pictures(12)
    mask = random_mask(classifier.mask_shape, 1.0, 0)
    ranks = [sum(protect(classifier, [held[:6], held[6:]], mask, one).free.values()) for one in (0.05, 0.2, 0.5)]
    assert ranks[0] < ranks[1] < ranks[2]


def test_a_protection_is_of_one_mask_and_leaves_something():
    classifier = as_classifier(small_model("vit"))
    held = pictures(8)
    label = (classifier.logits(held[:1]).argmax(dim=-1) + 1) % 5
    mask, other = (random_mask(classifier.mask_shape, 0.3, seed) for seed in (0, 1))
    protection = protect(classifier, [held], mask, 0.3)
    with pytest.raises(UsageError, match="made for another mask"):
        edit(classifier, held[:1], label, other, protection=protection)
    with pytest.raises(UsageError, match="no direction is left to layer1.fc1"):
        protect(classifier, [held], mask, 0)
    with pytest.raises(UsageError, match="threshold 1"):
        protect(classifier, [held], mask, 1)
    with pytest.raises(UsageError, match="nothing to protect"):
        protect(classifier, [], mask)
    with pytest.raises(UsageError, match="nothing to protect"):
        protect(classifier, [held], torch.zeros_like(mask))
    with pytest.raises(UsageError, match="a mask of shape"):
        protect(classifier, [held], mask[:2])
