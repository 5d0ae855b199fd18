"""Target masks: official numbers, the batch against one picture at a time, and where gradients flow."""

from __future__ import annotations

import copy
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from thurl.editing.classifier import Classifier, as_classifier
from thurl.editing.meta_step import (
    OFFICIAL_PENALTY,
    SearchSettings,
    gradient_norms,
    own_weights,
    pseudo_loss,
    search_masks,
)
from thurl.editing.units import resolve_attention_outputs, resolve_ffn
from thurl.errors import UsageError

from .editing_models import GOLDEN, golden, golden_model, small_model


OFFICIAL = SearchSettings(inner_steps=3, outer_steps=2, inner_rate=0.01, penalty=1 / (3 * 6 * 40))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return as_classifier(golden_model("transformers"))


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return golden("tiny_io")


@pytest.fixture(scope="module")
def loop() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "vit_editing_loop.py"
    spec = spec_from_file_location("vit_editing_loop", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gated() -> Classifier:
    """Two rows of the first matrix for each neuron."""
    return as_classifier(small_model("dinov2 swiglu"))


def draw(classifier: Classifier, count: int, side: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    clean, mixed = (torch.randn(count, 3, side, side, generator=generator) for _ in range(2))
    return mixed, clean, torch.rand(count, *classifier.mask_shape, generator=generator) * 2 - 1


def test_official_iteration(classifier: Classifier, io: dict[str, torch.Tensor]) -> None:
    meta = json.loads((GOLDEN / "vitedit_tiny_meta.json").read_text())
    found = search_masks(classifier, io["meta.mixed"], io["meta.images"], OFFICIAL, start=io["meta.learn_init"])
    torch.testing.assert_close(found.scores, io["meta.learn_after2"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.labels, io["meta.label_masks"], atol=1e-5, rtol=0)
    assert 1 - found.labels.mean().item() == pytest.approx(meta["meta_label_sparsity"], abs=1e-5)
    # the loss itself is a small difference of large numbers in float32
    exact = as_classifier(copy.deepcopy(classifier.model).double())
    wide = {name: io[f"meta.{name}"].double() for name in ("mixed", "images", "learn_init")}
    found = search_masks(exact, wide["mixed"], wide["images"], OFFICIAL, start=wide["learn_init"])
    assert found.edited.mean().item() == pytest.approx(meta["meta_out_kl"], abs=1e-6)


@pytest.mark.parametrize("kind", ["vit", "gated", "attention"])
def test_the_batch_equals_one_picture_at_a_time(kind: str, classifier: Classifier, loop: Any) -> None:
    if kind == "gated":
        model = gated()
    else:
        resolve = resolve_ffn if kind == "vit" else resolve_attention_outputs
        model = classifier.with_units(resolve(classifier.model, [8, 10]))
    mixed, clean, start = draw(model, 3, 16 if kind == "gated" else 32)
    settings = SearchSettings(inner_steps=3, outer_steps=3, inner_rate=1e-3 if kind == "gated" else 0.5, penalty=1e-5)
    fast = search_masks(model, mixed, clean, settings, start=start)
    slow = loop.search_one_by_one(model, mixed, clean, settings, start)
    assert (fast.edited - fast.unedited).abs().max() > 1e-4
    for name in ("unedited", "edited"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), atol=1e-5, rtol=1e-4)
    # RMSprop divides by the size of the gradient: where that is nothing but rounding, so is the step
    assert (fast.scores - slow.scores).abs().quantile(0.99) < 1e-3


def test_what_a_picture_gets_does_not_depend_on_the_others(classifier: Classifier) -> None:
    mixed, clean, start = draw(classifier, 4, 32)
    together = search_masks(classifier, mixed, clean, OFFICIAL, start=start)
    alone = search_masks(classifier, mixed[2:3], clean[2:3], OFFICIAL, start=start[2:3])
    torch.testing.assert_close(together.scores[2:3], alone.scores, atol=1e-4, rtol=0)


def test_the_outer_gradient_is_that_of_the_last_product(classifier: Classifier) -> None:
    """One outer step moves u by RMSprop along dL/dm through m * delta with delta from a search without a graph."""
    mixed, clean, start = draw(classifier, 2, 32)
    settings = SearchSettings(inner_steps=1, outer_steps=1, inner_rate=0.5, penalty=0.0)
    found = search_masks(classifier, mixed, clean, settings, start=start)
    first, units = classifier.first_layer, classifier.units
    hidden, teacher = classifier.prefix(mixed, first), classifier.logits(clean).detach()
    zeros = [torch.zeros(2, *classifier.linear[unit.parameter].weight.shape, requires_grad=True) for unit in units]
    with own_weights(classifier, zeros):
        loss = pseudo_loss(teacher, classifier.suffix(hidden, first), 5.0).sum()
    deltas = [-0.5 * gradient for gradient in torch.autograd.grad(loss, zeros)]  # constants
    scores = start.clone().requires_grad_()
    masks = torch.sigmoid(10 * scores)
    updates = [masks[:, row].unsqueeze(2 - unit.axis) * deltas[row] for row, unit in enumerate(units)]
    with own_weights(classifier, updates):
        loss = pseudo_loss(teacher, classifier.suffix(hidden, first), 5.0).sum()
    (wanted,) = torch.autograd.grad(loss, scores)
    moved = found.scores - start
    clear = wanted.abs() > 1e-6
    assert clear.float().mean() > 0.3
    step = -0.1 * wanted / ((0.01 * wanted.square()).sqrt() + 1e-8)  # the first one of RMSprop
    torch.testing.assert_close(moved[clear], step[clear], atol=2e-2, rtol=0)


def test_the_base_model_is_left_alone(classifier: Classifier) -> None:
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    mixed, clean, start = draw(classifier, 2, 32)
    kept, state = start.clone(), torch.get_rng_state()
    search_masks(classifier, mixed, clean, OFFICIAL, start=start)
    assert all(torch.equal(before[name], value) for name, value in classifier.model.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.model.parameters())
    assert not any(module._forward_hooks for module in classifier.model.modules())
    assert torch.equal(start, kept) and torch.equal(torch.get_rng_state(), state)


def test_a_larger_penalty_and_locality_change_the_mask(classifier: Classifier) -> None:
    mixed, clean, start = draw(classifier, 3, 32)
    settings = {"inner_steps": 2, "outer_steps": 3, "inner_rate": 0.5}
    plain = search_masks(classifier, mixed, clean, SearchSettings(**settings), start=start)
    sparse = search_masks(classifier, mixed, clean, SearchSettings(**settings, penalty=1.0), start=start)
    local = search_masks(classifier, mixed, clean, SearchSettings(**settings, locality=5.0), start=start)
    assert sparse.labels.mean() < 0.5 * plain.labels.mean()
    assert not torch.allclose(local.scores, plain.scores, atol=1e-2)
    # more of what is not wanted, less of the update
    assert local.labels.mean() < plain.labels.mean()


def test_gradient_norms_are_those_of_each_picture(classifier: Classifier) -> None:
    for model, side in ((classifier, 32), (gated(), 16)):
        pictures, labels = draw(model, 2, side)[0], torch.tensor([1, 3])
        found = gradient_norms(model, pictures, labels)
        weights = {name: module.weight for name, module in model.linear.items()}
        for row in range(2):
            loss = torch.nn.functional.cross_entropy(model.logits(pictures[row : row + 1]), labels[row : row + 1])
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for place, (unit, gradient) in enumerate(zip(model.units, gradients, strict=True)):
                whole = gradient.norm()
                torch.testing.assert_close(found[row, place].norm(), whole)
                if unit.groups == 1:
                    torch.testing.assert_close(found[row, place], gradient.norm(dim=1 - unit.axis))


def test_official_penalty_and_wrong_numbers(classifier: Classifier) -> None:
    assert pytest.approx(6.78e-6, rel=1e-3) == OFFICIAL_PENALTY == SearchSettings().penalty
    with pytest.raises(UsageError, match="inner_steps is 0") as caught:
        SearchSettings(inner_steps=0, temperature=0.0, penalty=-1.0, locality=float("nan"))
    assert len(caught.value.problems) == 4
    mixed, clean, start = draw(classifier, 2, 32)
    with pytest.raises(UsageError, match="start must be"):
        search_masks(classifier, mixed, clean, OFFICIAL, start=start[:1])
