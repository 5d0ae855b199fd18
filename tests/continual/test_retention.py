"""Distillation, Fisher and elastic penalty: numbers by hand, explicit loops, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from thurl.continual import retention
from thurl.continual.retention import (
    bounded_weight,
    decayed_fisher,
    diagonal_fisher,
    distillation_loss,
    elastic_penalty,
)
from thurl.errors import UsageError


def test_distillation_by_hand():
    # T = 2: the old answer is softmax(2 ln 3 / 2, 0) = (3/4, 1/4), the new one softmax(0, 0) = (1/2, 1/2).
    old = torch.tensor([[2 * math.log(3.0), 0.0]])
    new = torch.tensor([[0.0, 0.0, 50.0]])
    assert float(distillation_loss(new, old, 2.0)) == pytest.approx(math.log(2), abs=1e-6)
    # The other way round: -(1/2) ln(3/4) - (1/2) ln(1/4). The mean over both samples.
    both = distillation_loss(torch.cat([new[:, :2], old]), torch.cat([old, new[:, :2]]), 2.0)
    assert float(both) == pytest.approx((math.log(2) - 0.5 * math.log(3 / 16)) / 2, abs=1e-6)
    # At T = 1 the old answer is (9/10, 1/10).
    assert float(distillation_loss(old, old, 1.0)) == pytest.approx(
        -0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-6
    )


def test_distillation_is_least_where_answers_agree_and_new_columns_are_free():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    new = torch.cat([old.detach() + 7, torch.randn(5, 2, generator=generator, dtype=torch.float64)], dim=1)
    new.requires_grad_()
    loss = distillation_loss(new, old)
    soft = (old / 2).softmax(1)
    assert float(loss.detach()) == pytest.approx(float(-(soft * soft.log()).sum(1).mean().detach()))
    loss.backward()
    assert old.grad is None and float(new.grad.abs().max()) < 1e-12
    elsewhere = new.detach() + torch.randn(new.shape, generator=generator)
    elsewhere.requires_grad_()
    distillation_loss(elsewhere, old).backward()
    # d/dz = (softmax(z / T) - soft) / (T B)
    expected = ((elsewhere[:, :3] / 2).softmax(1) - soft) / (2 * 5)
    torch.testing.assert_close(elsewhere.grad[:, :3], expected.detach())
    assert not elsewhere.grad[:, 3:].any()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def by_loop(model, inputs, labels):
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for one, label in zip(inputs, labels, strict=True):
        model.zero_grad()
        model(one[None]).log_softmax(1)[0, label].backward()
        for name, value in model.named_parameters():
            total[name] += value.grad**2 / len(labels)
    return total


@pytest.mark.parametrize("memory", [1, 2**28], ids=["one sample at once", "all at once"])
def test_fisher_is_the_loop_over_samples(model, memory, monkeypatch):
    monkeypatch.setattr(retention, "MEMORY", memory)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (11,), generator=generator)
    parameters = dict(model.named_parameters())
    batches = list(zip(inputs.split(4), labels.split(4), strict=True))
    found = diagonal_fisher(lambda at, x: functional_call(model, dict(at), (x,)), parameters, batches)
    expected = by_loop(model, inputs, labels)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-14)
        assert not found[name].requires_grad


def test_fisher_by_hand():
    # One weight per class, input 1, equal logits: the gradient is (1/2, -1/2) for either label, its square 1/4.
    weight = {"w": torch.zeros(2, 1)}
    batch = (torch.ones(3, 1), torch.tensor([0, 1, 1]))
    found = diagonal_fisher(lambda at, x: x @ at["w"].T, weight, [batch])
    torch.testing.assert_close(found["w"], torch.full((2, 1), 0.25))
    # The squared gradient of the whole batch would be 1/36.
    with pytest.raises(UsageError, match="at least one"):
        diagonal_fisher(lambda at, x: x @ at["w"].T, weight, [])


def test_fisher_of_a_model_vmap_cannot_run(model, caplog):
    def logits(at, x):
        _ = x.sum().item()  # vmap refuses this
        return functional_call(model, dict(at), (x,))

    inputs, labels = torch.randn(5, 4, generator=torch.manual_seed(2)).double(), torch.tensor([0, 1, 2, 1, 0])
    found = diagonal_fisher(logits, dict(model.named_parameters()), [(inputs, labels), (inputs, labels)])
    assert caplog.text.count("one by one") == 1
    for name, value in by_loop(model, inputs, labels).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-14)


def test_the_running_fisher_grows_with_the_head():
    old, new = {"head": torch.tensor([1.0, 2.0])}, {"head": torch.tensor([3.0, 4.0, 5.0]), "body": torch.tensor([6.0])}
    found = decayed_fisher(old, new, 0.5)
    assert found["head"].tolist() == [3.5, 5.0, 5.0] and found["body"].tolist() == [6.0]
    assert new["head"].tolist() == [3.0, 4.0, 5.0] and old["head"].tolist() == [1.0, 2.0]


def test_elastic_penalty_by_hand():
    anchors = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([0.0])}
    held = {"w": torch.tensor([[4.0, 0.0]]), "b": torch.tensor([2.0])}
    at = {"w": torch.tensor([[1.5, 9.0], [7.0, 7.0]], requires_grad=True), "b": torch.tensor([3.0, 8.0])}
    penalty = elastic_penalty(at, anchors, held)
    assert float(penalty.detach()) == 0.5 * (4 * 0.25 + 2 * 9)
    penalty.backward()
    assert at["w"].grad.tolist() == [[2.0, 0.0], [0.0, 0.0]]  # weight times distance; a new row is free


def test_the_weight_of_the_penalty_is_that_of_an_implicit_step():
    fisher = torch.tensor([0.0, 1e-3, 1.0, 50.0], dtype=torch.float64)
    weight = bounded_weight(fisher, 100.0, 0.02)
    torch.testing.assert_close(1 - 0.02 * weight, 1 / (1 + 0.02 * 100 * fisher))
    assert float(weight[1]) == pytest.approx(0.1, rel=3e-3)  # strength times Fisher, where that is small
    assert torch.equal(bounded_weight(fisher, 100.0, 0.0), 100 * fisher)
