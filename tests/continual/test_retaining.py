"""Learners that hold on to what they know: LwF, EWC, iCaRL, and the joint upper bound."""

from __future__ import annotations

import inspect
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from thurl.continual.class_data import ClassData
from thurl.continual.evaluator import Evaluator
from thurl.continual.exemplars import exemplar_means, herding
from thurl.continual.gradient import EWC, Finetune, ICaRL, Joint, LwF
from thurl.continual.learner import LearnerError, learn_task, start, state_hash, task_accuracies
from thurl.continual.learners import LEARNERS, _options, make_learner, parse_learner
from thurl.continual.ridge import cosine_logits
from thurl.errors import UsageError

from .conftest import TASKS, blobs, learned


KINDS = [LwF, EWC, ICaRL, Joint]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def make_encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU())


@pytest.fixture
def encoder():
    return make_encoder()


def weights(state):
    return {name: value for name, value in state.items() if name.startswith(("encoder.", "head."))}


@kinds
def test_everything_moves_but_the_old_state_and_the_random_generators(kind, encoder, data):
    learner = kind(encoder, learning_rate=0.1, encoder_rate=0.05, epochs=2)
    before = learned(learner, data, TASKS[:1])
    held = state_hash(before)
    generators = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    after = learn_task(learner, before, data.task(TASKS[1]), 9)
    assert torch.equal(torch.get_rng_state(), generators[0]) and random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])
    assert state_hash(before) == held
    assert all(not torch.equal(before[name], value) for name, value in weights(after).items())
    assert after["classes"].tolist() == [0, 3, 5, 1] and bool((after["head.weight"][2:] != 0).any(dim=1).all())
    assert all(value.device.type == "cpu" and not value.requires_grad for value in after.values())
    # The learner goes back to an earlier state, whatever it has learned since.
    learned(learner, data, ((7, 4),), seed=1)
    assert state_hash(learn_task(learner, before, data.task(TASKS[1]), 9)) == state_hash(after)
    assert state_hash(learn_task(learner, before, data.task(TASKS[1]), 8)) != state_hash(after)
    assert state_hash(encoder.state_dict()) == state_hash(make_encoder().state_dict())


@kinds
def test_tasks_of_different_sizes(kind, encoder):
    data = blobs(spread=0.2)
    state = learned(kind(encoder, epochs=4), data, ((4,), (5, 1, 2), (6, 7)))
    assert state["head.weight"].shape == (6, 12)
    learner = kind(encoder)
    logits = learner.logits(state, data, data.rows(range(8), "val"))
    assert logits.shape == (40, 6) and bool(logits.isfinite().all())
    assert learner.features(state, data, data.rows([3], "val")).shape == (5, 12)


@pytest.mark.parametrize("kind", [LwF, EWC], ids=lambda kind: kind.name)
def test_without_strength_it_is_fine_tuning_bit_for_bit(kind, encoder, data):
    settings = {"learning_rate": 0.05, "epochs": 3}
    plain = learned(Finetune(encoder, **settings), data, TASKS)
    found = learned(kind(encoder, strength=0.0, local=False, **settings), data, TASKS)
    assert state_hash(weights(found)) == state_hash(weights(plain))
    # Both the strength and the local loss matter from the second task on.
    for other in ({"strength": 1.0, "local": False}, {"strength": 0.0, "local": True}):
        state = learned(kind(encoder, **other, **settings), data, TASKS[:2])
        assert not torch.equal(state["head.weight"], plain["head.weight"][:4])
    one = learned(kind(encoder, strength=5.0, **settings), data, TASKS[:1])
    assert state_hash(weights(one)) == state_hash(weights(learned(Finetune(encoder, **settings), data, TASKS[:1])))


def test_the_local_loss_leaves_old_head_rows_alone(encoder, data):
    learner = LwF(encoder, strength=0.0)
    before = learned(learner, data, TASKS[:1])
    after = learn_task(learner, before, data.task(TASKS[1]), 1)
    assert torch.equal(after["head.weight"][:2], before["head.weight"])


