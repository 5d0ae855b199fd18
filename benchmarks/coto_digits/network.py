"""A small vision transformer, and the digits of scikit-learn split so that no choice is made on a test digit."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention


LAYERS, WIDTH, HEADS = 6, 64, 4
TARGETS = ("q", "k", "v", "o", "fc1", "fc2")
UPRIGHT, TUNING, TEST, VALIDATION = 900, 300, 300, 297

Digits = tuple[torch.Tensor, torch.Tensor]
"""(n, 8, 8) pictures in [0, 1] and (n,) labels."""


class Block(nn.Module):
    """One layer; six linear maps, all of which get an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 16, 64) to the same."""
        y = self.norm1(x)
        heads = [part(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)]
        x = x + self.o(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class TinyViT(nn.Module):
    """(B, 8, 8) pictures in [0, 1] to (B, 10) logits; patches of 2 x 2, mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(16, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        patches = pictures.unflatten(1, (4, 2)).unflatten(3, (4, 2)).transpose(2, 3).flatten(1, 2).flatten(2)
        x = self.embed(patches) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


def digits(seed: int) -> dict[str, Digits]:
    """The parts of the 1797 digits, by name.

    `validation` (297) is drawn once and is the same for all seeds; the others are split anew for each seed: `upright`
    (900) for pre-training, `tuning` (300) and `test` (300). So what is chosen on the validation digits of one seed
    never saw a test digit of another.
    """
    found = load_digits()
    fixed = np.random.default_rng(2025).permutation(len(found.target))
    validation, rest = fixed[:VALIDATION], fixed[VALIDATION:]
    rest = rest[np.random.default_rng(seed).permutation(len(rest))]
    rows = {
        "upright": rest[:UPRIGHT],
        "tuning": rest[UPRIGHT : UPRIGHT + TUNING],
        "test": rest[UPRIGHT + TUNING :],
        "validation": validation,
    }
    return {
        name: (torch.tensor(found.images[chosen] / 16, dtype=torch.float32), torch.tensor(found.target[chosen]))
        for name, chosen in rows.items()
    }


def of_task(data: Digits, task: str) -> Digits:
    """The digits as a task shows them: `rotated` by 90 degrees, `inverted` (dark on light), or `upright`."""
    pictures, labels = data
    if task == "rotated":
        pictures = torch.rot90(pictures, 1, dims=(1, 2))
    elif task == "inverted":
        pictures = 1 - pictures
    return pictures, labels
