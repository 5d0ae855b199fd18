"""Puts CoTo on a model: which adapters are on in which step (arXiv 2506.05713).

The mask is in force only while a step is open, from `begin_step` to `end_step`; between steps every adapter is on. So
saving, merging and whatever a callback does see the whole adapter, and a mask cannot change between a forward pass and
its backward pass, which checkpointing would turn into a wrong gradient.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch

from thurl.coto.config import CoToConfig
from thurl.coto.gate import adapter_layers, install_gate, refuse_unsupported, remove_gate
from thurl.coto.groups import group_modules, plain_path, select, tower_of
from thurl.coto.masks import draw_mask
from thurl.coto.schedule import activation_probability
from thurl.errors import ThurlError, UsageError


__all__ = ["FEW_STEPS", "CoToController", "apply_coto"]

logger = logging.getLogger(__name__)

FEW_STEPS = 50
"""Below this number of optimizer steps adapters get too few updates (our measurements, docs/coto.md)."""


def apply_coto(
    model: torch.nn.Module, config: CoToConfig | None = None, total_steps: int | None = None
) -> CoToController:
    """Put CoTo on a model that has a PEFT adapter.

    With several processes every one of them calls it: it compares settings and layers over the process group. On a
    model that has CoTo already the new controller replaces the old one.

    Args:
        model: `PeftModel`, or a model with `add_adapter`; wrappers (DDP, torch.compile) are looked through.
        config: default: the values of the released code.
        total_steps: optimizer steps of the whole run; can be set later on the controller.

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
    return CoToController(model, config or CoToConfig(), total_steps)


class CoToController:
    """Made by `apply_coto`.

    Attributes:
        config: the settings.
        groups: key to module paths, in the order of the mask.
        towers: tower of each group (`thurl.coto.groups.tower_of`; None between towers).
        active: one bool per group, of the open step; all True between steps and inside `all_active()`.
        total_steps: optimizer steps of the whole run, or None.
    """

    def __init__(self, model: torch.nn.Module, config: CoToConfig, total_steps: int | None = None) -> None:
        model = _unwrapped(model)
        self.config = config
        self.total_steps = total_steps
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
        layers = [found[index][1] for index in chosen]
        self.groups = {key: tuple(dict.fromkeys(paths[chosen[i]] for i in group)) for key, group in members.items()}
        self.towers = tuple(tower_of(group[0]) for group in self.groups.values())
        self._layers = [[layers[i] for i in group] for group in members.values()]
        self._model = model
        self._open: int | None = None
        self._step_mask: tuple[bool, ...] | None = None
        self._all_active = 0
        self._replace_other()
        try:
            for layer in layers:
                install_gate(layer, config.adapter_name)
        except UsageError:
            self._remove_gates()
            raise
        self._wrap_generate()
        model._coto_controller = self
        if total_steps is not None and total_steps < FEW_STEPS:
            logger.warning(
                "CoTo over %d optimizer steps: adapters are off for part of them and will be under-trained; use at "
                "least %d.", total_steps, FEW_STEPS,
            )  # fmt: skip
        bias = getattr(getattr(model, "peft_config", {}).get(config.adapter_name), "bias", "none")
        if bias != "none":
            logger.warning(
                "`bias` is %r: trained biases stay when an adapter is off, which is not the base model.", bias
            )
        self._compare_over_processes()

    # -- what a step looks like --------------------------------------------------------------------------------------

    def p(self, step: int) -> float:
        """Activation probability in optimizer step `step` (0-based), in [0, 1]. `hold` steps share one.

        Raises:
            UsageError: `total_steps` is not known.
        """
        if self.total_steps is None:
            raise UsageError("`total_steps` is not known; pass it to `apply_coto`, or set `controller.total_steps`.")
        config = self.config
        return activation_probability(
            self._held(step),
            self.total_steps,
            initial_p=config.initial_p,
            final_p=config.final_p,
            ratio=config.stage1_ratio,
            schedule=config.schedule,
        )

    def mask(self, step: int) -> tuple[bool, ...]:
        """Which groups are on in optimizer step `step`; depends on the settings, the groups and `step` only."""
        mask, _ = draw_mask(
            self.p(step),
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
        for on, layers in zip(self.active, self._layers, strict=True):
            for layer in layers:
                layer._coto_off = not on

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


def _generate_with_all(self: Any, *args: Any, **kwargs: Any) -> Any:
    with self._coto_controller.all_active():
        return type(self).generate(self, *args, **kwargs)


_ENGINES = ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine", "FullyShardedDataParallel")


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    # Through `_modules`: a PeftModel answers for its inner models, too.
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and type(model).__name__ in _ENGINES:
            inner = model._modules.get("module", model._modules.get("_fsdp_wrapped_module"))
        if inner is None:
            return model
        model = inner
