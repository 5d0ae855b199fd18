"""Schedule, masks and groups: golden values and the properties the method rests on."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from thurl.coto.config import CoToConfig
from thurl.coto.groups import group_modules, initial_by_group, layer_key, plain_path, select, tower_of
from thurl.coto.masks import MAX_ATTEMPTS, draw_mask, expected_marginal, uniform
from thurl.coto.schedule import activation_probability, mean_activation_probability, stage1_end
from thurl.errors import UsageError


GOLDEN = Path(__file__).parents[1] / "golden"
SCHEDULES = json.loads((GOLDEN / "coto_schedule.json").read_text())["cases"]
MASKS = json.loads((GOLDEN / "coto_masks.json").read_text())


# --- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: f"{case['initial_p']}-{case['total_steps']}")
def test_golden_schedule(case):
    ours = [
        activation_probability(
            step, case["total_steps"], initial_p=case["initial_p"], final_p=case["final_p"], ratio=case["ratio"]
        )
        for step in case["steps"]
    ]
    np.testing.assert_allclose(ours, case["p"], rtol=0, atol=1e-12)


def test_the_rise_ends_where_it_should_in_floating_point():
    assert math.ceil(0.07 * 100) == 8  # why there is a rounding
    assert stage1_end(100, 0.07) == 7
    assert stage1_end(100, 0.75) == 75 and stage1_end(37, 0.75) == 28 and stage1_end(10, 0.0) == 0


@pytest.mark.parametrize("schedule", ["linear", "sine", "exponential"])
def test_every_rise_starts_at_p0_ends_at_p1_and_never_falls(schedule):
    p = [activation_probability(t, 80, initial_p=0.2, final_p=0.9, schedule=schedule) for t in range(100)]
    assert p[0] == pytest.approx(0.2) and p[59] < 0.9 and p[60] == p[99] == 0.9
    assert all(b >= a for a, b in zip(p, p[1:], strict=False))


def test_shapes_are_ordered_and_constant_is_a_step():
    sine, linear, exponential, constant = (
        activation_probability(30, 80, initial_p=0.0, schedule=s)
        for s in ("sine", "linear", "exponential", "constant")
    )
    assert sine > linear == 0.5 > exponential > constant == 0.0
    assert sine == pytest.approx(math.sin(math.pi / 4))
    assert exponential == pytest.approx((math.exp(0.5) - 1) / (math.e - 1))
    assert activation_probability(60, 80, initial_p=0.3, schedule="constant") == 1.0


def test_ratio_zero_is_ordinary_training():
    assert {activation_probability(t, 5, ratio=0.0) for t in range(9)} == {1.0}


def test_mean_probability():
    assert mean_activation_probability(8000, initial_p=0.0) == pytest.approx(0.625, abs=1e-4)
    assert mean_activation_probability(8000) == pytest.approx(0.6625, abs=1e-4)


@pytest.mark.parametrize(("step", "total", "schedule"), [(-1, 5, "linear"), (0, 0, "linear"), (0, 5, "cubic")])
def test_wrong_arguments_of_the_schedule_are_refused(step, total, schedule):
    with pytest.raises(UsageError):
        activation_probability(step, total, schedule=schedule)


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MASKS["cases"], ids=lambda case: case["policy"])
def test_golden_masks(case):
    for row in case["rows"]:
        p = activation_probability(
            row["step"], case["total_steps"], initial_p=case["initial_p"], final_p=case["final_p"], ratio=case["ratio"]
        )
        mask, attempt = draw_mask(p, case["groups"], seed=case["seed"], step=row["step"], policy=case["policy"])
        assert "".join("01"[on] for on in mask) == row["mask"], row
        assert attempt == row["attempt"], row


@pytest.mark.parametrize("case", MASKS["statistics"], ids=lambda case: f"{case['p']}-{case['groups']}")
def test_golden_statistics(case):
    p, groups, steps = case["p"], case["groups"], case["n_steps"]
    masks = np.array([draw_mask(p, groups, seed=case["seed"], step=step)[0] for step in range(steps)])
    np.testing.assert_allclose(masks.mean(axis=0), case["per_group"], atol=1e-12)
    expected = expected_marginal(p, groups)
    assert expected == pytest.approx(case["expected_marginal"], abs=1e-12)
    assert abs(masks.mean() - expected) <= 4 * math.sqrt(p * (1 - p) / (steps * groups))
    assert masks.sum(axis=1).min() == case["min_active"] >= 1


def test_force_has_another_marginal_and_plain_draws_have_p():
    """The control of the statistics above: the formula tells the policies apart."""
    plain, forced = (
        np.array([draw_mask(0.1, 4, seed=3, step=s, policy=policy)[0] for s in range(2000)])
        for policy in ("allow_empty", "force")
    )
    assert abs(plain.mean() - 0.1) < 0.015 and (plain.sum(axis=1) == 0).any()
    assert forced.sum(axis=1).min() == 1
    assert abs(forced.mean() - (0.1 + 0.9**4 / 4)) < 0.015 and abs(forced.mean() - expected_marginal(0.1, 4)) > 0.02


def test_uniform_numbers():
    values = np.array([uniform(5, step, 0, group) for step in range(200) for group in range(10)])
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(values))
    assert len(set(values)) == len(values)
    assert all(float(value * 2**53).is_integer() for value in values)


def test_p_zero_ends_and_forces_the_smallest():
    mask, attempt = draw_mask(0.0, 5, seed=1, step=2)
    first = [uniform(1, 2, 0, group) for group in range(5)]
    assert attempt == -1 and sum(mask) == 1 and mask[int(np.argmin(first))]
    assert MAX_ATTEMPTS == 64
    assert draw_mask(0.0, 5, policy="allow_empty")[0] == (False,) * 5


def test_p_one_is_everything():
    assert all(draw_mask(1.0, 7, step=s) == ((True,) * 7, 0) for s in range(50))


@pytest.mark.parametrize("policy", ["resample", "force"])
def test_every_tower_has_an_active_group(policy):
    towers = ["vision", "vision", None, "language", "language", "language"]
    with_rule = [draw_mask(0.1, 6, step=s, policy=policy, towers=towers)[0] for s in range(300)]
    assert all(any(m[:2]) and any(m[3:]) for m in with_rule)
    assert not all(m[2] for m in with_rule)  # a projector is no tower
    without = [draw_mask(0.1, 6, step=s, policy=policy)[0] for s in range(300)]
    assert any(not any(m[:2]) for m in without), "without the rule a tower may be off"


def test_groups_with_probabilities_of_their_own():
    p = [0.9, 0.5, 0.1]
    masks = np.array([draw_mask(p, 3, step=step, policy="allow_empty")[0] for step in range(3000)])
    np.testing.assert_allclose(masks.mean(axis=0), p, atol=4 * 0.5 / math.sqrt(3000))
    for policy in ("resample", "force", "allow_empty"):
        for step in range(50):
            assert draw_mask([0.2] * 3, 3, step=step, policy=policy) == draw_mask(0.2, 3, step=step, policy=policy)
    # What is forced on is the group nearest to its own probability, not the one with the smallest number.
    first = [uniform(0, 4, 0, group) for group in range(2)]
    near = first.index(max(first))
    p = [0.0, 0.0]
    p[near] = first[near] - 1e-6
    assert draw_mask(p, 2, step=4, policy="force")[0][near] and not draw_mask(0.0, 2, step=4, policy="force")[0][near]


def test_wrong_arguments_of_a_mask_are_refused():
    with pytest.raises(UsageError, match="2 probabilities for 3 groups"):
        draw_mask([0.5, 0.5], 3)
    for problem in ({"groups": 0}, {"groups": 2, "policy": "never"}, {"groups": 2, "towers": ["a"]},
                    {"groups": 1, "towers": ["a"], "policy": "allow_empty"}):  # fmt: skip
        with pytest.raises(UsageError):
            draw_mask(0.5, **problem)


# --- groups ----------------------------------------------------------------------------------------------------------

PATHS = [
    "model.visual.blocks.0.attn.qkv",
    "model.visual.blocks.0.mlp.up_proj",
    "model.visual.blocks.1.attn.qkv",
    "model.visual.merger.mlp.0",
    "model.language_model.embed_tokens",
    "model.language_model.layers.0.self_attn.q_proj",
    "model.language_model.layers.0.self_attn.v_proj",
    "lm_head",
]


def test_layers_group_by_the_last_number_of_the_path():
    groups = group_modules(PATHS, "layer")
    assert groups == {
        "model.visual.blocks.0": [0, 1],
        "model.visual.blocks.1": [2],
        "model.visual.merger.mlp.0": [3],
        "model.language_model.embed_tokens": [4],
        "model.language_model.layers.0": [5, 6],
        "lm_head": [7],
    }
    assert [tower_of(key) for key in groups] == ["vision", "vision", None, "language", "language", "language"]
    assert layer_key("a.10.b.2.c") == "a.10.b.2"


def test_other_groupings():
    assert list(group_modules(PATHS, "module")) == PATHS
    assert list(group_modules(PATHS, 3).values()) == [[0, 1, 2], [3, 4, 5], [6, 7]]  # the last chunk is short
    kinds = group_modules(PATHS, lambda path: path.rsplit(".", 1)[-1])
    assert kinds["qkv"] == [0, 2] and list(kinds)[0] == "qkv"
    for wrong in ("block", lambda path: 3):
        with pytest.raises(UsageError, match="group_by|key"):
            group_modules(PATHS, wrong)


def test_nested_wrappers_of_one_module_share_a_group():
    paths = [plain_path(p) for p in ("model.layers.0.mlp.experts", "model.layers.0.mlp.experts.base_layer", "x.y")]
    assert list(group_modules(paths, "module").values()) == [[0, 1], [2]]
    assert list(group_modules(paths, 1).values()) == [[0, 1], [2]]


@pytest.mark.parametrize(
    "path",
    ["base_model.model.model.layers.0.q", "module.base_model.model.model.layers.0.q", "model.layers.0.q",
     "_orig_mod.base_model.model.model.layers.0._orig_mod.q", "base_model.model.model.layers.0.q.base_layer"],
)  # fmt: skip
def test_wrappers_do_not_show_in_paths(path):
    assert plain_path(path) == "model.layers.0.q"


def test_include_and_exclude():
    assert select(PATHS, None, None) == list(range(8))
    assert select(PATHS, ["visual"], ["merger"]) == [0, 1, 2]
    assert select(PATHS, None, [r"layers\.0\."]) == [0, 1, 2, 3, 4, 7]


def test_initial_p_by_layer():
    groups = {key: [PATHS[i] for i in rows] for key, rows in group_modules(PATHS, "layer").items()}
    assert initial_by_group(groups, 0.3) == (0.3,) * 6
    by = {r"blocks\.0\.": 0.5, "visual": 0.25, "v_proj": 0.2, "": 0.1}
    assert initial_by_group(groups, by) == (0.5, 0.25, 0.25, 0.1, 0.2, 0.1)
    with pytest.raises(UsageError, match="embed_tokens.*lm_head.*'visual', 'layers'"):
        initial_by_group(groups, {"visual": 0.5, "layers": 0.1})


# --- settings --------------------------------------------------------------------------------------------------------


def test_wrong_settings_are_refused_all_at_once():
    with pytest.raises(UsageError) as error:
        CoToConfig(initial_p=-0.1, final_p=float("nan"), stage1_ratio=2, schedule="x", group_by=0, hold=0,
                   min_active="x", seed=0.5, include=("(",), adapter_name="")  # fmt: skip
    assert len(error.value.problems) == 10
    with pytest.raises(UsageError, match="allow_empty"):
        CoToConfig(min_active="allow_empty", min_active_per_tower=True)


def test_an_initial_p_by_layer_is_checked_and_kept():
    with pytest.raises(UsageError) as error:
        CoToConfig(initial_p={"(": 0.1, "layers": 1.5})
    assert len(error.value.problems) == 2 and "initial_p['layers']` is 1.5" in str(error.value)
    with pytest.raises(UsageError, match="empty mapping"):
        CoToConfig(initial_p={})
    given = {r"layers\.0\.": 0.5, "": 0.0}
    config = CoToConfig(initial_p=given)
    given[""] = 7.0
    assert config.initial_p[""] == 0.0
    assert CoToConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_settings_travel_as_json():
    config = CoToConfig(initial_p=0.2, include=["layers"], group_by="module", hold=3)
    assert CoToConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert CoToConfig(group_by=layer_key).to_dict()["group_by"] == "function thurl.coto.groups.layer_key"
    with pytest.raises(UsageError, match="p_zero"):
        CoToConfig.from_dict({"p_zero": 0.1})