def test_distillation_keeps_the_old_answers_on_the_new_samples(encoder):
    data = blobs(spread=0.5, per_split=(30, 5, 5))
    rows = data.task(TASKS[1]).rows
    moved = {}
    for strength in (0.0, 1.0, 3.0):
        learner = LwF(encoder, strength=strength, learning_rate=0.05, batch_size=16)
        before = learned(learner, data, TASKS[:1])
        after = learn_task(learner, before, data.task(TASKS[1]), 9)
        old = (learner.logits(before, data, rows) / 2).softmax(1)
        new = (learner.logits(after, data, rows)[:, :2] / 2).softmax(1)
        moved[strength] = float((old * (old / new).log()).sum(1).mean())
    assert moved[3.0] < moved[1.0] < 0.5 * moved[0.0]


def by_loop(encoder, state, data, task):
    """Mean over samples of the squared gradient of the true label's log-likelihood."""
    encoder.load_state_dict({name[8:]: value for name, value in state.items() if name.startswith("encoder.")})
    head = {name: state[f"head.{name}"].clone().requires_grad_() for name in ("weight", "bias")}
    parameters = [*encoder.parameters(), *head.values()]
    total = [torch.zeros_like(value) for value in parameters]
    rows = data.task(task).rows
    for row in rows.tolist():
        column = state["classes"].tolist().index(int(data.labels[row]))
        logits = nn.functional.linear(encoder(data.inputs[[row]]), head["weight"], head["bias"])
        for place, value in enumerate(torch.autograd.grad(logits.log_softmax(1)[0, column], parameters)):
            total[place] += value**2 / len(rows)
    names = [*(f"encoder.{name}" for name, _ in encoder.named_parameters()), "head.weight", "head.bias"]
    return dict(zip(names, total, strict=True))


def test_the_running_fisher(encoder, data):
    learner = EWC(encoder, decay=0.5, epochs=2)
    first = learned(learner, data, TASKS[:1])
    second = learn_task(learner, first, data.task(TASKS[1]), 4)
    for name, value in by_loop(make_encoder(), first, data, TASKS[0]).items():
        torch.testing.assert_close(first[f"fisher.{name}"], value, rtol=1e-4, atol=1e-8)
    for name, value in by_loop(make_encoder(), second, data, TASKS[1]).items():
        before = first[f"fisher.{name}"]
        value[: len(before)] += 0.5 * before
        torch.testing.assert_close(second[f"fisher.{name}"], value, rtol=1e-4, atol=1e-8)


def test_a_great_strength_holds_what_mattered(encoder):
    data = blobs(spread=0.5, per_split=(30, 5, 5))

    def moved(strength):
        learner = EWC(encoder, strength=strength, learning_rate=0.1, batch_size=16)
        before = learned(learner, data, TASKS[:1])
        after = learn_task(learner, before, data.task(TASKS[1]), 9)
        apart = [
            (after[name][: len(value)] - value).abs().flatten() for name, value in sorted(weights(before).items())
        ]
        fisher = [before[f"fisher.{name}"].flatten() for name in sorted(weights(before))]
        apart, fisher = torch.cat(apart), torch.cat(fisher)
        mattered = fisher > fisher.quantile(0.75)
        new = after["head.weight"][2:].abs().mean()
        return float(apart[mattered].mean()), float((fisher * apart**2).sum()), float(new)

    free, some, great = moved(0.0), moved(10.0), moved(1e6)
    # 1e6 times a Fisher of about 1 is far beyond what a plain step can follow; it holds all the same.
    assert great[0] < 0.1 * free[0] and great[1] < some[1] < free[1]
    assert great[2] > 0.1 * free[2]  # new head rows are free


