"""How useful a set of pictures is: the test accuracy of fresh networks trained on it alone.

The protocol of the DD-RUO code: SGD with momentum 0.9 and weight decay 5e-4, batches of 256, the rate times 0.1 and
the momentum forgotten at the middle, one DSA operation per batch, accuracy at the end. The networks train one after
the other: stacked in one call (`torch.func`) they give the same and were slower on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from thurl.distillation.classifier_training import accuracy, batches, train_step
from thurl.distillation.dsa import DsaConfig
from thurl.distillation.networks import NetworkConfig, draw_network
from thurl.distillation.pictures import PictureSet, normalise
from thurl.errors import DataError, UsageError


__all__ = ["Evaluation", "EvaluationConfig", "evaluate", "evaluate_across", "phases"]

OTHER_LR = 0.02
"""Of the networks other than ConvNet in the paper's cross-architecture runs."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Protocol.

    Args:
        network: what is trained.
        lr: at the start; trajectory matching takes the rate it has learned.
        momentum, weight_decay: of SGD.
        batch: pictures per step.
        epochs: E stands for E + 1 passes, as in the official code: E // 2 + 2 at `lr`, then a tenth of it.
        images: pictures seen in all, in place of `epochs`; the first half at `lr`. Batches are then filled across
            passes, so that a set of ten pictures trains in as many steps as one of a thousand.
        dsa: augmentation of every batch, or None.

    Raises:
        UsageError: a value outside its range.
    """

    network: NetworkConfig
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    epochs: int = 1000
    images: int | None = None
    dsa: DsaConfig | None = field(default_factory=DsaConfig)

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.lr < math.inf:
            problems.append(f"lr: {self.lr} must be above 0")
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum: {self.momentum} must be at least 0 and below 1")
        if not 0 <= self.weight_decay < math.inf:
            problems.append(f"weight_decay: {self.weight_decay} must be at least 0")
        for name in ("batch", "epochs", "images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                problems.append(f"{name}: {getattr(self, name)} must be at least 1")
        if problems:
            raise UsageError(problems)


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies.

    Attributes:
        seeds: one per network.
        accuracies: 0 to 1; NaN for a network that diverged.
        cpu_seconds: of this process, for all networks.
    """

    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    cpu_seconds: float

    @property
    def mean(self) -> float:
        """NaN if a network diverged."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation between networks, with divisor n as in the paper; 0 for a single one."""
        return math.sqrt(sum((value - self.mean) ** 2 for value in self.accuracies) / len(self.accuracies))


def phases(config: EvaluationConfig, count: int) -> tuple[tuple[int, float], tuple[int, float]]:
    """Steps and learning rate before and after the drop, for a set of `count` pictures."""
    if config.images is not None:
        total = -(-config.images // config.batch)
        first = -(-total // 2)
    else:
        per_epoch = -(-count // config.batch)
        total = (config.epochs + 1) * per_epoch
        first = min(total, (config.epochs // 2 + 2) * per_epoch)
    return (first, config.lr), (total - first, 0.1 * config.lr)


def evaluate(
    images: torch.Tensor,
    labels: torch.Tensor,
    test: PictureSet,
    config: EvaluationConfig,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Train one fresh network per seed on a set of pictures and test it.

    Args:
        images: (N, channels, H, W): uint8, or floating with [0, 1] for black to white. Normalised as `test` says.
        labels: int64 (N,), or floating (N, classes) logits of soft labels.
        test: real pictures that no part of the distillation has seen.
        seeds: each fixes the weights, the order and the augmentation of its network.
        device: where it is trained.

    Raises:
        DataError: shapes or classes that do not fit, or a pixel that is not finite; everything found.
        UsageError: no seed, or one twice.
    """
    _check(images, labels, test, config, seeds)
    start = time.process_time()
    pixels = normalise(images.to(device), test.mean, test.std).float()
    targets = labels.to(device)
    if targets.is_floating_point():
        targets = targets.float().softmax(dim=1)
    unseen, truth = test.normalised(device), test.labels.to(device)
    found = tuple(_one(pixels, targets, unseen, truth, config, seed) for seed in seeds)
    return Evaluation(tuple(seeds), found, time.process_time() - start)


def evaluate_across(
    images: torch.Tensor,
    labels: torch.Tensor,
    test: PictureSet,
    config: EvaluationConfig,
    networks: Mapping[str, NetworkConfig],
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> dict[str, Evaluation]:
    """`evaluate` with each of `networks` in place of the configuration's; others than ConvNet at a rate of 0.02."""
    return {
        key: evaluate(
            images,
            labels,
            test,
            replace(config, network=network, lr=config.lr if network.name == "convnet" else OTHER_LR),
            seeds,
            device,
        )
        for key, network in networks.items()
    }


def _one(
    pixels: torch.Tensor,
    targets: torch.Tensor,
    unseen: torch.Tensor,
    truth: torch.Tensor,
    config: EvaluationConfig,
    seed: int,
) -> float:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[pixels.device] if pixels.device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout draws from the global generator
        network = draw_network(config.network, generator).to(pixels.device)
        rows = _rows(len(pixels), config, generator)
        for steps, lr in phases(config, len(pixels)):
            optimizer = torch.optim.SGD(
                network.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
            )
            for _ in range(steps):
                chosen = next(rows).to(pixels.device)
                train_step(network, optimizer, pixels[chosen], targets[chosen], config.dsa, generator)
    return accuracy(network, unseen, truth)


def _rows(count: int, config: EvaluationConfig, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices of one batch after the other, without end."""
    rest = torch.zeros(0, dtype=torch.int64)
    while True:
        if config.images is None:
            yield from batches(count, config.batch, generator)
            continue
        while len(rest) < config.batch:
            rest = torch.cat([rest, torch.randperm(count, generator=generator)])
        yield rest[: config.batch]
        rest = rest[config.batch :]


def _check(
    images: torch.Tensor, labels: torch.Tensor, test: PictureSet, config: EvaluationConfig, seeds: Sequence[int]
) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {list(seeds)}: at least one is needed, each once")
    classes, shape = len(test.classes), tuple(test.images.shape[1:])
    problems = []
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or not len(images):
        problems.append(f"pictures {tuple(images.shape)}: those of the test set are {shape}")
    if images.is_floating_point() and not bool(images.isfinite().all()):
        problems.append("a pixel is not finite; the set cannot be trained on")
    wanted = (len(images), classes) if labels.is_floating_point() else (len(images),)
    if tuple(labels.shape) != wanted:
        problems.append(f"labels {tuple(labels.shape)}: {wanted} is needed")
    elif labels.is_floating_point():
        if not bool(labels.isfinite().all()):
            problems.append("a soft label is not finite")
    elif len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        problems.append(f"labels {int(labels.min())} to {int(labels.max())}: the test set has {classes} classes")
    network = config.network
    if (network.channels, network.height, network.width, network.classes) != (*shape, classes):
        problems.append(
            f"network for {network.channels}x{network.height}x{network.width} pixels and {network.classes} classes: "
            f"the test set has {'x'.join(map(str, shape))} and {classes}"
        )
    if problems:
        raise DataError("\n".join(problems))
