"""Evaluation: the schedule, seeds, what a set is worth, labels of both kinds, other architectures, bad sets."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from thurl.distillation.classifier_training import accuracy
from thurl.distillation.evaluation import Evaluation, EvaluationConfig, evaluate, evaluate_across, phases
from thurl.distillation.networks import NetworkConfig, build_network
from thurl.distillation.sources import load_digits
from thurl.errors import DataError, UsageError


NETWORK = NetworkConfig(1, 8, 8, 10, filters=8, depth=1)
CONFIG = EvaluationConfig(NETWORK, batch=32, images=2500)


@pytest.fixture(scope="module")
def digits():
    return load_digits(train_per_class=20, test_per_class=20, seed=2)


def test_the_schedule_is_the_official_one():
    # 1001 passes; the rate falls after the 502nd.
    assert phases(EvaluationConfig(NETWORK), 300) == ((502 * 2, 0.01), (499 * 2, pytest.approx(0.001)))
    assert phases(EvaluationConfig(NETWORK, epochs=1), 10) == ((2, 0.01), (0, pytest.approx(0.001)))
    assert phases(EvaluationConfig(NETWORK, images=12_000, batch=64, lr=0.1), 10)[0] == (94, 0.1)
    assert sum(steps for steps, _ in phases(EvaluationConfig(NETWORK, images=12_000, batch=64), 5000)) == 188


def test_a_set_is_worth_what_it_holds(digits):
    """Bar: real digits above 60 %, the same pictures with shuffled labels below 30 %."""
    train, test = digits
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    right = evaluate(train.images, train.labels, test, CONFIG, (0, 1))
    wrong = evaluate(train.images, train.labels[order], test, CONFIG, (0, 1))
    assert min(right.accuracies) > 0.6 and max(wrong.accuracies) < 0.3, (right, wrong)
    assert right.seeds == (0, 1) and right.cpu_seconds > 0


def test_a_seed_gives_its_accuracy_alone_and_among_others(digits):
    train, test = digits
    short = replace(CONFIG, images=300)
    together = evaluate(train.images, train.labels, test, short, (3, 4, 5))
    torch.rand(7)  # what the global generator did in between does not matter
    alone = [evaluate(train.images, train.labels, test, short, (seed,)).accuracies[0] for seed in (5, 3)]
    assert alone == [together.accuracies[2], together.accuracies[0]]
    assert len(set(together.accuracies)) > 1


def test_floating_pictures_are_the_same_as_bytes(digits):
    train, test = digits
    short = replace(CONFIG, images=300)
    by_byte = evaluate(train.images, train.labels, test, short, (1,))
    by_float = evaluate(train.images.double() / 255, train.labels, test, short, (1,))
    assert by_byte.accuracies == by_float.accuracies


def test_epochs_and_no_augmentation(digits):
    train, test = digits
    config = replace(CONFIG, images=None, epochs=12, dsa=None, lr=0.05)
    assert evaluate(train.images, train.labels, test, config, (0,)).mean > 0.5


def test_soft_labels_count(digits):
    train, test = digits
    sure = 20 * torch.nn.functional.one_hot(train.labels, 10).half()
    flat = torch.zeros(len(train), 10)
    hard = evaluate(train.images, train.labels, test, CONFIG, (2,))
    assert abs(evaluate(train.images, sure, test, CONFIG, (2,)).mean - hard.mean) < 0.05
    assert evaluate(train.images, flat, test, CONFIG, (2,)).mean < 0.4


def test_other_architectures_train_at_their_rate(digits):
    train, test = digits
    config = replace(CONFIG, images=128)
    found = evaluate_across(
        train.images, train.labels, test, config,
        {"narrow": replace(NETWORK, filters=4), "alexnet": replace(NETWORK, name="alexnet")}, (0,),
    )  # fmt: skip
    assert list(found) == ["narrow", "alexnet"]
    rate = replace(config, network=replace(NETWORK, name="alexnet"), lr=0.02)
    assert found["alexnet"].accuracies == evaluate(train.images, train.labels, test, rate, (0,)).accuracies


def test_a_network_that_diverges_has_no_accuracy(digits):
    train, test = digits
    found = evaluate(train.images, train.labels, test, replace(CONFIG, lr=1e30, images=300), (0,))
    assert math.isnan(found.accuracies[0]) and math.isnan(found.mean)


def test_spread_and_mean():
    found = Evaluation((0, 1), (0.4, 0.6), 1.0)
    assert found.mean == pytest.approx(0.5) and found.std == pytest.approx(0.1)


def test_accuracy_is_in_test_mode_and_leaves_the_mode(digits):
    net = build_network(replace(NETWORK, norm="batch"), 0)
    images, labels = digits[1].normalised(), digits[1].labels
    whole, parts = accuracy(net, images, labels), accuracy(net, images, labels, batch=7)
    assert whole == parts and net.training


def test_everything_wrong_is_said_at_once(digits):
    train, test = digits
    broken = train.images.float() / 255
    broken[3, 0, 2, 2] = float("nan")
    with pytest.raises(DataError) as caught:
        evaluate(broken[:, :, :7], train.labels + 1, test, replace(CONFIG, network=replace(NETWORK, classes=4)), (0,))
    assert len(str(caught.value).splitlines()) == 4
    with pytest.raises(DataError, match="soft label is not finite"):
        evaluate(train.images, torch.full((200, 10), float("inf")), test, CONFIG, (0,))
    with pytest.raises(DataError, match=r"labels \(199,\)"):
        evaluate(train.images, train.labels[1:], test, CONFIG, (0,))
    with pytest.raises(UsageError, match="at least one is needed, each once"):
        evaluate(train.images, train.labels, test, CONFIG, (1, 1))
    with pytest.raises(UsageError) as refused:
        EvaluationConfig(NETWORK, lr=0, momentum=1, weight_decay=-1, batch=0, epochs=0, images=0)
    assert len(refused.value.problems) == 6
