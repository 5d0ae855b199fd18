"""The outer step against the official runs of BLADES (three steps) and SJEDD (one)."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from thurl.training.bilevel import BilevelConfig, BilevelStep
from thurl.training.bilevel.mathematics import step_rules, virtual_parameters


GOLDEN = Path(__file__).parents[2] / "golden"
TASKS = ("iso", "av", "et", "fl", "makes", "mm", "em", "wb", "ep", "face_coarse", "face_grained")
BLADES = BilevelConfig(TASKS, ("face_coarse",), lr=3e-4, positive="none", scale_by_lr=True)
SJEDD = BilevelConfig(
    ("binary", "global", "local"), ("binary",), lr=1e-3, fd_eps=1e-6, positive="none", scale_by_lr=True
)


def _trained(blades, config):
    """Three full steps; what each gave."""
    data, build, batch, losses = blades
    net = build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-3)
    outer = BilevelStep(config)
    for step in range(3):
        train, held_out = batch(step, "train"), batch(step, "val")
        report = outer.step(net, optimizer, losses(net), [train], [held_out])
        values, _ = losses(net)(train)
        loss = outer.weighted(values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step, report, values.detach(), loss.detach(), net


@pytest.mark.parametrize("method", ["two_forward", "autograd"])
def test_blades_finite_difference(blades, method):
    data = blades[0]
    for step, report, values, loss, net in _trained(blades, dataclasses.replace(BLADES, method=method)):
        golden = {name.removeprefix(f"step{step}."): v for name, v in data.items() if name.startswith(f"step{step}.")}
        official = golden["meta_grad_official"]
        torch.testing.assert_close(-report.alpha * report.hypergradient, official, rtol=1e-9, atol=0)
        torch.testing.assert_close(report.weights, golden["meta_weights_after"], rtol=1e-12, atol=0)
        torch.testing.assert_close(values, golden["task_losses"], rtol=1e-9, atol=0)
        torch.testing.assert_close(loss, golden["total_loss"].squeeze(), rtol=1e-9, atol=0)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(value, golden[f"params_after.{name}"], rtol=1e-6, atol=1e-9)


def test_blades_exact(blades):
    """At the parameters and weights of the official run before each step."""
    data, build, batch, losses = blades
    for step in range(3):
        net = build()
        outer = BilevelStep(dataclasses.replace(BLADES, method="exact"))
        if step:
            net.load_state_dict({name: data[f"step{step - 1}.params_after.{name}"] for name in net.state_dict()})
            outer._raw = data[f"step{step - 1}.meta_weights_after"].clone()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-3)
        report = outer.step(net, optimizer, losses(net), [batch(step, "train")], [batch(step, "val")])
        exact = data[f"step{step}.meta_grad_exact"]
        torch.testing.assert_close(-report.alpha * report.hypergradient, exact, rtol=1e-9, atol=0)


def test_blades_virtual_parameters(blades):
    data, build, batch, losses = blades
    net = build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-3)
    values, _ = losses(net)(batch(0, "train"))
    gradients = torch.autograd.grad(values.sum(), list(net.parameters()))
    with torch.no_grad():
        parameters = list(net.parameters())
        moved = virtual_parameters(parameters, gradients, step_rules(optimizer, parameters))
    for (name, _), value in zip(net.named_parameters(), moved, strict=True):
        torch.testing.assert_close(value, data[f"step0.virtual.{name}"], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("method", ["two_forward", "autograd", "exact"])
def test_sjedd(sjedd, method):
    data, build, batch, losses = sjedd
    settings = json.loads((GOLDEN / "sjedd_bilevel.json").read_text())
    net = build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings["alpha"], weight_decay=settings["weight_decay"])
    values, _ = losses(net)(batch("train"))
    torch.testing.assert_close(values, data["train_losses"], rtol=1e-7, atol=1e-7)
    outer = BilevelStep(dataclasses.replace(SJEDD, method=method))
    report = outer.step(net, optimizer, losses(net), [batch("train")], [batch("val")])
    found = -report.alpha * report.hypergradient
    if method == "exact":
        torch.testing.assert_close(found, data["lambda_grad_exact"], rtol=1e-6, atol=1e-12)
    else:
        torch.testing.assert_close(found, data["lambda_grad_official"], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(report.weights, data["lambda_after_adam"], rtol=1e-9, atol=0)
    torch.testing.assert_close(found, data["lambda_grad_exact"], rtol=1e-3, atol=0)
