"""Optimizers as official code makes them, where transformers would make another one."""

from __future__ import annotations

import torch
from transformers import TrainingArguments


__all__ = ["one_group_optimizer"]


def one_group_optimizer(kind: str, model: torch.nn.Module, args: TrainingArguments) -> torch.optim.Optimizer | None:
    """torch's Adam or AdamW with all parameters in one group: biases and norms decay as the other weights do.

    Args:
        kind: `adam`, `adamw`, or `training`, which leaves the choice to `args`.
        model: on its device.
        args: rate, betas, eps and weight decay.

    Returns:
        the optimizer; None for `training`.
    """
    if kind == "training":
        return None
    cls = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    return cls(
        model.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
    )