def test_exemplars_are_those_of_herding_and_as_many_as_the_budget(encoder):
    data = blobs(per_split=(9, 3, 4))
    learner = ICaRL(encoder, per_class=4, epochs=2)
    first = learned(learner, data, TASKS[:1])
    assert data.labels[first["exemplars"]].tolist() == [0] * 4 + [3] * 4
    for place, index in enumerate(TASKS[0]):
        rows = data.rows([index], "train")
        expected = rows[herding(learner.features(first, data, rows), 4)]
        assert torch.equal(first["exemplars"][4 * place : 4 * place + 4], expected)
    third = learned(learner, data, TASKS)
    assert data.labels[third["exemplars"]].tolist() == [c for task in TASKS for c in task for _ in range(4)]
    assert torch.equal(third["exemplars"][:8], first["exemplars"])
    # The means are of all exemplars under the encoder as it is now.
    features = learner.features(third, data, third["exemplars"])
    means = exemplar_means(features, data.labels[third["exemplars"]], third["classes"])
    assert torch.equal(third["means"], means)
    rows = data.rows(range(8), "test")
    logits = learner.logits(third, data, rows)
    torch.testing.assert_close(logits, cosine_logits(learner.features(third, data, rows), means))
    assert bool((logits.abs() <= 1 + 1e-9).all())


def test_a_class_smaller_than_the_budget_is_kept_whole(encoder):
    pool = blobs(per_split=(8, 3, 4))
    keep = torch.ones(len(pool.labels), dtype=torch.bool)
    keep[pool.rows([3], "train")[2:]] = False
    splits = [split for split, kept in zip(["train"] * 8 + ["val"] * 3 + ["test"] * 4, keep[:15], strict=True)]
    splits = [split for split, kept in zip(splits * 8, keep.tolist(), strict=True) if kept]
    data = ClassData(pool.classes, pool.labels[keep], splits, inputs=pool.inputs[keep])
    state = learned(ICaRL(encoder, per_class=5, epochs=2), data, TASKS)
    counts = [int((data.labels[state["exemplars"]] == index).sum()) for index in (0, 3, 5)]
    assert counts == [5, 2, 5] and len(state["exemplars"].unique()) == len(state["exemplars"])


def test_joint_training_does_not_depend_on_how_classes_were_divided(encoder, data):
    learner = Joint(encoder, epochs=2)
    apart = learned(learner, data, ((0, 3), (5, 1)), seed=4)
    together = learned(learner, data, ((0, 3, 5, 1),), seed=5)
    assert state_hash(apart) == state_hash(together)
    # And that is fine-tuning on all of it at once.
    assert state_hash(weights(learned(Finetune(encoder, epochs=2), data, ((0, 3, 5, 1),), seed=5))) == state_hash(
        weights(apart)
    )


def test_who_forgets(encoder):
    # Well separated blobs, as in test_gradient: what is lost is forgotten, not hard. Seen: fine-tuning 1/3 (the last
    # task alone), iCaRL and joint 0.96.
    data = blobs(spread=0.25, dimension=6, per_split=(40, 20, 20), seed=4)
    settings = {"learning_rate": 0.05, "encoder_rate": 0.005, "epochs": 20, "batch_size": 16}
    found = {
        learner.name: np.mean(task_accuracies(learner, learned(learner, data, TASKS), data, TASKS, "test"))
        for learner in (
            Finetune(encoder, **settings),
            ICaRL(encoder, **settings),
            Joint(encoder, **settings),
        )
    }
    assert found["joint"] >= 0.9 and found["joint"] >= found["finetune"] + 0.4
    assert found["icarl"] >= found["finetune"] + 0.3 and found["joint"] >= found["icarl"] - 0.05


