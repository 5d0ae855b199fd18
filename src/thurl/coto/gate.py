"""The gate: an adapter layer of PEFT that is off in a training step runs its base layer and nothing else.

The gate is an instance-level `forward` and four plain attributes of the layer. It does not touch `requires_grad`,
weights, scaling or `_disable_adapters`, so `disable_adapter()`, `merge_adapter()`, saving and copying work as without
it; an adapter that is off gets no gradient at all (`None`), which optimizers skip.

This is the one module that knows private names of PEFT (checked with 0.21.2): `_active_adapter`,
`_get_available_adapters`, `module_dropout`, `oft_dropout`, `VARIANT_KWARG_KEYS`; tests/coto/test_gate.py fails if
they go.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora.layer import VARIANT_KWARG_KEYS
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from thurl.coto.idle import remove_idle
from thurl.coto.optimizers import touch
from thurl.errors import UsageError


__all__ = ["adapter_layers", "install_gate", "is_gated", "refuse_unsupported", "remove_gate", "remove_gates"]

# Arguments that PEFT's hooks add for its own layers; a base layer does not know them.
_PEFT_KWARGS = frozenset({"adapter_names", *VARIANT_KWARG_KEYS})


def _gated_forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    # Not torch.is_grad_enabled(): reentrant checkpointing runs its first pass without gradients, and both passes must
    # take the same way.
    if self._coto_off and self.training and not self.merged and not self.disable_adapters:
        active = self.active_adapters
        if self._coto_adapter in active:
            available = self._get_available_adapters()
            others = [name for name in active if name != self._coto_adapter and name in available]
            if not others:
                return self.base_layer(x, *args, **{k: v for k, v in kwargs.items() if k not in _PEFT_KWARGS})
            self._active_adapter = others
            try:
                return type(self).forward(self, x, *args, **kwargs)
            finally:
                self._active_adapter = active
    # Through the class, not through a method kept in a closure: that would run the original's weights in a copy.
    output = type(self).forward(self, x, *args, **kwargs)
    # DDP, if it does not look for unused parameters, waits for gradients of the adapters that are off.
    return touch(output, self._coto_touch) if self._coto_touch and self.training else output


def adapter_layers(model: torch.nn.Module, adapter_name: str) -> list[tuple[str, BaseTunerLayer]]:
    """Layers of PEFT that hold weights of this adapter, with their paths, in the order of `named_modules`.

    Trainable tokens and `modules_to_save` are no low-rank updates and are left out.
    """
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
        and not isinstance(module, TrainableTokensLayer)
        and adapter_name in module._get_available_adapters()
    ]


def is_gated(layer: torch.nn.Module) -> bool:
    """Whether the layer has this module's gate."""
    return getattr(layer.__dict__.get("forward"), "__func__", None) is _gated_forward


def install_gate(layer: BaseTunerLayer, adapter_name: str) -> None:
    """Give a layer the gate, switched on (all adapters active). A second time changes nothing but the name.

    Raises:
        UsageError: the layer has an instance-level `forward` of someone else.
    """
    if not is_gated(layer):
        if "forward" in layer.__dict__:
            raise UsageError(
                f"A layer of type {type(layer).__name__} has its own `forward` already (hooks of accelerate, "
                "`device_map`, or another wrapper); CoTo would silently bypass it. Load the model without "
                "`device_map`/offloading, or remove the hooks, and apply CoTo first."
            )
        layer.forward = MethodType(_gated_forward, layer)
    layer._coto_off = False
    layer._coto_adapter = adapter_name
    layer._coto_touch = []


def remove_gate(layer: torch.nn.Module) -> None:
    """Undo `install_gate`; nothing to do on a layer without a gate."""
    if is_gated(layer):
        for name in ("forward", "_coto_off", "_coto_adapter", "_coto_touch"):
            layer.__dict__.pop(name, None)


def remove_gates(model: torch.nn.Module) -> None:
    """Remove every gate of a model, for instance of a copy made while training."""
    for module in model.modules():
        remove_gate(module)
    remove_idle(model)


def refuse_unsupported(layers: list[tuple[str, BaseTunerLayer]], adapter_name: str) -> None:
    """Refuse adapters that CoTo cannot switch.

    Raises:
        UsageError: AdaLoRA, or a constant `module_dropout`.
    """
    problems = []
    if any(isinstance(layer, AdaLoraLayer) for _, layer in layers):
        problems.append(
            "The adapter is AdaLoRA, whose rank allocator reads the gradient of every layer in every step; under CoTo "
            "some have none. Use LoRA, DoRA or another adapter."
        )
    dropped = [path for path, layer in layers if _module_dropout(layer, adapter_name) > 0]
    if dropped:
        problems.append(
            f"`module_dropout` is {_module_dropout(dict(layers)[dropped[0]], adapter_name)} in {len(dropped)} layers "
            f"({dropped[0]} ...): it drops adapters at a constant rate, with other draws on each process. Set it to 0."
        )
    if problems:
        raise UsageError(problems)


def _module_dropout(layer: BaseTunerLayer, adapter_name: str) -> float:
    numbers = getattr(layer, "module_dropout", None)  # LoHa, LoKr
    if numbers is not None:
        return float(numbers.get(adapter_name, 0.0))
    modules = getattr(layer, "oft_dropout", None)  # OFT keeps a module
    return float(getattr(modules[adapter_name], "p", 0.0)) if modules is not None and adapter_name in modules else 0.0
