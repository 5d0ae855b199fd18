"""The official bi-level step of SJEDD through the losses and the outer step of thurl."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.losses import task_terms
from thurl.training.bilevel import BilevelConfig, BilevelStep
from thurl.training.bilevel.mathematics import step_rules, virtual_parameters


GOLDEN = Path(__file__).parents[2] / "golden"
DATA = load_file(GOLDEN / "sjedd_bilevel.safetensors")
SETTINGS = json.loads((GOLDEN / "sjedd_bilevel.json").read_text(encoding="utf-8"))
GRAPH = load_graph("ffpp")


def official_step(method):
    return BilevelConfig(
        tuple(GRAPH.tasks),
        (SETTINGS["primary"],),
        init=SETTINGS["lambda_init"],
        lr=SETTINGS["meta_adam_lr"],
        fd_eps=1e-6,
        positive="none",
        scale_by_lr=True,
        method=method,
    )


@pytest.fixture
def net():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(6, 8, dtype=torch.float64)
            self.b = torch.nn.Linear(8, 10, dtype=torch.float64)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    net = Net()
    net.load_state_dict({name.removeprefix("net."): v for name, v in DATA.items() if name.startswith("net.")})
    return net


def batch(which):
    return DATA[f"x_{which}"], DATA[f"y_{which}"].to(torch.int8)


def losses_of(net):
    def losses(batch):
        terms = task_terms(net(batch[0]), batch[1], GRAPH.states, GRAPH.tasks, eps=1e-8)
        return torch.stack(list(terms.values())), None

    return losses


def test_losses_at_the_start_and_virtual_parameters(net):
    losses = losses_of(net)
    for which in ("train", "val"):
        torch.testing.assert_close(losses(batch(which))[0], DATA[f"{which}_losses"], rtol=1e-7, atol=1e-7)
    optimizer = torch.optim.AdamW(net.parameters(), lr=SETTINGS["alpha"], weight_decay=SETTINGS["weight_decay"])
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(losses(batch("train"))[0].sum(), parameters)
    with torch.no_grad():
        moved = virtual_parameters(parameters, gradients, step_rules(optimizer, parameters))
    torch.testing.assert_close(moved[2], DATA["virtual_weight_b"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["two_forward", "exact"])
def test_the_weights_after_one_step(net, method):
    optimizer = torch.optim.AdamW(net.parameters(), lr=SETTINGS["alpha"], weight_decay=SETTINGS["weight_decay"])
    report = BilevelStep(official_step(method)).step(net, optimizer, losses_of(net), [batch("train")], [batch("val")])
    found = -report.alpha * report.hypergradient
    torch.testing.assert_close(found, DATA["lambda_grad_exact"], rtol=1e-6 if method == "exact" else 1e-3, atol=1e-12)
    if method == "two_forward":
        torch.testing.assert_close(found, DATA["lambda_grad_official"], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(report.weights, DATA["lambda_after_adam"], rtol=1e-9, atol=0)
