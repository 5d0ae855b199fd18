"""The joint stage: its objective, rounding at the end, bits that obey, slices that do not touch, exact resume."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from thurl.distillation.balance import balanced_lambda
from thurl.distillation.controller import RateControl
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.joint import DistilledSet, DistilledSetConfig, JointObjective, decoded, step_generator
from thurl.distillation.joint_trainer import JointTrainer, LambdaSchedule
from thurl.distillation.networks import NetworkConfig
from thurl.distillation.pictures import PictureSet, RealBatches
from thurl.distillation.reconstruction import Reconstruction
from thurl.distillation.utility.base import Utility
from thurl.distillation.utility.dm import DistributionMatching
from thurl.distillation.utility.gm import GradientMatching
from thurl.distillation.warm_up import WarmUpConfig, warm_up
from thurl.errors import DataError, UsageError


SHAPES = CodecConfig(8, 8, 1, context=8, depth=1, widths=(6,))
MEAN, STD = torch.tensor([0.4]), torch.tensor([0.3])
NETWORK = NetworkConfig(1, 8, 8, 2, filters=4, depth=1)


@pytest.fixture(scope="module")
def real():
    """Two classes: bright at the left, bright at the bottom, with noise."""
    generator = torch.Generator().manual_seed(3)
    ramp = torch.linspace(0, 1, 8).expand(8, 8)
    pictures = torch.cat([(ramp + 0.2 * torch.rand(20, 8, 8, generator=generator)), ramp.T.flip(0).expand(20, 8, 8)])
    images = (pictures.clamp(0, 1) * 255).round().to(torch.uint8)[:, None]
    return PictureSet(images, torch.arange(2).repeat_interleave(20), ("left", "down"), (0.4,), (0.3,))


def make_set(labels=([[0, 0, 0], [1, 1, 1]],), seed=0, spread=0.3):
    """A set whose latents are not all 0."""
    set_seed(seed)
    model = DistilledSet(DistilledSetConfig.of(SHAPES, [np.array(table) for table in labels]))
    with torch.no_grad():
        for codec in model.codecs:
            for grid in codec.grids:
                grid.normal_(0, spread)
            for parameter in codec.synthesis:
                parameter.normal_(0, 0.1)
    return model


def aim(model, real, utility, **options):
    settings = {"steps": 6, "seed": 5} | options
    model.set_objective(JointObjective(utility, RealBatches(real), MEAN, STD, **settings))
    return model


def trainer_for(folder, model, rate=None, **fields):
    settings = {
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_grad_norm": 0.1, "save_strategy": "no",
        "logging_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "weight_decay": 0.0,
        "per_device_train_batch_size": 1, "max_steps": model.objective.steps,
    }  # fmt: skip
    own = {name: fields.pop(name) for name in ("start", "update_every", "callbacks") if name in fields}
    args = TrainingArguments(str(folder), **settings | fields)
    return JointTrainer(model, args, rate=rate or LambdaSchedule([(6, 0.5)]), **own)


class Seen(Utility):
    """Keeps what it is shown."""

    def loss(self, images, labels, real, generator):
        self.images, self.labels = images.detach().clone(), labels
        return images.square().mean()


# --- the objective ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 5])  # soft, hard
def test_loss_and_gradient_are_those_of_rate_and_weighted_utility(real, step):
    model = aim(make_set(), real, DistributionMatching(NETWORK, 8), hard_share=0.2, weight=2.5)
    output = model(torch.tensor([step]))
    whole = output.terms["rate"] + 2.5 * output.terms["utility"]
    assert output.loss.item() == pytest.approx(whole.item(), rel=1e-6)
    found = torch.autograd.grad(output.loss, list(model.parameters()))
    model.objective.weight = 1.0
    parts = []
    for name in ("rate", "utility"):
        terms = model(torch.tensor([step])).terms
        parts.append(torch.autograd.grad(terms[name], list(model.parameters()), allow_unused=True))
    for got, rate, utility in zip(found, *parts, strict=True):
        expected = (0 if rate is None else rate) + 2.5 * (0 if utility is None else utility)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_lambda_does_not_scale_what_the_utility_learns(real):
    class Learns(Utility):
        def __init__(self):
            self.rate = torch.tensor(1.0, requires_grad=True)

        def loss(self, images, labels, real, generator):
            return self.rate * images.square().mean()

    gradients = []
    for weight in (1.0, 40.0):
        utility = Learns()
        aim(make_set(), real, utility, weight=weight)(torch.tensor([0])).loss.backward()
        gradients.append(float(utility.rate.grad))
    assert gradients[0] == pytest.approx(gradients[1])


def test_the_rate_is_the_sum_over_slices_of_bits_per_pixel(real):
    model = aim(make_set((([[0, 0, 0], [1, 1, 1]]), ([[1, 0]]))), real, Seen(), hard_share=1.0)
    bits = [codec.hard().bits for codec in model.codecs]
    expected = sum(float((table.sum(dim=1) / (table.shape[1] * 64)).sum()) for table in bits)
    assert model(torch.tensor([0])).terms["rate"].item() == pytest.approx(expected, rel=1e-5)


def test_at_the_end_the_utility_sees_exactly_the_pictures_of_the_integers(real):
    utility = Seen()
    model = aim(make_set(), real, utility, hard_share=0.5)
    pictures, bits = decoded(model.codecs)
    model(torch.tensor([2]))
    soft = utility.images * STD + MEAN
    assert (soft * 255 - (soft * 255).round()).abs().max() > 0.05  # the control: no levels before the end
    model(torch.tensor([3]))
    hard = utility.images * STD + MEAN
    torch.testing.assert_close(hard * 255, pictures.float(), rtol=0, atol=1e-3)
    assert utility.labels.tolist() == [0, 0, 0, 1, 1, 1] and bits > 0


def test_randomness_follows_from_seed_and_step(real):
    model = aim(make_set(), real, DistributionMatching(NETWORK, 8))
    first = model(torch.tensor([1])).loss.item()
    torch.manual_seed(99)
    assert model(torch.tensor([1])).loss.item() == first
    assert model(torch.tensor([2])).loss.item() != first
    draws = {float(torch.rand((), generator=step_generator(seed, step))) for seed in (0, 1) for step in range(4)}
    assert len(draws) == 8


# --- training --------------------------------------------------------------------------------------------------------


def test_every_parameter_moves_and_is_saved(real, tmp_path):
    model = aim(make_set(), real, DistributionMatching(NETWORK, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_for(tmp_path, model)
    trainer.train()
    assert [name for name, value in model.state_dict().items() if torch.equal(value, before[name])] == []
    model.save_pretrained(tmp_path / "saved")
    back = DistilledSet.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    assert torch.equal(decoded(back.codecs)[0], decoded(model.codecs)[0])
    assert {"terms/rate", "terms/utility", "rate/lambda"} <= set(trainer.state.log_history[0])


def test_slices_trained_together_are_those_trained_alone(real, tmp_path):
    """With rounding there is no noise, and reconstruction joins no slices: clipping and Adam must not either."""
    targets = real.images[[0, 1, 2, 20, 21, 22]].float() / 255
    both = make_set()
    alone = [make_set(([[label] * 3],)) for label in (0, 1)]
    for index, model in enumerate(alone):
        for own, other in zip(model.codecs[0].parameters(), both.codecs[0].parameters(), strict=True):
            own.data.copy_(other.data[index : index + 1])
    aim(both, real, Reconstruction(targets, MEAN, STD, 2), hard_share=1.0)
    trainer_for(tmp_path / "both", both, LambdaSchedule([(6, 50.0)])).train()
    for index, model in enumerate(alone):
        mine = targets[3 * index : 3 * index + 3]
        aim(model, real, Reconstruction(mine, MEAN, STD, 1), hard_share=1.0)
        trainer_for(tmp_path / f"alone{index}", model, LambdaSchedule([(6, 50.0)])).train()
        for own, other in zip(model.codecs[0].parameters(), both.codecs[0].parameters(), strict=True):
            torch.testing.assert_close(own.data, other.data[index : index + 1], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def warmed(real):
    """A codec of 12 real pictures, their targets, and its bits."""
    rows = [*range(6), *range(20, 26)]
    targets = real.images[rows].float() / 255
    settings = WarmUpConfig(iterations=80, candidates=1, keep=1, rate_weight=2e-3)
    codec = warm_up(SHAPES, targets[None], settings, torch.Generator().manual_seed(2))
    return codec, targets, decoded([codec])[1]


@pytest.mark.parametrize("share", [0.6, 0.85])
def test_the_controller_brings_a_codec_to_its_bits(real, warmed, tmp_path, share):
    codec, targets, first = warmed
    labels = np.arange(2).repeat(6)[None]
    model = aim(DistilledSet.of([codec], [labels]), real, Reconstruction(targets, MEAN, STD, 1), steps=100)
    fields = {"lr_scheduler_type": "cosine", "logging_steps": 100, "update_every": 2, "start": 500.0}
    trainer_for(tmp_path, model, RateControl(share * first), **fields).train()
    assert 0.9 * share * first <= decoded(model.codecs)[1] <= share * first
    assert decoded([codec])[1] == first  # the codec it started from is left alone


def test_a_larger_lambda_buys_bits(real, tmp_path):
    targets = real.images[[0, 1, 2, 20, 21, 22]].float() / 255
    found = []
    for value in (1.0, 100.0, 10_000.0):
        model = aim(make_set(spread=0.06), real, Reconstruction(targets, MEAN, STD, 2), steps=30)
        trainer_for(tmp_path / f"{value}", model, LambdaSchedule([(30, value)]), logging_steps=30).train()
        found.append(decoded(model.codecs)[1])
    assert found == sorted(found) and found[2] > 1.1 * found[0]


class _Die(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["dm", "gm"])
@pytest.mark.parametrize("step", [3, 5])  # while soft, and after the change to rounding
def test_a_killed_run_goes_on_bit_for_bit(real, tmp_path, kind, step):
    def trainer(folder, *callbacks):
        utility = DistributionMatching(NETWORK, 8) if kind == "dm" else GradientMatching(NETWORK, 8, outer=3, inner=1)
        model = aim(make_set(), real, utility, hard_share=0.34)
        fields = {"save_strategy": "steps", "save_steps": 1, "update_every": 2, "callbacks": list(callbacks)}
        return trainer_for(folder, model, RateControl(2000.0), **fields)

    whole = trainer(tmp_path / "whole")
    whole.train()
    killed = trainer(tmp_path / "run", _Die(step))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "run")
    resumed.train("auto")
    assert resumed.controller == whole.controller
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    logs = [
        [{k: v for k, v in entry.items() if k.startswith(("loss", "terms", "rate"))} for entry in t.state.log_history]
        for t in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def test_a_run_resumed_behind_its_last_step_knows_its_lambda(real, tmp_path):
    def trainer():
        model = aim(make_set(), real, Seen())
        return trainer_for(tmp_path, model, RateControl(500.0), save_strategy="steps", save_steps=1)

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train("auto")
    assert resumed.state.global_step == whole.state.global_step
    assert resumed.model.objective.weight == whole.model.objective.weight != 1.0


def test_another_size_is_another_run(real, tmp_path):
    model = aim(make_set(), real, Seen())
    trainer_for(tmp_path, model, RateControl(500.0), save_strategy="steps", save_steps=3).train()
    with pytest.raises(UsageError, match="rate"):
        trainer_for(tmp_path, aim(make_set(), real, Seen()), RateControl(600.0)).train("auto")


# --- lambda ----------------------------------------------------------------------------------------------------------


def test_lambda_follows_its_stages():
    schedule = LambdaSchedule([(3, 10.0), (2, 1.0)])
    assert [schedule.value(step) for step in range(7)] == [10.0] * 3 + [1.0] * 4
    for stages in ([], [(0, 1.0)], [(1, -1.0)], [(1, math.nan)]):
        with pytest.raises(UsageError, match="lambda stages"):
            LambdaSchedule(stages)


def test_the_first_lambda_balances_the_gradients_and_changes_nothing(real):
    utility = GradientMatching(NETWORK, 8, outer=3, inner=1)
    model = aim(make_set(), real, utility, sigma=0.0)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    value = balanced_lambda(model, draws=1)
    assert utility.state_dict()["step"] == 0 and model.objective.weight == 1.0 and model.objective.steps == 6
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    terms = {}
    for name in ("rate", "utility"):
        model.objective.steps = 10**6  # a soft step of the number that was looked at
        output = model(torch.tensor([6])).terms[name]
        utility.load_state_dict({"step": 0, "network": None})
        grids = list(model.codecs[0].grids)
        terms[name] = math.sqrt(sum(float(g.square().sum()) for g in torch.autograd.grad(output, grids)))
    assert value * terms["utility"] == pytest.approx(terms["rate"], rel=1e-4)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_settings_that_would_not_be_one_step_are_refused_together(real, tmp_path):
    model = aim(make_set(), real, Seen())
    with pytest.raises(UsageError) as caught:
        trainer_for(tmp_path, model, per_device_train_batch_size=2, max_steps=9)
    assert len(caught.value.problems) == 2
    with pytest.raises(UsageError, match="set_objective"):
        make_set()(torch.tensor([0]))


def test_a_gradient_that_is_not_finite_stops_the_run(real, tmp_path):
    class Broken(Utility):
        def loss(self, images, labels, real, generator):
            return images.sum() * math.inf

    model = aim(make_set(), real, Broken())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match="not finite"):
        trainer_for(tmp_path, model).train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_slices_of_one_codec_are_of_one_size():
    with pytest.raises(ValueError, match="of one size"):
        DistilledSetConfig(height=8, width=8, channels=1, widths=[6], labels=[[[0, 0], [1]]])


def test_the_overridden_private_method_still_has_its_signature():
    assert list(inspect.signature(Trainer._clip_grad_norm).parameters) == ["self", "model"]
