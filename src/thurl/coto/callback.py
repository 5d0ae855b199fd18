"""CoTo in every `transformers.Trainer`, TRL's too, in one line: `callbacks=[CoToCallback(CoToConfig())]`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft.optimizers.lorafa import LoraFAOptimizer
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.training_args import ParallelMode

from thurl.coto.config import CoToConfig
from thurl.coto.controller import CoToController, apply_coto
from thurl.coto.layout import adapter_parameters, find_groups
from thurl.coto.optimizers import GROUP_KEY, base_optimizer, split_by_group
from thurl.errors import UsageError
from thurl.version import __version__


__all__ = ["SIDE_FILE", "CoToCallback"]

logger = logging.getLogger(__name__)

DDPOff = Literal["find", "touch"]
DeepSpeedOff = Literal["skip", "drift"]

SIDE_FILE = "coto_config.json"
"""Beside the adapter: how it was trained. Not in `adapter_config.json`, where PEFT warns of keys it does not know."""


class CoToCallback(TrainerCallback, ExportableState):
    """Switches adapters while a trainer trains; evaluation, prediction, saving and generation see all of them.

    Nothing has to be stored to resume: the mask depends on the settings and the global step. Settings and groups of
    adapters are kept in the trainer's state to refuse a resume with others.

    Logged with the trainer's losses: `coto/p` (probability), `coto/active` (groups on), `coto/active_frac` (their
    share), all of the last optimizer step.

    Args:
        config: a `CoToConfig`, or its `to_dict()`.
        ddp_off: how DDP gets over adapters without a gradient. "find": it looks for them
            (`ddp_find_unused_parameters: true`). "touch": they get zeros that the optimizer does not see
            (`ddp_find_unused_parameters: false`); works with reentrant checkpointing, too.
        deepspeed_off: what DeepSpeed's optimizer does with adapters that are off. "skip": nothing, as without
            DeepSpeed; needs `register(trainer)`. "drift": it moves them as if their gradient were zero, by momentum
            and weight decay; a warning says so.
        idle_prefix: ask for no gradients below the lowest active adapter (`thurl.coto.idle`).

    Raises:
        UsageError: an unknown choice; at the start of training, for what cannot work (see `_check`).
    """

    def __init__(
        self,
        config: CoToConfig | Mapping[str, Any] | None = None,
        ddp_off: DDPOff = "find",
        deepspeed_off: DeepSpeedOff = "skip",
        idle_prefix: bool = True,
    ) -> None:
        if isinstance(config, Mapping):
            config = CoToConfig.from_dict(config)
        problems = [
            f"`{name}` is {value!r}; it is one of {', '.join(get_args(kind))}."
            for name, value, kind in (("ddp_off", ddp_off, DDPOff), ("deepspeed_off", deepspeed_off, DeepSpeedOff))
            if value not in get_args(kind)
        ]
        if problems:
            raise UsageError(problems)
        self.config = config or CoToConfig()
        self.ddp_off: DDPOff = ddp_off
        self.deepspeed_off: DeepSpeedOff = deepspeed_off
        self.idle_prefix = idle_prefix
        self.controller: CoToController | None = None
        self.groups: dict[str, list[str]] | None = None
        self.total_steps: int | None = None
        self._last: dict[str, float] = {}
        self._stale: torch.Tensor | None = None  # of ZeRO-3, see on_step_begin

    def state(self) -> dict[str, Any]:
        return {
            "args": {
                "config": self.config.to_dict(),
                "ddp_off": self.ddp_off,
                "deepspeed_off": self.deepspeed_off,
                "idle_prefix": self.idle_prefix,
            },
            "attributes": {"groups": self.groups, "total_steps": self.total_steps},
        }

    def register(self, trainer: Any) -> None:
        """Add it to a trainer that exists, before its trackers, which otherwise do not see the `coto/` numbers.

        A callback given as `callbacks=[...]` comes after the trackers of `report_to`; its numbers are then in the
        trainer's history and output only. It also comes too late for DeepSpeed's optimizer (`deepspeed_off`).
        """
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())
        if trainer.is_deepspeed_enabled and self.deepspeed_off == "skip":
            trainer.create_optimizer = partial(_create_split_optimizer, trainer, self.config, trainer.create_optimizer)

    # -- events ------------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if self.controller is not None:
            self.controller.detach()
        ddp, deepspeed = _is_ddp(args), _is_deepspeed(args)
        touch = ddp and self.ddp_off == "touch"
        controller = apply_coto(model, self.config, state.max_steps, touch=touch, idle_prefix=self.idle_prefix)
        try:
            self._check(args, model, controller, optimizer, ddp, deepspeed)
            if touch or (deepspeed and self.deepspeed_off == "skip"):
                controller.guard(optimizer)
            echo = (state.stateful_callbacks or {}).get(type(self).__name__)
            if isinstance(echo, Mapping) and echo["attributes"]["groups"] is not None and state.global_step > 0:
                controller.load_state_dict({"config": echo["args"]["config"], **echo["attributes"]})
        except UsageError:
            controller.detach()
            raise
        self.controller = controller
        self._stale = getattr(getattr(optimizer, "optimizer", None), "grad_partitions_flat_buffer", None)
        self.groups = controller.state_dict()["groups"]
        self.total_steps = state.max_steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.controller is not None:
            if self._stale is not None:
                # ZeRO-3 (DeepSpeed 0.19, `partition_grads`) overwrites gradients when new ones come and never clears
                # them: what is off would be moved by the gradient of its last active step, and be clipped for.
                self._stale.zero_()
            self.controller.begin_step(state.global_step)
            active = sum(self.controller.active)
            self._last = {
                "coto/p": self.controller.p(state.global_step),
                "coto/active": float(active),
                "coto/active_frac": active / len(self.controller.active),
            }

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.controller is not None:
            self.controller.end_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # The trainer has copied `logs` into its history before it asks its callbacks.
        if self._last and logs is not None and "loss" in logs:
            logs.update(self._last)
            if state.log_history and "loss" in state.log_history[-1]:
                state.log_history[-1].update(self._last)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._write(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.controller is not None:
            if state.is_world_process_zero and args.should_save:
                self._write(Path(args.output_dir))
            self.controller.detach()

    def _write(self, folder: Path) -> None:
        if self.controller is None or not folder.is_dir():
            return
        record = {"method": "CoTo", "paper": "arXiv 2506.05713", "thurl_version": __version__}
        text = json.dumps({**record, **self.controller.state_dict()}, indent=1)
        (folder / SIDE_FILE).write_text(text + "\n", encoding="utf-8")

    # -- what cannot work --------------------------------------------------------------------------------------------

    def _check(
        self, args: Any, model: Any, controller: CoToController, optimizer: Any, ddp: bool, deepspeed: bool
    ) -> None:
        """Refuse what would hang, fail in the second step or train something else."""
        problems = []
        base = base_optimizer(optimizer)
        if isinstance(base, LoraFAOptimizer):
            problems.append(
                "LoRA-FA's optimizer needs a gradient of every adapter in every step (PEFT 0.21); adapters that are "
                "off have none. Use AdamW or LoRA+."
            )
        if self.config.min_active == "allow_empty" and not _others_train(model, controller):
            problems.append(
                "`min_active='allow_empty'` gives steps in which nothing is trained; a trainer cannot skip them. Use "
                "'resample' or 'force', or `apply_coto` in a loop of your own."
            )
        if ddp:
            problems += _ddp_problems(args, model, self.ddp_off)
        if deepspeed and self.deepspeed_off == "skip" and not _is_split(base, controller):
            problems.append(
                "DeepSpeed's optimizer was made without regard to CoTo's groups and would move adapters that are off. "
                "Add the callback with `CoToCallback(...).register(trainer)` instead of `callbacks=[...]`, and leave "
                "the optimizer to the trainer (no `optimizer` in the DeepSpeed file); or accept it with "
                "`deepspeed_off='drift'`."
            )
        elif deepspeed and self.deepspeed_off == "drift":
            logger.warning(
                "CoTo with DeepSpeed, `deepspeed_off='drift'`: the optimizer sees zeros, not None, for adapters that "
                "are off, so that momentum and weight decay move them. Set their weight decay to 0, or use 'skip'."
            )
        if problems:
            raise UsageError(problems)


def _create_split_optimizer(trainer: Any, config: CoToConfig, create: Any, *args: Any, **kwargs: Any) -> Any:
    made = trainer.optimizer is None
    optimizer = create(*args, **kwargs)
    if made:
        members = find_groups(trainer.model, config)
        parameters = {
            key: [p for _, layer in layers for p in adapter_parameters(layer, config.adapter_name)]
            for key, layers in members.items()
        }
        split_by_group(optimizer, parameters)
    return optimizer


def _is_split(optimizer: torch.optim.Optimizer | None, controller: CoToController) -> bool:
    """Whether every CoTo group that trains has optimizer groups of its own."""
    if optimizer is None:
        return False
    return {group.get(GROUP_KEY) for group in optimizer.param_groups} - {None} == controller.trained_groups()


def _is_deepspeed(args: Any) -> bool:
    return args.deepspeed is not None or _by_deepspeed_or_fsdp() == "DEEPSPEED"


def _is_ddp(args: Any) -> bool:
    ddp = args.parallel_mode == ParallelMode.DISTRIBUTED and args.world_size > 1
    return bool(ddp and args.deepspeed is None and not args.fsdp and not _by_deepspeed_or_fsdp())


def _ddp_problems(args: Any, model: Any, off: DDPOff) -> list[str]:
    problems = []
    found = args.ddp_find_unused_parameters
    if found is None:  # what the trainer makes of it
        checkpoints = getattr(model, "is_gradient_checkpointing", False) or args.gradient_checkpointing
        found = not (isinstance(model, PreTrainedModel) and checkpoints)
    if off == "touch" and found:
        problems.append(
            "`ddp_off='touch'` gives every adapter a gradient, so that DDP need not look for those without; where "
            "it does, it marks them twice. Set `ddp_find_unused_parameters: false`."
        )
    if off == "find" and _reentrant(args):
        problems.append(
            "DDP with reentrant gradient checkpointing marks parameters as ready twice when it looks for unused ones, "
            "and CoTo leaves some unused. Set `gradient_checkpointing_kwargs: {use_reentrant: false}`, or use "
            "`ddp_off='touch'` with `ddp_find_unused_parameters: false`."
        )
    if off == "find" and not found:
        problems.append(
            "DDP has to look for unused parameters, or the second step fails: adapters that are off have no gradient. "
            "Set `ddp_find_unused_parameters: true`, or use `ddp_off='touch'`."
        )
    if args.ddp_static_graph:
        problems.append("`ddp_static_graph` is set, and CoTo changes the graph in every step. Unset it.")
    return problems


def _reentrant(args: Any) -> bool:
    return bool(args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False))


def _others_train(model: torch.nn.Module, controller: CoToController) -> bool:
    gated = {id(parameter) for layer in controller.layers() for parameter in layer.parameters()}
    return any(parameter.requires_grad and id(parameter) not in gated for parameter in model.parameters())


def _by_deepspeed_or_fsdp() -> str | None:
    """How accelerate distributes, where it was its launcher and not the arguments that chose it."""
    from accelerate.state import AcceleratorState

    if not AcceleratorState._shared_state:
        return None
    name = AcceleratorState().distributed_type.value
    return name if name in ("DEEPSPEED", "FSDP", "MEGATRON_LM") else None