def test_one_process_and_two_give_the_same(encoder, data):
    results = []
    for workers in (1, 2):
        learners = [ICaRL(encoder, per_class=3, epochs=2), EWC(encoder, epochs=2)]
        with Evaluator(data, learners, seed=2, workers=workers) as evaluator:
            rows = [evaluator.accuracies(tasks, m) for tasks in (TASKS, TASKS[:1] + TASKS[2:]) for m in (0, 1)]
            states = [state_hash(evaluator.state(TASKS, m)) for m in (0, 1)]
        results.append((rows, states))
    assert results[0] == results[1]


@kinds
def test_a_low_rank_change_of_a_transformer(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vit = ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4, initializer_range=0.3))
    data = blobs(dimension=3 * 8 * 8, per_split=(4, 2, 2))
    data.inputs = data.features.reshape(-1, 3, 8, 8)
    learner = kind(vit, tune="lora", rank=2, epochs=2, learning_rate=0.05)
    before = learned(learner, data, TASKS[:1])
    after = learn_task(learner, before, data.task(TASKS[1]), 9)
    tuned = [name for name in after if name.startswith("encoder.")]
    assert len(tuned) == 8 and all(".lora_" in name for name in tuned)  # query and value of two blocks, A and B
    assert all(not torch.equal(after[name], before[name]) for name in tuned)
    fisher = {name.removeprefix("fisher.") for name in after if name.startswith("fisher.")}
    assert fisher == ({*tuned, "head.weight", "head.bias"} if kind is EWC else set())


@kinds
def test_a_loss_that_is_no_number_has_a_name(kind, encoder, data):
    learner = kind(encoder, learning_rate=1e30, epochs=2)
    with pytest.raises(LearnerError, match=f"learner {kind.name} diverged"):
        learned(learner, data, TASKS)


@kinds
def test_a_learner_is_made_again_from_its_configuration(kind, encoder, data):
    learner = kind(encoder, epochs=3)
    again = make_learner(learner.config(), encoder)
    assert type(again) is kind and again.config() == learner.config()
    assert state_hash(start(learner, data, 1)) == state_hash(start(again, data, 1))


def test_options_on_the_command_line_and_bad_ones(encoder):
    assert parse_learner("ewc:strength=10,decay=0.5") == {"name": "ewc", "strength": 10, "decay": 0.5}
    assert make_learner(parse_learner("icarl:per_class=7"), encoder).settings["per_class"] == 7
    assert parse_learner("lwf:local=false") == {"name": "lwf", "local": False}
    with pytest.raises(UsageError, match="unknown option 'local'"):
        parse_learner("icarl:local=false")  # exemplars are old samples
    with pytest.raises(UsageError, match="local is 1; it must be true or false"):
        parse_learner("lwf:local=1")
    with pytest.raises(UsageError) as caught:
        LwF(encoder, strength=-1.0, temperature=0.0)
    assert len(caught.value.problems) == 2
    with pytest.raises(UsageError) as caught:
        EWC(encoder, strength=float("nan"), decay=1.5)
    assert len(caught.value.problems) == 2
    with pytest.raises(UsageError, match="per_class"):
        ICaRL(encoder, per_class=0)


def test_defaults_are_those_of_the_documentation(encoder):
    page = (Path(__file__).parents[2] / "docs" / "cldyb.md").read_text(encoding="utf-8")
    own = {"lwf": 3, "ewc": 3, "icarl": 3, "l2p": 4, "joint": 0}
    for name, count in own.items():
        (row,) = re.findall(rf"^\| `{name}` \|[^|]*\|([^|]*)\|", page, re.M)
        told = dict(re.findall(r"`(\w+)` \((\w+\.?\d*)\)", row))
        assert len(told) == count
        defaults = {}
        for kind in LEARNERS[name].__mro__[:-1]:
            for key, value in inspect.signature(kind).parameters.items():
                defaults.setdefault(key, str(value.default).lower())
        assert told == {key: defaults[key] for key in told}
        assert told.keys() == _options(LEARNERS[name]).keys() - _options(Finetune).keys()
