"""Which adapted modules of a model CoTo switches, in groups, and which parameters they train."""

from __future__ import annotations

from typing import Any

import torch

from thurl.coto.config import CoToConfig
from thurl.coto.gate import adapter_layers, refuse_unsupported
from thurl.coto.groups import group_modules, plain_path, select
from thurl.errors import UsageError


__all__ = ["adapter_parameters", "find_groups", "unwrapped"]


def find_groups(model: torch.nn.Module, config: CoToConfig) -> dict[str, list[tuple[str, Any]]]:
    """Adapted modules that CoTo switches: key of the group to (path, layer), in the order of the mask.

    Raises:
        UsageError: no such adapter, or one that CoTo cannot switch.
    """
    model = unwrapped(model)
    found = adapter_layers(model, config.adapter_name)
    if not found:
        raise UsageError(
            f"{type(model).__name__} has no adapter {config.adapter_name!r} of PEFT (or only `modules_to_save`); "
            "add one with `get_peft_model` and name it in `adapter_name`."
        )
    paths = [plain_path(path) for path, _ in found]
    chosen = select(paths, config.include, config.exclude)
    if not chosen:
        raise UsageError(
            f"`include` {config.include!r} and `exclude` {config.exclude!r} leave none of {len(paths)} adapted "
            f"modules, such as {paths[0]!r}."
        )
    refuse_unsupported([found[index] for index in chosen], config.adapter_name)
    members = group_modules([paths[index] for index in chosen], config.group_by)
    return {key: [(paths[chosen[i]], found[chosen[i]][1]) for i in group] for key, group in members.items()}


def adapter_parameters(layer: torch.nn.Module, adapter_name: str) -> list[torch.nn.Parameter]:
    """Parameters of one adapter in a layer of PEFT that are trained; none of its base layer or of other adapters."""
    return [
        parameter
        for name, parameter in layer.named_parameters()
        if parameter.requires_grad and not name.startswith("base_layer.") and adapter_name in name.split(".")
    ]


_ENGINES = ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine", "FullyShardedDataParallel")


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DDP, FSDP, DeepSpeed's engine and torch.compile."""
    # Through `_modules`: a PeftModel answers for its inner models, too.
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and type(model).__name__ in _ENGINES:
            inner = model._modules.get("module", model._modules.get("_fsdp_wrapped_module"))
        if inner is None:
            return model
        model = inner
