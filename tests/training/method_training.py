"""The trainer of `method_runs.py` for the tests of this folder."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from transformers import TrainerCallback


SCRIPT = Path(__file__).with_name("method_runs.py")


def _load():
    spec = spec_from_file_location("method_runs", SCRIPT)
    module = module_from_spec(spec)
    sys.modules["method_runs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


runs = _load()


def trained(folder, kind="plain", **options):
    trainer = runs.trainer_for(folder, kind, **options)
    trainer.train()
    return trainer


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Spy(TrainerCallback):
    def __init__(self, action):
        self.action = action

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.action(state.global_step)
