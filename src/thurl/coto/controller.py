"""Puts CoTo on a model: which adapters are on in which step (arXiv 2506.05713).

The mask is in force only while a step is open, from `begin_step` to `end_step`; between steps every adapter is on. So
saving, merging and whatever a callback does see the whole adapter, and a mask cannot change between a forward pass and
its backward pass, which checkpointing would turn into a wrong gradient.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch

from thurl.coto.config import CoToConfig
from thurl.coto.gate import install_gate, remove_gate
from thurl.coto.groups import initial_by_group, tower_of
from thurl.coto.idle import IdlePrefix
from thurl.coto.layout import adapter_parameters, find_groups, unwrapped
from thurl.coto.masks import draw_mask
from thurl.coto.optimizers import base_optimizer, skip_off
from thurl.coto.schedule import activation_probability
from thurl.errors import ThurlError, UsageError


__all__ = ["FEW_STEPS", "CoToController", "apply_coto"]

logger = logging.getLogger(__name__)

FEW_STEPS = 50
"""Below this number of optimizer steps adapters get too few updates (our measurements, docs/coto.md)."""


def apply_coto(
    model: torch.nn.Module,
    config: CoToConfig | None = None,
    total_steps: int | None = None,
    *,
    touch: bool = False,
    idle_prefix: bool = True,
) -> CoToController:
    """Put CoTo on a model that has a PEFT adapter.

    With several processes every one of them calls it: it compares settings and layers over the process group. On a
    model that has CoTo already the new controller replaces the old one.

    Args:
        model: `PeftModel`, or a model with `add_adapter`; wrappers (DDP, torch.compile) are looked through.
        config: default: the values of the released code.
        total_steps: optimizer steps of the whole run; can be set later on the controller.
        touch: give adapters that are off a gradient of zeros, for DDP with `find_unused_parameters=False`. Then
            `CoToController.guard` has to hide them from the optimizer.
        idle_prefix: ask for no gradients below the lowest active adapter (`thurl.coto.idle`); changes no result.

    Raises:
        UsageError: no such adapter, an adapter that CoTo cannot switch, or another `forward` on a layer.
        ThurlError: processes with other settings or layers.

    Example:

        >>> coto = apply_coto(model, CoToConfig(initial_p=0.1), total_steps=1000)
        >>> for step in range(1000):
        ...     coto.begin_step(step)
        ...     ...  # forward, backward, optimizer.step(), optimizer.zero_grad(set_to_none=True)
        ...     coto.end_step()
    """
    return CoToController(model, config or CoToConfig(), total_steps, touch=touch, idle_prefix=idle_prefix)


class CoToController:
    """Made by `apply_coto`.

    Attributes:
        config: the settings.
        groups: key to module paths, in the order of the mask.
        towers: tower of each group (`thurl.coto.groups.tower_of`; None between towers).
        active: one bool per group, of the open step; all True between steps and inside `all_active()`.
        total_steps: optimizer steps of the whole run, or None.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: CoToConfig,
        total_steps: int | None = None,
        *,
        touch: bool = False,
        idle_prefix: bool = True,
    ) -> None:
        found = find_groups(model, config)
        model = unwrapped(model)
        if touch and config.min_active == "allow_empty":
            raise UsageError("`touch` needs an active adapter in every step; `min_active` is 'allow_empty'.")
        self.config = config
        self.total_steps = total_steps
        self.groups = {key: tuple(dict.fromkeys(path for path, _ in members)) for key, members in found.items()}
        self.towers = tuple(tower_of(paths[0]) for paths in self.groups.values())
        self._initial = initial_by_group(self.groups, config.initial_p)
        self._layers = [[layer for _, layer in members] for members in found.values()]
        self._parameters = [
            [p for layer in members for p in adapter_parameters(layer, config.adapter_name)]
            for members in self._layers
        ]
        self._touch = touch
        self._undo: list[Callable[[], None]] = []
        self._model = model
        self._open: int | None = None
        self._step_mask: tuple[bool, ...] | None = None
        self._all_active = 0
        self._replace_other()
        try:
            for layer in self.layers():
                install_gate(layer, config.adapter_name)
        except UsageError:
            self._remove_gates()
            raise
        self._wrap_generate()
        self._idle = IdlePrefix(model) if idle_prefix else None
        model._coto_controller = self
        if total_steps is not None and total_steps < FEW_STEPS:
            _warn_of_few_steps(total_steps)
        bias = getattr(getattr(model, "peft_config", {}).get(config.adapter_name), "bias", "none")
        if bias != "none":
            logger.warning(
                "`bias` is %r: trained biases stay when an adapter is off, which is not the base model.", bias
            )
        self._compare_over_processes()

    # -- what a step looks like --------------------------------------------------------------------------------------

    def p(self, step: int) -> float:
        """Activation probability in optimizer step `step` (0-based), in [0, 1]. `hold` steps share one.

        The mean over the groups where `initial_p` differs by layer.

        Raises:
            UsageError: `total_steps` is not known.
        """
        each = self.group_p(step)
        return each[0] if len(set(each)) == 1 else sum(each) / len(each)

    def group_p(self, step: int) -> tuple[float, ...]:
        """The same, of each group.

        Raises:
            UsageError: `total_steps` is not known.
        """
        if self.total_steps is None:
            raise UsageError("`total_steps` is not known; pass it to `apply_coto`, or set `controller.total_steps`.")
        config = self.config
        by_start = {
            initial: activation_probability(
                self._held(step),
                self.total_steps,
                initial_p=initial,
                final_p=config.final_p,
                ratio=config.stage1_ratio,
                schedule=config.schedule,
            )
            for initial in set(self._initial)
        }
        return tuple(by_start[initial] for initial in self._initial)

    def mask(self, step: int) -> tuple[bool, ...]:
        """Which groups are on in optimizer step `step`; depends on the settings, the groups and `step` only."""
        mask, _ = draw_mask(
            self.group_p(step),
            len(self.groups),
            seed=self.config.seed,
            step=self._held(step),
            policy=self.config.min_active,
            towers=self.towers if self.config.min_active_per_tower else None,
        )
        return mask

    def _held(self, step: int) -> int:
        return step // self.config.hold * self.config.hold

    @property
    def active(self) -> tuple[bool, ...]:
        if self._step_mask is None or self._all_active:
            return (True,) * len(self.groups)
        return self._step_mask

    @property
    def open_step(self) -> int | None:
        """The optimizer step that has begun and not ended, or None."""
        return self._open

    @property
    def detached(self) -> bool:
        """Whether the model has no gates of this controller any more."""
        return getattr(self._model, "_coto_controller", None) is not self

    def layers(self) -> list[torch.nn.Module]:
        """The adapted modules that this controller switches."""
        return [layer for layers in self._layers for layer in layers]

    # -- steps -------------------------------------------------------------------------------------------------------

    def begin_step(self, step: int) -> None:
        """Put the mask of optimizer step `step` (0-based) in force, before its first forward pass.

        Once per optimizer step: all micro-batches of an accumulated gradient share the mask. Calling it again for the
        open step changes nothing.

        Raises:
            UsageError: another step is open, `total_steps` is not known, or the controller was detached.
        """
        if self.detached:
            raise UsageError("This controller was detached or replaced; use the one of the last `apply_coto`.")
        if self._open is not None and self._open != step:
            raise UsageError(
                f"Optimizer step {self._open} is open: the mask may not change between a forward pass and its "
                f"backward pass. Call `end_step()` before `begin_step({step})`."
            )
        self._step_mask = self.mask(step)
        self._open = step
        self._set_gates()

    def end_step(self) -> None:
        """End the open step; all adapters are on until the next one. Nothing to do if none is open."""
        self._open = None
        self._step_mask = None
        self._set_gates()

    @contextmanager
    def all_active(self) -> Iterator[None]:
        """All adapters on, for rollouts, old log-probabilities and the like inside a step. May be nested.

        A forward pass in it and its backward pass outside belong to different networks if activations are recomputed;
        keep both inside, or use it without gradients.
        """
        self._all_active += 1
        self._set_gates()
        try:
            yield
        finally:
            self._all_active -= 1
            self._set_gates()

    def _set_gates(self) -> None:
        if self.detached:
            return
        active = self.active
        for on, layers in zip(active, self._layers, strict=True):
            for layer in layers:
                layer._coto_off = not on
                layer._coto_touch = []
        off = self.off_parameters()
        if self._touch and off:
            # One layer, whose output needs a gradient anyway, and the last one, so that backward stops as early.
            last = max(index for index, on in enumerate(active) if on)
            self._layers[last][0]._coto_touch = off
        if self._idle is not None:
            if self._open is None:
                self._idle.reset()
            else:
                self._idle.apply(off)

    # -- for optimizers ----------------------------------------------------------------------------------------------

    def trained_groups(self) -> set[str]:
        """Keys of the groups that have trained parameters."""
        return {key for key, members in zip(self.groups, self._parameters, strict=True) if members}

    def off_groups(self) -> set[str]:
        """Keys of the groups that are off in the open step."""
        return {key for key, on in zip(self.groups, self.active, strict=True) if not on}

    def off_parameters(self) -> list[torch.nn.Parameter]:
        """Trained parameters of the adapters that are off in the open step."""
        return [p for on, members in zip(self.active, self._parameters, strict=True) if not on for p in members]

    def guard(self, optimizer: Any) -> None:
        """Hide the gradients of adapters that are off from an optimizer, until `detach`.

        Needed where they are zeros and not None: with `touch`, and behind DeepSpeed, whose optimizer must have been
        split by `thurl.coto.optimizers.split_by_group`.
        """
        base = base_optimizer(optimizer)
        if base is not None:
            self._undo.append(skip_off(base, self.off_groups, self.off_parameters))

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Settings and layers, JSON-able. There is no other state: a mask depends on these and the step only."""
        return {
            "config": self.config.to_dict(),
            "groups": {key: list(paths) for key, paths in self.groups.items()},
            "total_steps": self.total_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that a run resumes with the settings and layers it was saved with.

        Another `total_steps` changes p from here on, which is legal (a longer run) and warned about; if it is not
        known yet, it is taken from `state`.

        Raises:
            UsageError: other settings or other groups.
        """
        own = self.state_dict()
        problems = [
            f"CoTo resumes with `{name}` {own['config'].get(name)!r}; it was {value!r}."
            for name, value in state["config"].items()
            if own["config"].get(name) != value
        ]
        if list(own["groups"].items()) != list(state["groups"].items()):
            before, now = state["groups"], own["groups"]
            changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            problems.append(
                f"CoTo resumes on other groups of adapters: {len(now)} instead of {len(before)}, first difference "
                f"{changed[0] if changed else 'in their order'}. Use the same adapter and the same model."
            )
        if problems:
            raise UsageError(problems)
        if self.total_steps is None:
            self.total_steps = state["total_steps"]
        elif state["total_steps"] not in (None, self.total_steps):
            logger.warning(
                "CoTo: the run had %s optimizer steps and now has %s; p continues on the new schedule.",
                state["total_steps"], self.total_steps,
            )  # fmt: skip

    def _compare_over_processes(self) -> None:
        """Processes with other masks diverge, or wait for each other for ever."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return
        state = json.dumps(self.state_dict())  # order matters: it is the order of the mask
        digests: list[str | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(digests, hashlib.sha256(state.encode()).hexdigest())
        different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if different:
            self.detach()
            raise ThurlError(
                f"CoTo: processes {different} have other settings, adapters or numbers of steps than process 0. Here: "
                f"{self.config.to_dict()}, {len(self.groups)} groups, {self.total_steps} steps. Give all processes "
                "the same."
            )

    # -- on and off the model ----------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take CoTo off the model: all adapters are on, every layer has its own `forward` again."""
        if self.detached:
            return
        self._remove_gates()
        if self._idle is not None:
            self._idle.remove()
        while self._undo:
            self._undo.pop()()
        if getattr(self._model.__dict__.get("generate"), "__func__", None) is _generate_with_all:
            del self._model.generate
        del self._model._coto_controller
        self._open = self._step_mask = None

    def _remove_gates(self) -> None:
        for layers in self._layers:
            for layer in layers:
                remove_gate(layer)

    def _replace_other(self) -> None:
        other = getattr(self._model, "_coto_controller", None)
        if other is not None:
            other.detach()

    def _wrap_generate(self) -> None:
        """Rollouts of TRL run `generate` on the model in training mode, inside a step."""
        if callable(getattr(self._model, "generate", None)) and "generate" not in self._model.__dict__:
            self._model.generate = MethodType(_generate_with_all, self._model)


@functools.cache  # once: a continual learner makes hundreds of runs of one length
def _warn_of_few_steps(steps: int) -> None:
    logger.warning(
        "CoTo over %d optimizer steps: adapters are off for part of them and will be under-trained; use at least %d.",
        steps,
        FEW_STEPS,
    )


def _generate_with_all(self: Any, *args: Any, **kwargs: Any) -> Any:
    with self._coto_controller.all_active():
        return type(self).generate(self, *args, **kwargs)
