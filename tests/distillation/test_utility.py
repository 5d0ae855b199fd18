"""Utility losses: values and gradients of the official code, exact resume, learning, and one that a user adds."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from thurl.distillation.baselines import optimised_pixels, random_pictures
from thurl.distillation.convnet import ConvNet
from thurl.distillation.dsa import DsaConfig, augment, draw
from thurl.distillation.evaluation import EvaluationConfig, evaluate
from thurl.distillation.experts import ExpertConfig, train_experts
from thurl.distillation.networks import NetworkConfig, build_network
from thurl.distillation.pictures import RealBatches
from thurl.distillation.sources import load_digits
from thurl.distillation.utility.base import Utility, class_means
from thurl.distillation.utility.dm import DistributionMatching, distribution_matching_loss
from thurl.distillation.utility.gm import GradientMatching, gradient_distance, gradient_matching_loss
from thurl.distillation.utility.tm import TrajectoryMatching, trajectory_distance, unroll
from thurl.errors import DataError, UsageError
from thurl.training.state_files import load_state, save_state


NETWORK = NetworkConfig(1, 8, 8, 10, filters=8, depth=1)


@pytest.fixture(scope="module")
def digits():
    return load_digits(train_per_class=40, test_per_class=50, seed=1)


@pytest.fixture(scope="module")
def experts(digits, tmp_path_factory):
    config = ExpertConfig(NETWORK, count=2, epochs=4, lr=0.05, batch=100)
    return train_experts(digits[0], config, tmp_path_factory.mktemp("experts"))


@pytest.fixture(params=["dm", "gm", "tm", "user"])
def make(request, experts):
    """Makes the same utility again and again."""
    return {
        "dm": lambda: DistributionMatching(NETWORK, batch_real=10),
        "gm": lambda: GradientMatching(NETWORK, batch_real=10, outer=2, inner=2, batch=8, dsa=DsaConfig()),
        "tm": lambda: TrajectoryMatching(experts, syn_steps=3, max_start_epoch=2, batch=8, lr_lr=1e-3),
        "user": MeanPicture,
    }[request.param]


# --- the official values ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(golden):
    values = load_file(golden / "ddruo_losses.safetensors")
    net = ConvNet(3, 16, 16, 3, filters=8, depth=2)
    net.load_state_dict({key[4:]: value for key, value in values.items() if key.startswith("net.")})
    values["real_labels"] = torch.arange(3).repeat_interleave(6)
    values["labels"] = torch.arange(3).repeat_interleave(4)
    return net, values


def shuffled(*tensors, seed):
    order = torch.randperm(len(tensors[0]), generator=torch.Generator().manual_seed(seed))
    return [tensor[order] for tensor in tensors]


@pytest.mark.parametrize("name", ["dm", "gm", "tm"])
def test_value_and_gradient_are_those_of_the_official_code(official, name):
    net, golden = official
    synthetic = golden["syn"].flatten(0, 1).clone().requires_grad_()
    # Which rows stand where must not matter but for the order of the sums.
    images, labels = shuffled(synthetic, golden["labels"], seed=1)
    real, real_labels = shuffled(golden["real"].flatten(0, 1), golden["real_labels"], seed=2)
    lr = torch.tensor(0.01, requires_grad=True)
    if name == "dm":
        loss = distribution_matching_loss(net, real, real_labels, images, labels, 3)
    elif name == "gm":
        loss = gradient_matching_loss(net, real, real_labels, images, labels)
    else:
        start = {key: value.detach() for key, value in net.named_parameters()}
        target = {key: golden[f"tm.target.{key}"] for key in start}
        end = unroll(net, start, images, labels, lr, [torch.arange(12)] * 3)
        loss = trajectory_distance(end, start, target)
    loss.backward()
    expected = golden[f"expect.{name}.grad_syn"].flatten(0, 1)
    assert float(loss.detach()) == pytest.approx(float(golden[f"expect.{name}.loss"]), rel=1e-4)
    assert float((synthetic.grad - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    if name == "tm":
        assert float(lr.grad) == pytest.approx(float(golden["expect.tm.grad_lr"]), rel=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 8])
def test_the_memory_of_distribution_matching_does_not_change_its_value(official, chunk):
    net, golden = official
    found = []
    for size in (100, chunk):
        images = golden["syn"].flatten(0, 1).clone().requires_grad_()
        real, labels = golden["real"].flatten(0, 1), golden["labels"]
        loss = distribution_matching_loss(net, real, golden["real_labels"], images, labels, 3, chunk=size)
        (2 * loss).backward()
        found.append((loss.detach(), images.grad))
    assert torch.allclose(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1], atol=1e-6)
    assert torch.allclose(found[0][1], 2 * golden["expect.dm.grad_syn"].flatten(0, 1), atol=1e-4)


def test_a_class_on_one_side_only_counts_nothing(official):
    net, golden = official
    real, synthetic = golden["real"].flatten(0, 1), golden["syn"].flatten(0, 1)
    two = golden["labels"] < 2
    for loss in (
        lambda *pair: distribution_matching_loss(net, real, golden["real_labels"], *pair, 3),
        lambda *pair: gradient_matching_loss(net, real, golden["real_labels"], *pair),
    ):
        whole, part = loss(synthetic, golden["labels"]), loss(synthetic[two], golden["labels"][two])
        assert part.isfinite() and 0 < float(part.detach()) < float(whole.detach())


def test_class_means_and_gradient_distance():
    values = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    assert torch.equal(class_means(values, torch.tensor([1, 0, 1]), 2), torch.tensor([[3.0, 4], [3, 4]]))
    values.requires_grad_()
    three = class_means(values, torch.tensor([1, 0, 1]), 3)
    assert three[2].isnan().all()
    three[:2].sum().backward()
    assert values.grad.tolist() == [[0.5, 0.5], [1, 1], [0.5, 0.5]]
    weight, bias = torch.tensor([[1.0, 0], [0, 2]]), torch.ones(2)
    # Rows count, however long; biases do not.
    assert float(gradient_distance([weight, bias], [5 * weight, -bias])) == pytest.approx(0, abs=1e-5)
    assert float(gradient_distance([weight, bias], [-weight, bias])) == pytest.approx(4, abs=1e-5)


def test_the_gradient_through_the_steps_is_that_of_autograd():
    """With augmentation, pictures in several steps, and a step that meets one twice."""
    network = NetworkConfig(1, 8, 8, 3, filters=2, depth=1)
    net = build_network(network, 0).double()
    start = {name: value.detach() for name, value in net.named_parameters()}
    random = torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, 8, 8, generator=random, dtype=torch.float64).requires_grad_()
    labels, lr = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    rows = [torch.tensor(one) for one in ([0, 1, 2], [3, 4], [5, 0, 0], [2, 4, 5])]
    draws = [draw(DsaConfig(), random, len(one)) for one in rows]

    def plain():
        parameters = {name: value.requires_grad_() for name, value in start.items()}
        for one, drawn in zip(rows, draws, strict=True):
            logits = torch.func.functional_call(net, parameters, (augment(images[one], drawn, DsaConfig()),))
            loss = torch.nn.functional.cross_entropy(logits, labels[one])
            slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
            parameters = {n: v - lr * s for (n, v), s in zip(parameters.items(), slopes, strict=True)}
        return parameters

    def gradients(end):
        return torch.autograd.grad(sum((value**3).sum() for value in end.values()), [images, lr])

    ours, theirs = unroll(net, start, images, labels, lr, rows, draws, DsaConfig()), plain()
    assert all(torch.allclose(ours[name], theirs[name]) for name in start)
    for one, other in zip(gradients(ours), gradients(theirs), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12) and bool(one.any())
    still = unroll(net, start, images, labels, lr, [])
    assert all(torch.equal(still[name], value) for name, value in start.items())


# --- all of them -----------------------------------------------------------------------------------------------------


class MeanPicture(Utility):
    """A user's own loss: class means of the pixels, against a running mean of the real ones."""

    def __init__(self, batch_real=10, decay=0.9):
        self.batch_real, self.decay, self.mean = batch_real, decay, None

    def loss(self, images, labels, real, generator):
        pictures, classes = real.draw(self.batch_real, generator)
        found = class_means(pictures.flatten(1), classes, real.classes)
        self.mean = found if self.mean is None else self.decay * self.mean + (1 - self.decay) * found
        return (class_means(images.flatten(1), labels, real.classes) - self.mean).square().sum()

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


