"""One name for a model with its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn


__all__ = ["fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of kind, configuration and weights: the same for a saved and loaded model, another after a change.

    The configuration is that of transformers, or the mapping `description` of a model of ours.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    config: Any = getattr(model, "config", None)
    settings = config.to_diff_dict() if hasattr(config, "to_diff_dict") else getattr(model, "description", None)
    if settings is not None:
        kept = {key: value for key, value in settings.items() if key not in _UNSTABLE}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Written by save_pretrained, without effect on an output.
_UNSTABLE = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
