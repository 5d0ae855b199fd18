"""CoTo: progressive activation of low-rank adapters, for any adapter of PEFT and any trainer (arXiv 2506.05713)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thurl.lazy import lazy_names


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

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
