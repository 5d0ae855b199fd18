"""The protocol against the official code's numbers: losses with gradients, schedule, triplets, accuracy, MOS, fits."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from thurl.data.records import RatedImage
from thurl.errors import DataError
from thurl.iqa.afine.accuracy import correct_pairs, pair_accuracy, pair_accuracy_interval
from thurl.iqa.afine.calibration import (
    BoundedFit,
    fit_bounded,
    fit_naturalness,
    lower_is_better,
    moments,
    plcc_four_parameters,
)
from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.diffiqa import diffiqa_triplets, majority_label
from thurl.iqa.afine.losses import TERMS, pair_loss, stage_terms
from thurl.iqa.afine.mathematics import scaled_score
from thurl.iqa.afine.model import AFineModel
from thurl.iqa.afine.rated_pairs import all_pairs
from thurl.iqa.afine.sriqa import mos_from_counts
from thurl.training.restarts import cosine_with_restarts, restart_multiplier


GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "afine_protocol.json").read_text())


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_first_stage_loss_and_gradients():
    case = GOLDEN["stage1_loss"]
    scores = [double(case[name]).requires_grad_() for name in ("u1", "u2", "uref")]
    terms, present = stage_terms(*scores, *(double(case[name]) for name in ("g12", "g1ref", "g2ref")))
    assert tuple(terms) == TERMS["naturalness"] and all(present.values())
    for name, key in zip(terms, ("loss_12", "loss_1ref", "loss_2ref"), strict=True):
        assert terms[name].item() == pytest.approx(case[key], rel=1e-6)
    total = torch.stack(list(terms.values())).sum()
    assert total.item() == pytest.approx(case["loss"], rel=1e-6)
    total.backward()
    for score, key in zip(scores, ("grad_u1", "grad_u2", "grad_uref"), strict=True):
        np.testing.assert_allclose(score.grad.numpy(), case[key], rtol=1e-6)


def test_third_stage_loss_and_gradients():
    case = GOLDEN["stage3_loss"]
    model = AFineModel(AFineConfig.tiny()).double()
    with torch.no_grad():
        for parameter, name in (
            (model.fidelity_map.centre, "fr_yita3"),
            (model.fidelity_map.width, "fr_yita4"),
            (model.naturalness_map.centre, "nr_yita3"),
            (model.naturalness_map.width, "nr_yita4"),
            (model.adapter.k, "k"),
        ):
            parameter.fill_(case["params"][name])
    reference = double(case["natref_raw"])
    d1, d2 = (model.combine(reference, double(case[f"nat{i}_raw"]), double(case[f"fid{i}_raw"])).afine for i in (1, 2))
    np.testing.assert_allclose(d1.detach().numpy(), case["afine1"], rtol=1e-6)
    np.testing.assert_allclose(d2.detach().numpy(), case["afine2"], rtol=1e-6)
    terms, _ = stage_terms(d1, d2, None, double(case["g12"]))
    assert tuple(terms) == TERMS["adapter"]
    assert terms["first_second"].item() == pytest.approx(case["loss"], rel=1e-6)
    terms["first_second"].backward()
    found = {
        "fr_yita3": model.fidelity_map.centre.grad,
        "fr_yita4": model.fidelity_map.width.grad,
        "nr_yita3": model.naturalness_map.centre.grad,
        "nr_yita4": model.naturalness_map.width.grad,
        "k": model.adapter.k.grad,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(case["grads"], rel=1e-6)


def test_the_loss_prefers_lower_scores_and_leaves_unknown_labels_out():
    better, worse = torch.tensor([-3.0]), torch.tensor([3.0])
    assert pair_loss(better, worse, torch.ones(1)) < 1e-3 < 0.9 < pair_loss(worse, better, torch.ones(1))
    u1, u2 = torch.randn(6, requires_grad=True), torch.randn(6)
    g = torch.tensor([1.0, 0.5, 0.0, 1.0, math.nan, math.nan])
    pair_loss(u1, u2, g).backward()
    assert pair_loss(u1, u2, g).item() == pytest.approx(pair_loss(u1[:4], u2[:4], g[:4]).item())
    assert bool((u1.grad[4:] == 0).all()) and bool((u1.grad[:4] != 0).all())
    terms, present = stage_terms(u1.detach(), u2, u2, g, torch.full((6,), math.nan), g)
    assert terms["first_reference"] == 0 and not present["first_reference"] and present["second_reference"]


def test_losses_check_by_finite_differences():
    g = double([1.0, 0.5, 0.0])
    u = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pair_loss(x[0], x[1], g), (u,))


def test_scores_far_apart_have_finite_gradients():
    u1 = torch.tensor([-6e4, 0.0], requires_grad=True)
    loss = pair_loss(u1, torch.tensor([0.0, -1e9]), torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss > 0.99 and bool(u1.grad.isfinite().all())


# --- schedule --------------------------------------------------------------------------------------------------------


def test_learning_rates():
    case = GOLDEN["lr_schedule"]
    rest = (case["periods"], case["restart_weights"], case["eta_min"])
    for step, rate in case["lr_by_completed_steps"].items():
        assert cosine_with_restarts(int(step), case["base_lr"], *rest) == pytest.approx(rate, rel=1e-9), step
        assert case["base_lr"] * restart_multiplier(case["base_lr"], *rest)(int(step)) == pytest.approx(rate, rel=1e-9)
    assert cosine_with_restarts(50_000, case["base_lr"], *rest) == case["eta_min"]


@pytest.mark.parametrize(
    "bad",
    [
        {"periods": []},
        {"restart_weights": [1.0]},
        {"periods": [0, 1]},
        {"restart_weights": [-1, 1]},
        {"step": -1},
        {"eta_min": 2.0},
    ],
)
def test_schedules_that_make_no_sense(bad):
    good = {"step": 1, "base_lr": 1.0, "periods": [2, 2], "restart_weights": [1.0, 0.5], "eta_min": 0.0}
    assert cosine_with_restarts(**good) == 0.5
    with pytest.raises(ValueError):
        cosine_with_restarts(**{**good, **bad})


# --- triplets from labels --------------------------------------------------------------------------------------------


def test_diffiqa_labels_become_the_official_triplets():
    case = GOLDEN["diffiqa_triplets"]
    found = set()
    for t in diffiqa_triplets(case["labels"], images="images"):
        names = [Path(name).name for name in t.images]
        found.add(",".join([*names, *(f"{value:g}" for value in (t.g12, t.g1r, t.g2r))]))
    assert found == set(case["triplets"]) and len(case["triplets"]) == len(found)


def test_majorities():
    assert majority_label(["Similar", "Negative", "Similar"]) == "Similar"
    assert majority_label(["Similar", "Negative", "Positive"]) is None
    for wrong in (["Similar"] * 2, ["Similar", "Similar", "similar"], ["Similar"] * 4):
        with pytest.raises(DataError):
            majority_label(wrong)


# --- accuracy --------------------------------------------------------------------------------------------------------


def benchmark_records():
    case = GOLDEN["pairwise_accuracy"]
    return [
        RatedImage(name, mos, dataset="SRIQA", reference=f"{scene}_Original.png")
        for scene, images in case["mos"].items()
        for name, mos in images.items()
    ]


def test_pairs_of_a_benchmark_and_their_accuracy():
    case = GOLDEN["pairwise_accuracy"]
    pairs = all_pairs(benchmark_records())
    u1, u2 = (
        [case["scores_lower_is_better"][name] for name in names]
        for names in zip(*((p.first, p.second) for p in pairs), strict=True)
    )
    g = [p.g12 for p in pairs]
    right = correct_pairs(u1, u2, g, delta=case["delta"])
    assert (len(pairs), int(right.sum())) == (case["pairs"], case["correct"])
    assert pair_accuracy(u1, u2, g, delta=case["delta"]) == case["accuracy"]
    own = [p for p in pairs if p.first == p.reference]
    assert all(p.g1r == 0.5 and p.g2r == 1 - p.g12 for p in own)
    assert {p.scene for p in pairs} == {f"{scene}_Original" for scene in case["mos"]}


def test_ties_are_wrong_unless_people_tie():
    u = np.array([1.0, 1.0, 1.0, 1.0])
    v = np.array([1.0, 1.0, 1.4, 1.4])
    assert correct_pairs(u, v, [1, 0.5, 0.5, 1]).tolist() == [False, True, False, True]
    assert correct_pairs(u, v, [1, 0.5, 0.5, 1], delta=0.5).tolist() == [False, True, True, False]


def test_accuracy_is_undefined_rather_than_wrong():
    assert math.isnan(pair_accuracy([], [], []))
    assert math.isnan(pair_accuracy([math.nan, 1.0], [2.0, 2.0], [1, 1]))
    for bad in (([1.0], [1.0, 2.0], [1]), ([1.0], [2.0], [0.7]), ([[1.0]], [[1.0]], [[1]])):
        with pytest.raises(ValueError):
            pair_accuracy(*bad)
    with pytest.raises(ValueError):
        pair_accuracy([1.0], [2.0], [1], delta=-1)


def test_intervals_resample_scenes():
    rng = np.random.default_rng(0)
    # Whole scenes are right or wrong: single pairs would give an interval that is far too narrow.
    scenes = np.repeat(np.arange(40), 50)
    right = (rng.random(40) < 0.8)[scenes]
    low, high = pair_accuracy_interval(right, scenes.tolist())
    alone = pair_accuracy_interval(right, list(range(len(right))))
    assert low < right.mean() < high
    assert high - low > 4 * (alone[1] - alone[0])
    assert pair_accuracy_interval(right, scenes.tolist()) == (low, high)
    assert all(map(math.isnan, pair_accuracy_interval(right[:50], scenes[:50].tolist())))


# --- opinions from pairs ---------------------------------------------------------------------------------------------


def test_opinions_from_pair_counts():
    case = GOLDEN["mos_from_pairs"]
    np.testing.assert_allclose(mos_from_counts(case["counts"]), case["mos"], atol=0.5)


def test_opinions_follow_the_order_of_the_votes():
    strength = np.array([2.0, 0.5, 1.2, -1.0])
    gaps = strength[:, None] - strength[None]
    counts = 40 / (1 + np.exp(-1.7 * gaps))
    np.fill_diagonal(counts, 0)
    mos = mos_from_counts(counts)
    assert np.argsort(mos).tolist() == np.argsort(strength).tolist()
    assert (mos.min(), mos.max()) == (0, 100)
    assert np.isnan(mos_from_counts(np.ones((3, 3)) - np.eye(3))).all(), "a tie of all has no scale"
    for bad in (np.ones((2, 3)), np.ones((2, 2)), [[0, -1], [1, 0]], [[0, np.inf], [1, 0]], [[0]]):
        with pytest.raises(DataError):
            mos_from_counts(bad)


# --- fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["naturalness", "final"])
def test_fits_of_the_bounded_curve(name):
    case = GOLDEN["logistic_fit"][name]
    fit = fit_bounded(case["raw"], case["target"], upper=case["upper"], lower=case["lower"])
    assert (fit.eta3, fit.eta4) == pytest.approx((case["eta3"], case["eta4_abs"]), rel=1e-3)


def test_final_scaling_is_the_released_one():
    case, config = GOLDEN["final_scaling"], AFineConfig()
    found = scaled_score(double(case["afine"]), config.scale_centre, config.scale_width)
    np.testing.assert_allclose(found.numpy(), case["afine_scaled"], rtol=1e-9, atol=1e-12)
    fit = BoundedFit(config.scale_centre, config.scale_width, 100.0, 0.0)
    np.testing.assert_allclose(fit(case["afine"]), case["afine_scaled"], rtol=1e-6, atol=1e-12)


def test_naturalness_is_fitted_to_opinions_turned_round():
    raw = np.linspace(-10, 30, 200)
    truth = BoundedFit(8.0, 5.0, 2.0, -2.0)
    mos = 50 - 10 * truth(raw)  # higher is better
    fit = fit_naturalness(raw, mos)
    assert fit.eta3 == pytest.approx(8.0, abs=0.5) and fit.eta4 == pytest.approx(5.0, rel=0.1)
    assert lower_is_better([1.0, 3.0, 2.0], low=-2, high=2).tolist() == [2.0, -2.0, 0.0]
    assert moments([1.0, 3.0]) == BoundedFit(2.0, 1.0, 2.0, -2.0)


def test_fits_refuse_what_cannot_be_fitted():
    for raw, target in (([1, 2], [1, 2]), ([1, 1, 1], [0, 1, 2]), ([1, 2, math.nan], [0, 1, 2]), ([1, 2, 3], [0, 1])):
        with pytest.raises(DataError):
            fit_bounded(raw, target, upper=2, lower=-2)
    for values in ([], [1.0, 1.0], [math.inf, 1.0]):
        with pytest.raises(DataError):
            lower_is_better(values, low=-2, high=2)
        with pytest.raises(DataError):
            moments(values)


def test_correlation_after_four_parameters_straightens_a_curve():
    x = np.linspace(-3, 3, 60)
    curved = 20 + 60 / (1 + np.exp(-4 * x))
    assert plcc_four_parameters(x, curved) == pytest.approx(1, abs=1e-6)
    assert plcc_four_parameters(-x, curved) == pytest.approx(1, abs=1e-6), "blind to direction"
    assert math.isnan(plcc_four_parameters(x[:4], curved[:4])) and math.isnan(plcc_four_parameters(x * 0, curved))
    noise = np.random.default_rng(0).normal(size=60)
    assert plcc_four_parameters(noise, curved) < 0.6


def test_all_pairs_are_all_pairs():
    pairs = all_pairs(benchmark_records())
    by_scene = {}
    for pair in pairs:
        by_scene.setdefault(pair.scene, []).append((pair.first, pair.second))
    for scene, found in by_scene.items():
        names = [r.image for r in benchmark_records() if r.reference.startswith(scene)]
        assert found == list(combinations(names, 2))
