"""One name for a model with its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef


__all__ = ["FingerprintCache", "fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of kind, configuration and weights: the same for a saved and loaded model, another after a change.

    The configuration is that of transformers, or the mapping `description` of a model of ours.
    """
    digest = hashlib.sha256(_kind(model))
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FingerprintCache:
    """The fingerprint of one model, hashed again only after a weight was changed in place or replaced.

    A change is seen as torch counts it: another storage, or a higher version of the tensor. Writing past torch, as
    through `.data` or numpy, is not counted. Weights of inference mode have no version: they are hashed each time.
    """

    def __init__(self) -> None:
        self._seen: tuple[Any, ...] | None = None
        self._value = ""

    def of(self, model: nn.Module) -> str:
        """`fingerprint(model)`."""
        seen = _state(model)
        if seen is None or seen != self._seen:
            self._value, self._seen = fingerprint(model), seen
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> FingerprintCache:
        return FingerprintCache()  # of other tensors

    def __reduce__(self) -> tuple[type[FingerprintCache], tuple[()]]:
        return FingerprintCache, ()


def _state(model: nn.Module) -> tuple[Any, ...] | None:
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    # An address alone is not enough: freed memory is given to the next tensor. As long as there is a weak reference,
    # no other storage has this identity; it does not keep the memory.
    return _kind(model), *(
        (StorageWeakRef(tensor.untyped_storage()), tensor.data_ptr(), tensor.dtype, tensor._version)
        for tensor in tensors
    )


def _kind(model: nn.Module) -> bytes:
    """Name of the class and configuration."""
    config: Any = getattr(model, "config", None)
    settings = config.to_diff_dict() if hasattr(config, "to_diff_dict") else getattr(model, "description", None)
    name = type(model).__name__.encode()
    if settings is None:
        return name
    kept = {key: value for key, value in settings.items() if key not in _UNSTABLE}
    return name + json.dumps(kept, sort_keys=True, default=str).encode()


# Written by save_pretrained, without effect on an output.
_UNSTABLE = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