def test_a_users_loss_needs_no_more_than_30_lines():
    assert len(inspect.getsource(MeanPicture).splitlines()) <= 30


def start(digits, dtype=torch.float32):
    drawn = digits[0].draw(2, torch.Generator().manual_seed(3))
    return drawn.normalised().to(dtype), drawn.labels


def steps(utility, images, labels, real, generator, count):
    images = images.clone()
    losses = []
    for _ in range(count):
        images.requires_grad_()
        loss = utility.loss(images, labels, real, generator)
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
        loss.backward()
        utility.update()
        images = (images - 0.05 * gradient / gradient.norm()).detach()
        losses.append(float(loss.detach()))
    return images, losses


def test_every_picture_gets_a_gradient_and_the_loss_is_of_any_dtype(digits, make):
    real = RealBatches(digits[0])
    for dtype in (torch.float32, torch.float64):
        images, labels = start(digits, dtype)
        images.requires_grad_()
        loss = make().loss(images, labels, real, torch.Generator().manual_seed(1))
        assert loss.ndim == 0 and loss.dtype == dtype and float(loss.detach()) > 0
        loss.backward()
        assert bool((images.grad.flatten(1).abs().sum(1) > 0).all())


def test_a_run_that_goes_on_from_its_saved_state_is_the_uninterrupted_one(digits, make, tmp_path):
    real = RealBatches(digits[0])
    images, labels = start(digits)
    whole, losses = steps(make(), images, labels, real, torch.Generator().manual_seed(4), 6)

    generator, first = torch.Generator().manual_seed(4), make()
    half, _ = steps(first, images, labels, real, generator, 3)
    save_state(tmp_path / "s", {"utility": first.state_dict(), "generator": generator.get_state(), "images": half})

    state, second, resumed = load_state(tmp_path / "s"), make(), torch.Generator()
    second.load_state_dict(state["utility"])
    resumed.set_state(state["generator"])
    rest, later = steps(second, state["images"], labels, real, resumed, 3)
    assert later == losses[3:]
    assert torch.equal(rest, whole)
    # Control: another generator is another run.
    assert steps(make(), images, labels, real, torch.Generator().manual_seed(5), 3)[1] != losses[:3]


