"""The weights rise for a task that helps the primary one and fall for one that works against it."""

import time

import pytest
import torch

from thurl.ranking import class_fidelity_loss
from thurl.training.bilevel import BilevelConfig, BilevelStep


TASKS = ("primary", "aligned", "random", "adversarial")


def learned_weights(seed, steps=300, **options):
    """Four tasks on one two-way output; the label is the side of a plane in 20 dimensions.

    Primary: a quarter of the labels are wrong; aligned: all right; random: coin tosses; adversarial: all wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    normal = torch.randn(20, generator=generator)
    net = torch.nn.Sequential(
        torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)
    )

    def batch():
        x = torch.randn(32, 20, generator=generator)
        true = (x @ normal > 0).long()
        wrong = torch.rand(32, generator=generator) < 0.25
        coin = torch.randint(0, 2, (32,), generator=generator)
        return x, (true ^ wrong.long(), true, coin, 1 - true)

    def losses(data):
        output = net(data[0])
        return torch.stack([class_fidelity_loss(output, labels) for labels in data[1]]), None

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    outer = BilevelStep(BilevelConfig(TASKS, ("primary",), lr=0.02, **options))
    for _ in range(steps):
        train = batch()
        outer.step(net, optimizer, losses, [train], [batch()])
        optimizer.zero_grad()
        outer.weighted(losses(train)[0]).backward()
        optimizer.step()
    return dict(zip(TASKS, outer.weights.tolist(), strict=True))


@pytest.mark.parametrize("seed", [101, 102, 103, 104])
def test_helpful_tasks_gain_and_harmful_ones_lose(seed):
    weights = learned_weights(seed)
    assert weights["aligned"] > 1.6
    assert weights["adversarial"] < 0.6
    assert weights["aligned"] - weights["random"] > 0.6


if __name__ == "__main__":
    for seed in range(4):
        start = time.process_time()
        print(seed, learned_weights(seed), time.process_time() - start)
