"""A whole study on a CPU: a tiny ViT trained on the digits of scikit-learn, and shifted digits it gets wrong.

The digits are 1,797 pictures of 8x8, enlarged to 16x16: 900 to train on, 897 to test. The shifts are systematic
changes of the test pictures, never trained on. What such a small network shows says nothing about ViT-B/16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from thurl.errors import MissingRequirementError, UsageError
from thurl.messages import nearest


__all__ = ["SHIFTS", "Digits", "FailureGroup", "failure_groups", "load_digit_pictures", "pretrain_digits", "shifted"]

SHIFTS = ("rotate_left", "rotate_right", "stripes", "shrink", "blur", "shear")
SIDE = 16
_TRAIN = 900
_MEAN = _STD = 0.5


@dataclass(frozen=True)
class Digits:
    """The pictures as the network reads them, float32 (N, 1, 16, 16) in [-1, 1], and their classes, int64 (N,)."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor


@dataclass(frozen=True)
class FailureGroup:
    """Pictures of one shift that the model gets wrong in one way.

    Args:
        shift: one of `SHIFTS`.
        true, predicted: classes.
        pictures: (n, 1, 16, 16).
    """

    shift: str
    true: int
    predicted: int
    pictures: torch.Tensor


def load_digit_pictures(seed: int) -> Digits:
    """The digits, shared out by a permutation with `seed`.

    Raises:
        MissingRequirementError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingRequirementError("the digits come with scikit-learn: pip install 'thurl[vision]'") from None
    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] / 16
    pictures = functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    pictures, labels = _normalised(pictures[order]), torch.from_numpy(found.target).long()[order]
    return Digits(pictures[:_TRAIN], labels[:_TRAIN], pictures[_TRAIN:], labels[_TRAIN:])


def shifted(pictures: torch.Tensor, shift: str) -> torch.Tensor:
    """Pictures of one shift, of the same shape; without randomness.

    Raises:
        UsageError: no such shift.
    """
    plain = pictures * _STD + _MEAN
    if shift == "stripes":
        plain = plain.clone()
        plain[..., ::4, :] += 0.8
    elif shift == "blur":
        plain = _blurred(plain, 2.2)
    elif shift in _AFFINE:
        plain = _moved(plain, torch.tensor(_AFFINE[shift]).expand(len(plain), -1, -1))
    else:
        raise UsageError(f"shift {shift!r} is none of {', '.join(SHIFTS)}{nearest(shift, SHIFTS)}")
    return _normalised(plain.clamp(0, 1))


def pretrain_digits(
    digits: Digits,
    *,
    seed: int = 0,
    epochs: int = 24,
    batch_size: int = 60,
    spread: float = 0.02,
    jitter: float = 1.0,
) -> Any:
    """A ViT of 6 blocks of width 48 for transformers, trained on `digits.train`, in evaluation mode.

    AdamW with one cycle up to 2e-3, weight decay and label smoothing 0.05; every picture is turned, moved and scaled a
    little and gets noise. Weights and draws follow from `seed`; torch's global generator is put back afterwards.

    Args:
        digits: the pictures.
        seed: of weights and draws.
        epochs: at least 1.
        batch_size: pictures in a step.
        spread: standard deviation of the first weights.
        jitter: factor on how far pictures are turned (0.1 rad), scaled and moved (0.05).

    Raises:
        UsageError: fewer than one epoch.
    """
    from transformers import ViTConfig, ViTForImageClassification

    if epochs < 1:
        raise UsageError(f"epochs is {epochs}; it must be 1 or more")
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=SIDE,
        patch_size=4,
        num_channels=1,
        num_labels=10,
        layer_norm_eps=1e-6,
        initializer_range=spread,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTForImageClassification(config).train()
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(digits.train) / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.train), generator=generator).split(batch_size):
            pictures = _jittered(digits.train[rows], generator, jitter)
            logits = model(pictures).logits
            loss = functional.cross_entropy(logits, digits.train_labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def failure_groups(
    classifier: Any,
    digits: Digits,
    *,
    smallest: int = 12,
    largest: int = 40,
    per_shift: int = 2,
    shifts: Sequence[str] = SHIFTS,
) -> list[FailureGroup]:
    """Groups of test pictures with one shift, one class and one wrong answer; the largest of each shift.

    Args:
        classifier: `thurl.editing.classifier.Classifier` of the digits.
        digits: its pictures.
        smallest: pictures a group must have.
        largest: pictures that are kept of a group, the first ones.
        per_shift: groups of one shift.
        shifts: of `SHIFTS`.
    """
    found = []
    for shift in shifts:
        pictures = shifted(digits.test, shift)
        predicted = classifier.logits(pictures).argmax(dim=-1)
        pairs: dict[tuple[int, int], list[int]] = {}
        for row, (true, wrong) in enumerate(zip(digits.test_labels.tolist(), predicted.tolist(), strict=True)):
            if true != wrong:
                pairs.setdefault((true, wrong), []).append(row)
        ordered = sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))
        for (true, wrong), rows in ordered[:per_shift]:
            if len(rows) >= smallest:
                found.append(FailureGroup(shift, true, wrong, pictures[rows[:largest]]))
    return found


# Where a pixel comes from, in coordinates from -1 to 1.
_TURN = math.radians(40)
_AFFINE = {
    "rotate_left": [[math.cos(_TURN), -math.sin(_TURN), 0.0], [math.sin(_TURN), math.cos(_TURN), 0.0]],
    "rotate_right": [[math.cos(_TURN), math.sin(_TURN), 0.0], [-math.sin(_TURN), math.cos(_TURN), 0.0]],
    "shrink": [[1 / 0.55, 0.0, 0.0], [0.0, 1 / 0.55, 0.0]],
    "shear": [[1.0, 0.7, 0.0], [0.0, 1.0, 0.0]],
}


def _normalised(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures - _MEAN) / _STD


def _moved(pictures: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    grid = functional.affine_grid(matrices, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="zeros", align_corners=False)


def _blurred(pictures: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma).square())
    weights = weights / weights.sum()
    padded = functional.pad(pictures, (radius, radius, radius, radius))
    return functional.conv2d(functional.conv2d(padded, weights[None, None, :, None]), weights[None, None, None])


def _jittered(pictures: torch.Tensor, generator: torch.Generator, strength: float) -> torch.Tensor:
    def around(middle: float, reach: float) -> torch.Tensor:
        return torch.rand(len(pictures), generator=generator) * (2 * strength * reach) + (middle - strength * reach)

    turn, zoom = around(0, 0.1), around(1, 0.05)
    cosine, sine = torch.cos(turn) / zoom, torch.sin(turn) / zoom
    rows = [cosine, -sine, around(0, 0.05), sine, cosine, around(0, 0.05)]
    plain = _moved(pictures * _STD + _MEAN, torch.stack(rows, dim=1).reshape(-1, 2, 3))
    return _normalised(plain + 0.05 * torch.randn(plain.shape, generator=generator))
