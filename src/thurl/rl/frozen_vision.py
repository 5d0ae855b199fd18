"""A frozen vision tower computes no gradients, also when layers are recomputed.

For recomputing, transformers 5.17 (`enable_input_require_grads`) marks the output of every embedding as needing
gradients, that of the patch embedding as well. A frozen tower, also one below adapters, is then run backwards for
nothing, and keeps what that needs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


__all__ = ["VISION_MODULES", "skip_frozen_towers"]

VISION_MODULES = ("visual", "vision_tower", "vision_model")
"""What the towers of transformers' vision-language models are called."""


def skip_frozen_towers(model: torch.nn.Module) -> int:
    """Run vision towers without gradients whenever none of their parameters is trained.

    Whether one is trained is looked up in each call, so a tower that is unfrozen later trains.

    Args:
        model: possibly wrapped; changed in place.

    Returns:
        number of towers.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in VISION_MODULES and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
            module.forward = _without_gradients(module, module.forward)
    return len(found)


def _without_gradients(tower: torch.nn.Module, forward: Any) -> Any:
    @functools.wraps(forward)
    def run(*arguments: Any, **options: Any) -> Any:
        trained = any(parameter.requires_grad for parameter in tower.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return forward(*arguments, **options)

    return run
