"""The networks and tasks of the official golden runs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thurl.ranking import (
    class_fidelity_loss,
    expected_level,
    fidelity_loss,
    multilabel_fidelity_loss,
    pairwise_fidelity_loss,
)


GOLDEN = Path(__file__).parents[2] / "golden"


class Net(torch.nn.Module):
    """Linear, tanh, linear with the parameter names of a golden file."""

    def __init__(self, first, second, outputs):
        super().__init__()
        self.names = (first, second)
        self.add_module(first, torch.nn.Linear(6, 8, dtype=torch.float64))
        self.add_module(second, torch.nn.Linear(8, outputs, dtype=torch.float64))

    def forward(self, x):
        first, second = (self.get_submodule(name) for name in self.names)
        return second(torch.tanh(first(x)))


def eleven_tasks(x, label):
    """BLADES: 49 logits to the losses (11,) of its tasks."""
    names = ("makes", "mm", "em", "wb", "ep")
    classes = zip(names, ((12, 22), (22, 30), (30, 37), (37, 39), (39, 45)), strict=True)
    ordinal = zip(("iso", "av", "et", "fl"), (0, 3, 6, 9), strict=True)
    losses = [pairwise_fidelity_loss(expected_level(x[:, i : i + 3]), label[name]) for name, i in ordinal]
    losses += [class_fidelity_loss(x[:, i:j], label[name], gamma=2) for name, (i, j) in classes]
    coarse, fine = label["face2text"][:, :2].argmax(dim=1), label["face2text"][:, 2:]
    return torch.stack([*losses, class_fidelity_loss(x[:, 45:47], coarse), multilabel_fidelity_loss(x[:, 47:], fine)])


def three_tasks(x, labels, states):
    """SJEDD: energies (N, 10) to the losses (3,) of binary, global and local marginals."""
    p = (x @ states.T).softmax(dim=1)
    p, complement = p @ states, p @ (1 - states)
    parts = (slice(0, 1), slice(1, 4), slice(4, 10))
    return torch.stack([fidelity_loss(p[:, i], labels[:, i], complement=complement[:, i]) for i in parts])


@pytest.fixture(scope="session")
def blades():
    """Golden tensors, a maker of the network at its start, and its losses on a batch (x, labels)."""
    data = load_file(GOLDEN / "exif_blo_steps.safetensors")

    def build():
        net = Net("l1", "l2", 49)
        net.load_state_dict({name.removeprefix("init."): v for name, v in data.items() if name.startswith("init.")})
        return net

    def batch(step, which):
        prefix = f"step{step}.{which}_"
        labels = {name.removeprefix(f"{prefix}y."): v for name, v in data.items() if name.startswith(f"{prefix}y.")}
        return data[f"{prefix}x"], labels

    return data, build, batch, lambda net: lambda batch: (eleven_tasks(net(batch[0]), batch[1]), None)


@pytest.fixture(scope="session")
def sjedd():
    data = load_file(GOLDEN / "sjedd_bilevel.safetensors")
    states = load_file(GOLDEN / "sjedd_joint_fidelity.safetensors")["legal_states"].double()

    def build():
        net = Net("a", "b", 10)
        net.load_state_dict({name.removeprefix("net."): v for name, v in data.items() if name.startswith("net.")})
        return net

    def batch(which):
        return data[f"x_{which}"], data[f"y_{which}"]

    return data, build, batch, lambda net: lambda batch: (three_tasks(net(batch[0]), batch[1], states), None)
