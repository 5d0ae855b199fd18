"""The idle prefix: nothing below the lowest active adapter needs a backward pass, a graph or a second forward pass.

Autograd sees this by itself as long as nothing else asks for gradients down there. What asks, in transformers, is
gradient checkpointing: it makes the embeddings' output require a gradient (`enable_input_require_grads`), which only
reentrant checkpointing needs, and that only for the blocks with active adapters. So, while a step is open:

- the embeddings' output does not require a gradient;
- blocks below the lowest active adapter are not checkpointed;
- with reentrant checkpointing the output of the last of them requires one, in place of the embeddings'.

No gradient of a weight changes, bit for bit; gradients of inputs are not made. Where something below is trained
(embeddings, `modules_to_save`, an active vision tower) autograd goes down there as before; with reentrant
checkpointing such a step is left as it is.

Private names of transformers 5.17 and PEFT 0.21 used here: the hooks `make_inputs_require_grads` and
`make_inputs_require_grad`, `GradientCheckpointingLayer.gradient_checkpointing` and `._gradient_checkpointing_func`;
tests/coto/test_idle.py fails if they go.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from thurl.coto.groups import plain_path, tower_of


__all__ = ["IdlePrefix", "remove_idle"]

_INPUT_HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad")


@dataclass(frozen=True)
class _Stack:
    """Blocks of a tower, from input to output, and the embeddings that feed them (None: not known)."""

    blocks: tuple[GradientCheckpointingLayer, ...]
    embeddings: torch.nn.Module | None
    tower: str | None


class IdlePrefix:
    """Made by the controller, which tells it what trains.

    Args:
        model: with adapters; unwrapped.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._undo: list[Callable[[], None]] = []
        self._embeddings = [module for module in model.modules() if _has_input_hook(module)]
        for module in self._embeddings:
            module._coto_strip = False
            module.register_forward_hook(_strip)

    def apply(self, off: Iterable[torch.nn.Parameter]) -> None:
        """For a mask: `off` are the parameters that the coming forward passes do not use."""
        self.reset()
        if not self._embeddings:
            return
        idle = {id(parameter) for parameter in off}
        trained = {
            id(parameter): tower_of(plain_path(name))
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad and id(parameter) not in idle
        }
        strip = [module for module in self._embeddings if not _uses(module, trained)]
        for stack in self._stacks():
            reentrant = any(_is_reentrant(block) for block in stack.blocks)
            lowest = next((i for i, block in enumerate(stack.blocks) if _uses(block, trained)), len(stack.blocks))
            sound = stack.embeddings in strip and not self._trained_before(stack, trained)
            if sound:
                for block in stack.blocks[:lowest]:
                    self._uncheckpoint(block)
            if reentrant:
                if stack.embeddings is None:
                    return self.reset()  # whose gradient it needs is not known
                if not sound or lowest == 0:
                    strip = [module for module in strip if module is not stack.embeddings]
                elif lowest < len(stack.blocks):
                    handle = stack.blocks[lowest - 1].register_forward_hook(_mark)
                    self._undo.append(handle.remove)
        for module in strip:
            module._coto_strip = True
        return None

    def _trained_before(self, stack: _Stack, trained: dict[int, str | None]) -> bool:
        """Whether anything that is trained, and is not in the stack, may feed it."""
        after = {id(parameter) for block in stack.blocks for parameter in block.parameters()}
        after |= {id(parameter) for parameter in _head(self._model)}
        # A vision tower feeds the projector and the language model, not the other way round.
        own = {stack.tower} if stack.tower in ("vision", "audio") else set(trained.values())
        return any(tower in own for key, tower in trained.items() if key not in after)

    def reset(self) -> None:
        """Everything as it was without a mask."""
        for module in self._embeddings:
            module._coto_strip = False
        while self._undo:
            self._undo.pop()()

    def remove(self) -> None:
        """Take the hooks off the model."""
        self.reset()
        remove_idle(self._model)
        self._embeddings = []

    def _stacks(self) -> list[_Stack]:
        """Stacks of blocks that are checkpointed now."""
        feeding = {name.rpartition(".")[0]: m for name, m in self._model.named_modules() if m in self._embeddings}
        found = []
        for name, module in self._model.named_modules():
            if isinstance(module, torch.nn.ModuleList):
                blocks = [block for block in module if isinstance(block, GradientCheckpointingLayer)]
                if any(block.gradient_checkpointing for block in blocks):
                    # `model.layers` is fed by `model.embed_tokens`.
                    embeddings = feeding.get(name.rpartition(".")[0])
                    found.append(_Stack(tuple(blocks), embeddings, tower_of(plain_path(name))))
        return found

    def _uncheckpoint(self, block: GradientCheckpointingLayer) -> None:
        # Not `gradient_checkpointing = False`: with it the block also keeps the key-value cache out.
        if block.gradient_checkpointing and "_gradient_checkpointing_func" in block.__dict__:
            function = block._gradient_checkpointing_func
            block._gradient_checkpointing_func = _Plain(function)
            self._undo.append(partial(setattr, block, "_gradient_checkpointing_func", function))


class _Plain:
    """In place of a checkpointing function: calls the block and stores what it replaced."""

    def __init__(self, replaced: Callable[..., Any]) -> None:
        self.replaced = replaced

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def remove_idle(model: torch.nn.Module) -> None:
    """Remove every trace of this module from a model, for instance from a copy made while training."""
    for module in model.modules():
        module.__dict__.pop("_coto_strip", None)
        for number, hook in list(module._forward_hooks.items()):
            if hook in (_strip, _mark):
                del module._forward_hooks[number]
        function = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(function, _Plain):
            module._gradient_checkpointing_func = function.replaced


def _strip(module: torch.nn.Module, arguments: Any, output: Any) -> None:
    if module._coto_strip and module.training and torch.is_tensor(output) and output.is_leaf:
        output.requires_grad_(False)


def _mark(module: torch.nn.Module, arguments: Any, output: Any) -> None:
    tensor = output if torch.is_tensor(output) else output[0]
    if module.training and torch.is_grad_enabled() and tensor.is_leaf:
        tensor.requires_grad_(True)


def _has_input_hook(module: torch.nn.Module) -> bool:
    return any(getattr(hook, "__name__", "") in _INPUT_HOOKS for hook in module._forward_hooks.values())


def _uses(module: torch.nn.Module, trained: Container[int]) -> bool:
    return any(id(parameter) in trained for parameter in module.parameters())


def _head(model: torch.nn.Module) -> Iterable[torch.nn.Parameter]:
    """Parameters of the output head, which lies above every block."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return head.parameters() if head is not None else ()


def _is_reentrant(block: GradientCheckpointingLayer) -> bool:
    """Whether it is checkpointed, and not known to be the mode that needs no input with a gradient."""
    if not block.gradient_checkpointing:
        return False
    function = block._gradient_checkpointing_func
    return getattr(function, "keywords", {}).get("use_reentrant", True) is not False