def test_steps_along_the_gradient_lower_the_loss_and_random_ones_do_not(digits, make):
    real = RealBatches(digits[0])
    images, labels = start(digits)
    moved, _ = steps(make(), images, labels, real, torch.Generator().manual_seed(6), 12)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
    aside = images + noise * ((moved - images).norm() / noise.norm())

    def judged(pictures):
        with_seed = [torch.Generator().manual_seed(seed) for seed in range(100, 104)]
        return sum(float(make().loss(pictures, labels, real, one).detach()) for one in with_seed)

    assert judged(moved) < judged(images)
    assert judged(aside) > judged(moved)


def test_a_saved_state_without_a_home_is_refused():
    with pytest.raises(ValueError, match="lr was saved"):
        DistributionMatching(NETWORK).load_state_dict({"lr": torch.tensor(1.0)})


# --- one by one ------------------------------------------------------------------------------------------------------


def test_distilled_pixels_beat_real_ones_on_digits(digits):
    """Bar: 4 points above random real pictures at the same bits; with the labels of other classes below 30 %."""
    train, test = digits
    network = replace(NETWORK, filters=16)
    config = EvaluationConfig(network, batch=64, images=3000)
    generator = torch.Generator().manual_seed(21)
    real = random_pictures(train, 1, generator)
    made = optimised_pixels(DistributionMatching(network, 40), train, 1, 150, generator, lr=0.05)
    assert made.bits_per_class == real.bits_per_class == 512
    seeds = (31, 32, 33)
    of_real, of_made, of_wrong = (
        evaluate(images, labels, test, config, seeds).mean
        for images, labels in ((real.images, real.labels), (made.images, made.labels),
                               (made.images, (made.labels + 1) % 10))
    )  # fmt: skip
    assert of_made >= of_real + 0.04, (of_made, of_real)
    assert of_wrong < 0.3, of_wrong


