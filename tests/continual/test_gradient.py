"""Gradient learners: what moves and what does not, purity, replay against forgetting, alignment of the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from thurl.continual.closed_form import SimpleCIL
from thurl.continual.gradient import ExperienceReplay, Finetune, SLCALike
from thurl.continual.learner import learn_task, start, state_hash, task_accuracies
from thurl.errors import UsageError

from .conftest import blobs


TASKS = ((0, 3), (5, 1), (6, 2))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU())


def learned(learner, data, tasks=TASKS, seed=3):
    state = start(learner, data, seed)
    for position, task in enumerate(tasks):
        state = learn_task(learner, state, data.task(task), seed + position)
    return state


LEARNERS = [Finetune, ExperienceReplay, SLCALike]


@pytest.mark.parametrize("kind", LEARNERS, ids=lambda kind: kind.name)
def test_every_parameter_moves_and_the_old_state_does_not(kind, encoder, data):
    learner = kind(encoder, learning_rate=0.1, encoder_rate=0.1)
    before = learned(learner, data, TASKS[:1])
    held = state_hash(before)
    after = learn_task(learner, before, data.task(TASKS[1]), 9)
    assert state_hash(before) == held
    moved = [name for name in after if name.startswith("encoder.") and not torch.equal(before[name], after[name])]
    assert moved == [f"encoder.{name}" for name, _ in encoder.named_parameters()]
    assert after["head.weight"].shape == (4, 12) and bool((after["head.weight"][2:] != 0).any(dim=1).all())
    assert state_hash(learn_task(learner, before, data.task(TASKS[1]), 9)) == state_hash(after)
    assert state_hash(learn_task(learner, before, data.task(TASKS[1]), 8)) != state_hash(after)
    # The encoder that was handed in is a starting point, not a workplace.
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU())
    assert state_hash(fresh.state_dict()) == state_hash(encoder.state_dict())


def test_a_rate_of_zero_freezes_the_encoder(encoder, data):
    learner = Finetune(encoder, encoder_rate=0.0)
    state = learned(learner, data)
    for name, value in encoder.state_dict().items():
        assert torch.equal(state[f"encoder.{name}"], value)


def test_the_loss_of_slca_leaves_old_rows_of_the_head_alone(encoder, data):
    local = SLCALike(encoder, alignment=0)
    before = learned(local, data, TASKS[:1])
    after = learn_task(local, before, data.task(TASKS[1]), 1)
    assert torch.equal(after["head.weight"][:2], before["head.weight"])
    aligned = SLCALike(encoder, alignment=1)
    start_ = learned(aligned, data, TASKS[:1])
    assert not torch.equal(
        learn_task(aligned, start_, data.task(TASKS[1]), 1)["head.weight"][:2], start_["head.weight"]
    )


def test_the_record_of_slca(encoder):
    data = blobs(per_split=(40, 5, 5))
    learner = SLCALike(encoder, encoder_rate=0.0, alignment=0)
    state = learned(learner, data)
    assert state["arrival"].tolist() == [0, 0, 1, 1, 2, 2]
    with torch.no_grad():
        found = encoder(data.inputs[data.rows([5], "train")])
    torch.testing.assert_close(state["means"][2], found.mean(0))
    torch.testing.assert_close(state["covariances"][2], torch.cov(found.T))


def test_replay_and_alignment_forget_less_than_fine_tuning(encoder):
    # Well separated blobs: what is lost is forgotten, not hard. Bar from before the run: 0.2 above fine-tuning.
    data = blobs(spread=0.25, dimension=6, per_split=(40, 20, 20), seed=4)
    settings = {"learning_rate": 0.05, "encoder_rate": 0.005, "epochs": 40, "batch_size": 16}
    first = {
        learner.name: task_accuracies(learner, learned(learner, data), data, TASKS, "test")
        for learner in (
            Finetune(encoder, **settings),
            ExperienceReplay(encoder, **settings),
            SLCALike(encoder, **settings),
        )
    }
    assert np.mean(first["er"]) >= np.mean(first["finetune"]) + 0.2
    assert np.mean(first["slca"]) >= np.mean(first["finetune"]) + 0.2
    assert first["finetune"][-1] > 0.9  # it does learn the last task


def test_the_buffer_holds_training_samples_of_every_class(encoder, data):
    state = learned(ExperienceReplay(encoder, per_class=3), data)
    assert data.labels[state["buffer"]].tolist() == [c for task in TASKS for c in task for _ in range(3)]
    assert set(state["buffer"].tolist()) <= set(data.rows(range(8), "train").tolist())
    assert len(learned(ExperienceReplay(encoder, per_class=99), data)["buffer"]) == 6 * 8


def test_features_are_those_of_the_encoder_as_it_is(encoder, data):
    learner = Finetune(encoder)
    state = learned(learner, data)
    rows = data.rows([2], "val")
    torch.testing.assert_close(
        learner.logits(state, data, rows),
        learner.features(state, data, rows) @ state["head.weight"].T + state["head.bias"],
    )
    assert not torch.allclose(learner.features(state, data, rows), encoder(data.inputs[rows]))


def test_bad_settings_and_inputs(encoder):
    with pytest.raises(UsageError) as caught:
        Finetune(encoder, learning_rate=-1, epochs=0, batch_size=0)
    assert len(caught.value.problems) == 4  # the encoder's rate is that of the head
    with pytest.raises(UsageError, match="per_class"):
        ExperienceReplay(encoder, per_class=0)
    with pytest.raises(UsageError, match="alignment"):
        SLCALike(encoder, alignment=-1)
    with pytest.raises(UsageError, match="give `inputs`"):
        start(Finetune(encoder), blobs(inputs=None), 0)
    assert not SimpleCIL().config() == Finetune(encoder).config()
