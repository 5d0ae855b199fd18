"""Sharded models, whole for a while."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


__all__ = ["whole_parameters"]


def whole_parameters(model: Any) -> AbstractContextManager[Any]:
    """Context in which the parameters of a ZeRO-3 model are whole on every process; nothing to do for others."""
    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()))
