"""What thurl uses of accelerate beyond its documented interface; tests/training/test_accelerate_hooks.py guards it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


__all__ = ["without_autocast"]


@contextmanager
def without_autocast(model: torch.nn.Module) -> Iterator[None]:
    """Run a prepared model in the precision of its weights.

    `Accelerator.prepare_model` writes a forward with autocast over the model's own and keeps that as
    `_original_forward`; switching autocast off around a call would therefore do nothing.
    """
    own: dict[str, Any] = model.__dict__
    patched = own.get("forward")
    if patched is None or "_original_forward" not in own:
        yield
        return
    own["forward"] = own["_original_forward"]
    try:
        yield
    finally:
        own["forward"] = patched
