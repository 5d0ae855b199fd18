"""Jobs of the shared trainer: the steps of torch, rates of the schedule, nothing left behind, nobody waited for."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from thurl.continual.fitting import FitSettings, fit, random_rows, rate_factor
from thurl.continual.fitting_job import _Job
from thurl.errors import UsageError
from thurl.training.method_output import MethodOutput
from thurl.training.method_trainer import MethodTrainer
from thurl.training.single_process import process_device, single_process


class Line(nn.Module):
    """Two layers and a mean square."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, inputs):
        loss = self.head(self.body(inputs).tanh()).square().mean()
        return MethodOutput(loss=loss, terms={"square": loss})


def batches(count=7):
    return [{"inputs": torch.randn(4, 6, generator=torch.Generator().manual_seed(step))} for step in range(count)]


def groups(model, body=0.1, head=0.3):
    return [
        {"params": list(model.body.parameters()), "lr": body},
        {"params": list(model.head.parameters()), "lr": head},
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_steps_are_those_of_torch(optimizer, schedule):
    settings = FitSettings(optimizer, weight_decay=0.01, schedule=schedule, drop_at=0.5)
    ours, theirs = Line(), Line()
    loss = fit(ours, batches(), groups(ours), settings, seed=0)
    if optimizer == "sgd":
        steps = torch.optim.SGD(groups(theirs), momentum=0.9, weight_decay=0.01)
    else:
        steps = torch.optim.AdamW(groups(theirs), weight_decay=0.01)
    factors = {
        "constant": [1.0] * 7,
        "cosine": [0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / 7)))) for step in range(7)],
        "step": [1.0] * 4 + [0.1] * 3,
    }[schedule]
    losses = []
    for batch, factor in zip(batches(), factors, strict=True):
        for group, rate in zip(steps.param_groups, (0.1, 0.3), strict=True):
            group["lr"] = rate * factor
        steps.zero_grad()
        found = theirs(**batch).loss
        found.backward()
        losses.append(found.item())
        steps.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert loss == pytest.approx(sum(losses) / 7, rel=1e-5)


def test_parameters_without_a_group_or_gradient_stay():
    model = Line()
    model.body.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, batches(), groups(model)[:1], FitSettings(), seed=0)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ["body.bias"]


def test_rates_and_rows():
    cosine = FitSettings(schedule="cosine")
    assert [rate_factor(cosine, step, 4) for step in (0, 2)] == [1.0, pytest.approx(0.5)]
    step = FitSettings(schedule="step", drop_at=18 / 20)
    assert [rate_factor(step, number, 200) for number in (0, 179, 180, 199)] == [1.0, 1.0, 0.1, 0.1]
    rows = list(random_rows(10, 4, 2, torch.Generator().manual_seed(1)))
    assert [len(part) for part in rows] == [4, 4, 2] * 2
    assert torch.cat(rows[:3]).sort().values.tolist() == list(range(10))
    assert torch.cat(rows[:3]).tolist() != torch.cat(rows[3:]).tolist()
    with pytest.raises(UsageError) as caught:
        FitSettings("adam", momentum=1.0, weight_decay=-1, schedule="x", drop_at=1.0)
    assert len(caught.value.problems) == 5


def test_a_job_leaves_nothing_behind(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    caplog.set_level(logging.INFO)
    AcceleratorState._reset_state(reset_partial_state=True)  # of other tests
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=5)
    kept = [dict(state._shared_state) for state in (PartialState, AcceleratorState, GradientState)]
    verbosity, environment, model = transformers_logging.get_verbosity(), dict(os.environ), Line()
    generators = torch.get_rng_state()
    fit(model, batches(), groups(model), FitSettings(), seed=0)
    assert torch.equal(generators, torch.get_rng_state())
    assert [state._shared_state for state in (PartialState, AcceleratorState, GradientState)] == kept
    assert accelerator.gradient_state.num_steps == 5 and accelerator.mixed_precision == "bf16"
    assert transformers_logging.get_verbosity() == verbosity and dict(os.environ) == environment
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr().out == "" and not caplog.records
    AcceleratorState._reset_state(reset_partial_state=True)


def test_an_error_inside_leaves_as_little():
    model, broken = Line(), [*batches(2), {"inputs": torch.zeros(4, 5)}]
    generators, known = torch.get_rng_state(), dict(PartialState._shared_state)
    with pytest.raises(RuntimeError):
        fit(model, broken, groups(model), FitSettings(), seed=0)
    assert torch.equal(generators, torch.get_rng_state()) and PartialState._shared_state == known


def test_a_process_by_itself(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    with single_process() as device:
        assert device == process_device() and "RANK" not in os.environ
        assert Accelerator().num_processes == 1 and Accelerator().device == device
    assert os.environ["WORLD_SIZE"] == "2" and os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_overridden_private_methods_still_have_their_signatures():
    assert list(inspect.signature(Trainer._get_grad_norm).parameters) == ["self", "model", "grad_norm"]
    assert "_setup_devices" in vars(TrainingArguments) and "_listen" in dir(MethodTrainer)
    assert list(inspect.signature(Trainer.create_scheduler).parameters)[1:] == ["num_training_steps", "optimizer"]
    # What a job replaces on its accelerator is all that a trainer asks of it in a step.
    loop = inspect.getsource(Trainer._run_epoch) + inspect.getsource(Trainer.training_step)
    assert "self.accelerator.backward(loss" in loop and "self.optimizer.step()" in loop
    assert issubclass(_Job, MethodTrainer)


@pytest.mark.distributed
def test_two_processes_train_different_jobs_and_neither_waits(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("job_world.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    alone, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "rank0", "rank1")
    )
    # Alone, after other jobs, in another process: the same states.
    assert alone["hashes"] == [second["hashes"], first["hashes"]] * 2 and not alone["known"]
    for rank, record in enumerate((first, second)):
        assert (record["processes"], record["rank"], record["accumulation"]) == (2, rank, 3)
        assert record["environment"] == [str(rank), "2"]
