"""Training that goes on after a kill as if nothing had happened, for every trainer built on `transformers.Trainer`.

In float32 on a CPU the resumed run equals the uninterrupted one bit by bit: losses, rewards, weights. Beside what
transformers saves, a checkpoint holds, for every process, the states of all random generators, the loss accumulated
since the last log entry and whatever the trainer adds in `resume_state`, as safetensors and JSON.

Weights: `thurl.training.checkpoint_weights`. Random and other states: `thurl.training.state_files`. Folders
(`thurl.training.checkpoints`): a checkpoint is whole or is not taken for one. SIGTERM: the running optimizer
step is finished, a checkpoint is written and `StoppedError` (exit code 143) leaves `train`.

Not restored: state inside reward functions and inside a vLLM engine, and a reference model that follows the policy
(`sync_ref_model`). With three or more processes gradients may be added up in another order after a restart.
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from thurl.errors import StoppedError, ThurlError, UsageError
from thurl.full_disk import full_disk_problem
from thurl.training.checkpoint_weights import load_weights
from thurl.training.checkpoints import (
    UNFINISHED,
    choose_checkpoint,
    finish_checkpoint,
    last_whole_checkpoint,
    remove_old_checkpoints,
    write_manifest,
)
from thurl.training.finite import FiniteTrainer
from thurl.training.log_file import LogFile
from thurl.training.state_files import load_state, random_states, save_state, set_random_states


__all__ = ["ExactResumeTrainer"]

logger = logging.getLogger(__name__)


class ExactResumeTrainer(FiniteTrainer):
    """Mixin before a `transformers.Trainer`: `class MyTrainer(ExactResumeTrainer, SomeTrainer)`.

    A trainer with state of its own overrides `resume_state`, `load_resume_state` and `resume_settings`, one with
    a sampler that must know the epoch `begin_epoch`.

    Overrides of private methods of transformers, each guarded by a test of its signature: `_save_checkpoint`,
    `_get_output_dir`, `_push_from_checkpoint`, `_load_from_checkpoint`, `_load_best_model`,
    `_load_optimizer_and_scheduler`, `_load_rng_state`, `_run_epoch`, `_finalize_training`.
    """

    _tr_loss: torch.Tensor
    _writing_below: Path | None = None
    _push_later: str | None = None
    _restored: dict[str, Any] | None = None
    _stop_asked = False
    _stopping = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_Hooks(self))
        self.add_callback(LogFile())

    # -- for trainers ----------------------------------------------------------------------------------------------

    def resume_state(self) -> dict[str, Any]:
        """State of this process beyond that of transformers, of a kind that `save_state` takes."""
        return {}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take over what `resume_state` returned, tensors on the CPU."""

    def resume_settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the saved one, as plain values, the same on every process."""
        return {
            "processes": self.args.world_size,
            "zero_stage": plugin.zero_stage if (plugin := self.args.deepspeed_plugin) is not None else 0,
            "per_device_train_batch_size": self.args.per_device_train_batch_size,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "seed": self.args.seed,
        }

    def begin_epoch(self, epoch: int) -> None:
        """Called before the batches of an epoch are drawn."""

    # -- training --------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: `"auto"`: the last whole checkpoint in `output_dir`, from the start if there is
                none; True: the same, but an error if there is none; a folder; None or False: from the start.
            *args, **kwargs: of `transformers.Trainer.train`.

        Raises:
            UsageError: a checkpoint that is damaged, or of a run with other settings.
            StoppedError: SIGTERM came; the checkpoint is written.
            DivergedError: loss or weights are NaN or infinite (`thurl.training.finite`).
            ThurlError: a checkpoint could not be written; the one before is as it was.
        """
        checkpoint = self._choose_checkpoint(resume_from_checkpoint)
        self._restored, self._stop_asked, self._stopping = None, False, False
        with self._listen():
            return super().train(checkpoint, *args, **kwargs)

    def _choose_checkpoint(self, wanted: str | bool | None) -> str | None:
        if wanted is None or wanted is False:
            return None
        answer: list[Any] = [None, ""]
        if self.args.process_index == 0:  # one process reads all the files, and all take the same
            try:
                answer[0] = choose_checkpoint(wanted, Path(self.args.output_dir), self.resume_settings())
            except ThurlError as error:
                answer[1] = str(error)
        answer = self._from_first(answer)
        if answer[1]:
            raise UsageError(answer[1])
        if answer[0] is None:
            logger.info("No whole checkpoint in %s: the run starts anew", self.args.output_dir)
        else:
            logger.info("Resuming from %s", answer[0])
        return answer[0]

    def _run_epoch(self, **kwargs: Any) -> None:
        # transformers would do one step more when it resumes from the checkpoint of the last step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # With several processes, accelerate's loader for a half-used epoch does not pass the epoch on to the sampler.
        self.begin_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def _put_back_losses(self) -> None:
        """Undo the resets at the start of training, which come after the checkpoint was loaded."""
        if self._restored is not None:
            saved, self._restored = self._restored["loss"], None
            self._tr_loss = saved["since_log"].to(self._tr_loss.device)
            self._total_loss_scalar = saved["total"]
            self._globalstep_last_logged = saved["last_logged"]
            self.model.train()  # as after a step; the last log entry of TRL depends on it

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._stopping:
            self.is_in_train = False
            folder = Path(self._get_output_dir(None)) / f"checkpoint-{self.state.global_step}"
            raise StoppedError(
                f"SIGTERM: stopped after step {self.state.global_step} of {self.state.max_steps}, saved as {folder}. "
                "Go on with `training.resume_from_checkpoint=auto`."
            )
        return super()._finalize_training(*args, **kwargs)

    # -- loading ---------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if model is None and self._loads_weights(resume_from_checkpoint):
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._loads_weights(self.state.best_model_checkpoint):
            load_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _loads_weights(self, checkpoint: str) -> bool:
        """Whether the checkpoint holds the weights of a whole model of transformers in safetensors."""
        names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        return (
            isinstance(self.model, PreTrainedModel)
            and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
            and any((Path(checkpoint) / name).is_file() for name in names)
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _device_without_index(self.args):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._state_path(checkpoint).with_suffix(".json").is_file():
            self._restored = load_state(self._state_path(checkpoint))
            self.load_resume_state(self._restored["trainer"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self._state_path(checkpoint).with_suffix(".json").is_file():
            set_random_states(load_state(self._state_path(checkpoint))["random"])

    def _state_path(self, folder: str | Path) -> Path:
        return Path(folder) / f"thurl_resume_{self.args.process_index}"

    # -- saving ----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        below = Path(self._get_output_dir(trial))
        final = below / f"checkpoint-{self.state.global_step}"
        unfinished = below / UNFINISHED / final.name
        if self.args.should_save:
            shutil.rmtree(unfinished.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        problem = ""
        self._writing_below, self._push_later = unfinished.parent, None
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            super()._save_checkpoint(model, trial)
            if not self.args.save_only_model:
                self._save_own_state(unfinished)
        except Exception as error:  # reported below, on every process; alone it would leave the others waiting
            problem = full_disk_problem(error, below) or f"{type(error).__name__}: {error}"
        finally:
            self._writing_below = None
        self._refuse(problem, unfinished)
        if self.args.should_save:
            try:
                self._seal(unfinished, final)
            except Exception as error:
                problem = full_disk_problem(error, below) or f"{type(error).__name__}: {error}"
        self._refuse(problem, unfinished)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            remove_old_checkpoints(below, self.args.save_total_limit, [final, *([Path(best)] if best else [])])
        self.accelerator.wait_for_everyone()
        if self._push_later is not None:
            super()._push_from_checkpoint(str(final))

    def _save_own_state(self, folder: Path) -> None:
        loss = {
            "since_log": self._tr_loss,
            "total": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }
        state = {"trainer": self.resume_state(), "loss": loss, "random": random_states()}
        save_state(self._state_path(folder), state)

    def _seal(self, unfinished: Path, final: Path) -> None:
        if self.state.best_model_checkpoint == str(unfinished):
            self.state.best_model_checkpoint = str(final)
            self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
        write_manifest(
            unfinished,
            step=self.state.global_step,
            settings=self.resume_settings(),
            resumable=not self.args.save_only_model,
        )
        finish_checkpoint(unfinished, final)
        shutil.rmtree(unfinished.parent, ignore_errors=True)

    def _refuse(self, problem: str, unfinished: Path) -> None:
        """Give up a checkpoint on every process if it failed on one of them."""
        problems = [text for text in self._from_all(problem) if text]
        if not problems:
            return
        last = None
        if self.args.should_save:
            shutil.rmtree(unfinished.parent, ignore_errors=True)  # room on a full disk
            last = last_whole_checkpoint(unfinished.parent.parent)
        raise ThurlError(
            f"The checkpoint of step {self.state.global_step} could not be written: {'; '.join(problems)}. "
            f"The last whole one is {last or 'as it was'}. Make room, or set `training.save_total_limit`, and go on "
            "with `training.resume_from_checkpoint=auto`."
        )

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._writing_below is None else str(self._writing_below)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._push_later = checkpoint_folder  # once it has its name

    # -- several processes, and the signal ---------------------------------------------------------------------------

    def _from_all(self, text: str) -> list[str]:
        return gather_object([text]) if self.args.world_size > 1 else [text]

    def _from_first(self, values: list[Any]) -> list[Any]:
        return broadcast_object_list(values) if self.args.world_size > 1 else values

    @contextmanager
    def _listen(self) -> Iterator[None]:
        """SIGTERM asks for a stop; a second one ends the process as it would have without this."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return

        def ask(number: int, frame: Any) -> None:
            self._stop_asked = True
            signal.signal(signal.SIGTERM, previous)

        previous = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
        signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


@contextmanager
def _device_without_index(args: Any) -> Iterator[None]:
    """Several processes on a CPU have devices `cpu:0`, `cpu:1`, for which torch cannot load an optimizer's file."""
    device = args.device
    if device.type == "cpu":
        args.__dict__["_setup_devices"] = torch.device("cpu")  # where the property is cached
    try:
        yield
    finally:
        args.__dict__["_setup_devices"] = device


class _Hooks(TrainerCallback):
    """The places in the training loop that only callbacks reach."""

    def __init__(self, trainer: ExactResumeTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._put_back_losses()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Turn the signal of any process into a checkpoint and a stop on all of them, after the same step."""
        asked = self.trainer._stop_asked
        if args.world_size > 1:  # the signal reaches the processes at different times
            flag = torch.tensor(int(asked), device=args.device)
            asked = bool(self.trainer.accelerator.reduce(flag, reduction="sum"))
        if asked:
            if state.is_world_process_zero:
                logger.warning("SIGTERM: writing a checkpoint after step %d, then stopping", state.global_step)
            self.trainer._stopping = True
            control.should_save = control.should_training_stop = True
