"""The official bi-level step of SJEDD through the losses and the outer step of thurl, and a run of the trainer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.losses import task_terms
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.deepfake.tiny import tiny_config
from thurl.training.bilevel import BilevelConfig, BilevelStep
from thurl.training.bilevel.mathematics import step_rules, virtual_parameters
from thurl.training.method_trainer import MethodTrainer


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


def faces(count, seed):
    generator = torch.Generator().manual_seed(seed)
    states = GRAPH.states[torch.randint(0, 251, (count,), generator=generator)].to(torch.int8)
    pictures = torch.randn(count, 3, 16, 16, generator=generator)
    return [{"pixel_values": picture, "labels": row} for picture, row in zip(pictures, states, strict=True)]


def test_a_step_of_the_trainer_encodes_the_faces_four_times(tmp_path):
    """Training pass, outer pass and the two of the finite difference; the official step has fifteen encodings.

    The official order needs one pass more, for the real step; here one pass serves the virtual and the real step.
    """
    torch.manual_seed(0)
    model = DeepFakeModel(tiny_config(image_size=16, patch_size=8, hidden=16, layers=1))
    calls = {"vision_model": 0, "text_model": 0}
    for name in calls:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = MethodTrainer(
        model,
        TrainingArguments(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        bilevel=BilevelConfig(tuple(GRAPH.tasks), ("binary",), lr=1e-2),
        train_dataset=faces(12, seed=1),
        outer_dataset=faces(8, seed=2),
    )
    trainer.train()
    assert calls == {"vision_model": 3 * 4, "text_model": 3 * 4}
    assert not [name for name, tensor in model.state_dict().items() if torch.equal(tensor.cpu(), before[name])]
    assert all(weight != 1.0 for weight in trainer.term_weights.values())
    assert all(f"terms/{task}" in trainer.state.log_history[0] for task in GRAPH.tasks)