def test_the_network_of_gradient_matching_learns_and_is_replaced(digits):
    real = RealBatches(digits[0])
    images, labels = start(digits)
    utility = GradientMatching(NETWORK, batch_real=5, outer=2, inner=1)
    generator = torch.Generator().manual_seed(8)
    seen = []
    for _ in range(4):
        utility.loss(images, labels, real, generator)
        seen.append(utility.state_dict()["network"]["classifier.weight"])
    # 0 new, 1 trained, 2 new, 3 trained: training moves a little, a new draw moves everything.
    moves = [float((a - b).norm()) for a, b in zip(seen, seen[1:], strict=False)]
    assert 0 < moves[0] < 0.1 * moves[1] and 0 < moves[2] < 0.1 * moves[1]


def test_the_rate_of_trajectory_matching_is_learned_within_its_bound(digits, experts):
    real = RealBatches(digits[0])
    images, labels = start(digits)
    utility = TrajectoryMatching(experts, syn_steps=2, max_start_epoch=1, lr_lr=1e-2)
    loss = utility.loss(images, labels, real, torch.Generator().manual_seed(9))
    (1000 * loss).backward()
    slope = float(utility.lr.grad) / 1000
    utility.update(scale=1000)
    assert float(utility.lr.detach()) == pytest.approx(max(0.01 - 1e-2 * slope, 1e-3), rel=1e-4)
    assert slope < 0  # the experts' rate is higher
    before = float(utility.lr.detach())
    utility.update()  # nothing new to learn from
    assert float(utility.lr.detach()) == before
    utility.lr.grad = torch.tensor(1e6)
    utility.update()
    assert float(utility.lr.detach()) == pytest.approx(1e-3)
    utility.lr.grad = torch.tensor(float("nan"))
    with pytest.raises(DataError, match="learned rate is nan"):
        utility.update()


def test_what_trajectory_matching_cannot_use_is_refused(digits, experts, tmp_path):
    with pytest.raises(UsageError, match="need 6 epochs; the experts in .* have 4"):
        TrajectoryMatching(experts, max_start_epoch=5, expert_epochs=2)
    with pytest.raises(DataError, match="no folder of expert trajectories"):
        TrajectoryMatching(tmp_path)
    other = RealBatches(replace(digits[0], mean=(0.5,)))
    with pytest.raises(DataError, match="pictures of other mean"):
        TrajectoryMatching(experts, max_start_epoch=2).loss(*start(digits), other, torch.Generator())


def test_networks_and_loops_that_do_not_fit_are_refused():
    vit = NetworkConfig(1, 8, 8, 10, name="vit", patch=4)
    for utility in (DistributionMatching, GradientMatching, ExpertConfig):
        with pytest.raises(UsageError, match="dropout"):
            utility(vit)
        with pytest.raises(UsageError, match="depends on the batch"):
            utility(replace(NETWORK, norm="batch"))
    with pytest.raises(UsageError) as caught:
        GradientMatching(replace(NETWORK, norm="batch"), outer=0, lr=0)
    assert len(caught.value.problems) == 3
    with pytest.raises(UsageError, match="batch_real: 0"):
        DistributionMatching(NETWORK, batch_real=0)
