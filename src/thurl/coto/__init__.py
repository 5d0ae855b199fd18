"""CoTo: progressive activation of low-rank adapters, for any adapter of PEFT and any trainer (arXiv 2506.05713)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


# name -> module. Resolved on first use, so that reading a schedule does not import torch.
_PUBLIC = {
    "CoToCallback": "thurl.coto.callback",
    "CoToConfig": "thurl.coto.config",
    "CoToController": "thurl.coto.controller",
    "CoToGRPOMixin": "thurl.coto.grpo",
    "apply_coto": "thurl.coto.controller",
}

__all__ = ["CoToCallback", "CoToConfig", "CoToController", "CoToGRPOMixin", "apply_coto"]

if TYPE_CHECKING:
    from thurl.coto.callback import CoToCallback
    from thurl.coto.config import CoToConfig
    from thurl.coto.controller import CoToController, apply_coto
    from thurl.coto.grpo import CoToGRPOMixin


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
