"""The mixin on a plain `transformers.Trainer`; killed processes are in tests/rl/test_resume.py."""

import errno
import functools
import inspect
import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from thurl.errors import StoppedError, ThurlError, UsageError
from thurl.training import exact_resume
from thurl.training.checkpoints import MANIFEST, UNFINISHED, checkpoint_problems, last_whole_checkpoint
from thurl.training.exact_resume import ExactResumeTrainer
from thurl.training.log_file import LOG_FILE


class Noisy(torch.nn.Module):
    """A loss that depends on the random states of torch, numpy and Python."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x, labels):
        prediction = self.layer(self.dropout(x)).squeeze(1) * (1 + 0.1 * np.random.rand()) + 0.1 * random.random()
        return {"loss": ((prediction - labels) ** 2).mean(), "logits": prediction}


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def trainer(folder, *callbacks, **fields):
    set_seed(0)
    rows = [{"x": torch.randn(3), "labels": torch.randn(())} for _ in range(12)]
    defaults = {
        "max_steps": 9,
        "per_device_train_batch_size": 2,
        "logging_steps": 4,
        "save_steps": 1,
        "learning_rate": 0.1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "seed": 1,
    }
    arguments = TrainingArguments(str(folder), **{**defaults, **fields})
    return ExactResumeTrainer(Noisy(), arguments, train_dataset=rows, eval_dataset=rows, callbacks=[*callbacks])


def outcome(done):
    log = [
        {name: value for name, value in entry.items() if not name.startswith("train_") or name == "train_loss"}
        for entry in done.state.log_history
    ]
    return log, {name: value.tolist() for name, value in done.model.state_dict().items()}


class Crash(Exception):
    pass


def crash():
    raise Crash


@pytest.mark.parametrize("step", [3, 6, 8])  # an epoch has 6
def test_any_trainer_goes_on_exactly(tmp_path, step):
    whole = trainer(tmp_path / "whole")
    whole.train("auto")  # no checkpoint: from the start
    with pytest.raises(Crash):
        trainer(tmp_path / "run", At(step, crash)).train()
    resumed = trainer(tmp_path / "run")
    resumed.train(True)
    assert outcome(resumed) == outcome(whole)
    finished = trainer(tmp_path / "run")
    finished.train("auto")
    assert finished.state.global_step == 9, "nothing is done twice"
    assert outcome(finished) == outcome(whole)


def test_sigterm_saves_and_stops_and_is_forgotten_afterwards(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run = trainer(tmp_path, At(2, lambda: os.kill(os.getpid(), signal.SIGTERM)), save_strategy="no")
    with pytest.raises(StoppedError, match="stopped after step 2 of 9") as stopped:
        run.train()
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    resumed = trainer(tmp_path)
    resumed.train("auto")
    assert resumed.state.global_step == 9


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    def full():
        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(exact_resume, "save_state", fail)

    with pytest.raises(ThurlError, match="step 5 could not be written: .*No space left") as failed:
        trainer(tmp_path, At(5, full), save_total_limit=1).train()
    assert str(tmp_path / "checkpoint-4") in str(failed.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", LOG_FILE]
    assert checkpoint_problems(tmp_path / "checkpoint-4") == []


def test_the_best_checkpoint_is_known_by_its_final_name(tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 2}
    run = trainer(tmp_path, **fields)
    run.train()
    best = run.state.best_model_checkpoint
    assert best == str(tmp_path / f"checkpoint-{run.state.best_global_step}") and checkpoint_problems(best) == []
    states = [json.loads(path.read_text()) for path in tmp_path.glob("checkpoint-*/trainer_state.json")]
    assert 1 <= len(states) <= 2 and UNFINISHED not in json.dumps(states)


def test_what_is_pushed_is_the_finished_checkpoint(tmp_path, monkeypatch):
    pushed = []

    def push(self, folder):
        pushed.append((os.path.basename(folder), checkpoint_problems(folder)))

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
    run = trainer(tmp_path, max_steps=2)
    run.args.push_to_hub = True
    run.train()
    assert pushed == [("checkpoint-1", []), ("checkpoint-2", [])]


def test_weights_alone_are_nothing_to_resume_from(tmp_path, caplog):
    trainer(tmp_path, max_steps=2, save_only_model=True).train()
    assert not list(tmp_path.glob("checkpoint-*/thurl_resume*"))
    again = trainer(tmp_path, max_steps=1, save_strategy="no")
    again.train("auto")
    assert "holds weights only" in caplog.text and again.state.global_step == 1


def test_wrong_folders_and_settings_are_refused(tmp_path, caplog):
    with pytest.raises(UsageError, match="no whole checkpoint"):
        trainer(tmp_path).train(True)
    with pytest.raises(UsageError, match="is no folder; give a checkpoint folder"):
        trainer(tmp_path).train(str(tmp_path / "none"))
    trainer(tmp_path, max_steps=2).train()
    with pytest.raises(UsageError, match="`seed` was 1, now 2.*Take the same"):
        trainer(tmp_path, seed=2).train("auto")
    (tmp_path / "checkpoint-2" / MANIFEST).unlink()  # as a plain Trainer leaves it
    foreign = trainer(tmp_path)
    foreign.train(str(tmp_path / "checkpoint-2"))
    assert "does not go on exactly" in caplog.text and foreign.state.global_step == 9


def test_overridden_private_methods_still_have_their_signatures():
    """Fails when an installed transformers moves what `ExactResumeTrainer` builds on."""
    signatures = {
        "_save_checkpoint": ["self", "model", "trial"],
        "_get_output_dir": ["self", "trial"],
        "_push_from_checkpoint": ["self", "checkpoint_folder"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_load_best_model": ["self"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
        "_load_rng_state": ["self", "checkpoint"],
        "_finalize_training": ["self", "trial", "num_train_samples", "start_time"],
    }
    for name, parameters in signatures.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters
        assert name in vars(ExactResumeTrainer)
    assert list(inspect.signature(Trainer.train).parameters)[:2] == ["self", "resume_from_checkpoint"]


def test_the_device_is_cached_where_it_is_expected(tmp_path):
    assert isinstance(inspect.getattr_static(TrainingArguments, "_setup_devices"), functools.cached_property)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    arguments.__dict__["_setup_devices"] = torch.device("cpu:1")
    with exact_resume._device_without_index(arguments):
        assert str(arguments.device) == "cpu"
    assert str(arguments.device) == "cpu:1"


def test_the_loop_of_transformers_is_as_expected():
    loop = inspect.getsource(Trainer._inner_training_loop)
    calls = [
        "self._prepare_for_training(",  # loads optimizer, scheduler and our state
        "self._tr_loss = torch.tensor(0.0",  # which this would overwrite
        "self._total_loss_scalar = 0.0",
        "self._globalstep_last_logged = ",
        "self.callback_handler.on_train_begin(",  # where it is put back
        "self._run_epoch(\n",
        "epoch=epoch,",
        "return self._finalize_training(",
    ]
    places = [loop.find(call) for call in calls]
    assert -1 not in places and places == sorted(places)
    save = inspect.getsource(Trainer._save_checkpoint)
    assert "self._get_output_dir(trial=trial)" in save and "self._push_from_checkpoint(output_dir)" in save
    assert "self._load_rng_state(resume_from_checkpoint)" in inspect.getsource(Trainer._run_epoch)
