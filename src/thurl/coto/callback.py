"""CoTo in every `transformers.Trainer`, TRL's too, in one line: `callbacks=[CoToCallback(CoToConfig())]`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.optimizers.lorafa import LoraFAOptimizer
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.training_args import ParallelMode

from thurl.coto.config import CoToConfig
from thurl.coto.controller import CoToController, apply_coto
from thurl.errors import UsageError
from thurl.version import __version__


__all__ = ["SIDE_FILE", "CoToCallback"]

logger = logging.getLogger(__name__)

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

    Raises:
        UsageError: at the start of training, for what cannot work (see `_check`).
    """

    def __init__(self, config: CoToConfig | Mapping[str, Any] | None = None) -> None:
        if isinstance(config, Mapping):
            config = CoToConfig.from_dict(config)
        self.config = config or CoToConfig()
        self.controller: CoToController | None = None
        self.groups: dict[str, list[str]] | None = None
        self.total_steps: int | None = None
        self._last: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        return {
            "args": {"config": self.config.to_dict()},
            "attributes": {"groups": self.groups, "total_steps": self.total_steps},
        }

    def register(self, trainer: Any) -> None:
        """Add it to a trainer that exists, before its trackers, which otherwise do not see the `coto/` numbers.

        A callback given as `callbacks=[...]` comes after the trackers of `report_to`; its numbers are then in the
        trainer's history and output only.
        """
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())

    # -- events ------------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if self.controller is not None:
            self.controller.detach()
        controller = apply_coto(model, self.config, state.max_steps)
        try:
            self._check(args, model, controller, optimizer)
            echo = (state.stateful_callbacks or {}).get(type(self).__name__)
            if isinstance(echo, Mapping) and echo["attributes"]["groups"] is not None and state.global_step > 0:
                controller.load_state_dict({"config": echo["args"]["config"], **echo["attributes"]})
        except UsageError:
            controller.detach()
            raise
        self.controller = controller
        self.groups = controller.state_dict()["groups"]
        self.total_steps = state.max_steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.controller is not None:
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
            if state.is_world_process_zero:
                self._write(Path(args.output_dir))
            self.controller.detach()

    def _write(self, folder: Path) -> None:
        if self.controller is None or not folder.is_dir():
            return
        record = {"method": "CoTo", "paper": "arXiv 2506.05713", "thurl_version": __version__}
        text = json.dumps({**record, **self.controller.state_dict()}, indent=1)
        (folder / SIDE_FILE).write_text(text + "\n", encoding="utf-8")

    # -- what cannot work --------------------------------------------------------------------------------------------

    def _check(self, args: Any, model: Any, controller: CoToController, optimizer: Any) -> None:
        """Refuse what would hang, fail in the second step or train something else."""
        problems = []
        if isinstance(getattr(optimizer, "optimizer", optimizer), LoraFAOptimizer):  # accelerate wraps it
            problems.append(
                "LoRA-FA's optimizer needs a gradient of every adapter in every step (PEFT 0.21); adapters that are "
                "off have none. Use AdamW or LoRA+."
            )
        if self.config.min_active == "allow_empty" and not _others_train(model, controller):
            problems.append(
                "`min_active='allow_empty'` gives steps in which nothing is trained; a trainer cannot skip them. Use "
                "'resample' or 'force', or `apply_coto` in a loop of your own."
            )
        ddp = args.parallel_mode == ParallelMode.DISTRIBUTED and args.world_size > 1
        ddp = ddp and args.deepspeed is None and not args.fsdp and not _by_deepspeed_or_fsdp()
        if ddp:
            if _reentrant(args):
                problems.append(
                    "DDP with reentrant gradient checkpointing marks parameters as ready twice when it looks for "
                    "unused ones, and CoTo leaves some unused. Set `gradient_checkpointing_kwargs: {use_reentrant: "
                    "false}`."
                )
            checkpoints = getattr(model, "is_gradient_checkpointing", False) or args.gradient_checkpointing
            found = args.ddp_find_unused_parameters
            if found is False or (found is None and isinstance(model, PreTrainedModel) and checkpoints):
                problems.append(
                    "DDP has to look for unused parameters, or the second step fails: adapters that are off have no "
                    "gradient. Set `ddp_find_unused_parameters: true`."
                )
            if args.ddp_static_graph:
                problems.append("`ddp_static_graph` is set, and CoTo changes the graph in every step. Unset it.")
        if args.deepspeed is not None or _by_deepspeed_or_fsdp() == "DEEPSPEED":
            logger.warning(
                "CoTo with DeepSpeed: gradients of adapters that are off become zeros, not None, so that AdamW's "
                "momentum and weight decay move them while they are off. Set the weight decay of adapters to 0; keep "
                "`ignore_unused_parameters` at its default."
            )
        if problems:
            raise UsageError(problems)


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
