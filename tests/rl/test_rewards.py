import json
import math
from pathlib import Path

import pytest
import torch

from thurl.rl.parsing import parse_score
from thurl.rl.rewards import RankRewardOptions, rank_rewards, threshold_rewards, thurstone_fidelity_rewards


GOLDEN_DIR = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN_DIR / "vqr1_rewards.json").read_text())["reward_cases"]
SCOPES = json.loads((GOLDEN_DIR / "vqr1_scope_metrics.json").read_text())["scope_cases"]
NAN = math.nan


def _scores(completions, k, dtype=torch.float64):
    parsed = [parse_score(text, mode="official") for text in completions]
    return torch.tensor([NAN if score is None else score for score in parsed], dtype=dtype).view(-1, k)


def _expected(values, dtype=torch.float64):
    return torch.tensor([NAN if value is None else value for value in values], dtype=dtype)


def _random_set(b=12, k=5, seed=0, datasets=("a",)):
    generator = torch.Generator().manual_seed(seed)
    scores = 1 + 4 * torch.rand(b, k, dtype=torch.float64, generator=generator)
    mos = 100 * torch.rand(b, dtype=torch.float64, generator=generator)
    return scores, torch.ones(b, k, dtype=torch.bool), mos, [datasets[i % len(datasets)] for i in range(b)]


@pytest.mark.parametrize("case", [case for case in CASES if case.get("reference_f64")], ids=lambda case: case["name"])
def test_golden_official_rewards(case):
    k = case["num_generations"]
    for dtype, key, tolerance in (
        (torch.float64, "reference_f64", 1e-9),
        (torch.float32, "official_accuracy_reward_f32", 1e-4),
    ):
        scores = _scores(case["completions"], k, dtype)
        rewards = thurstone_fidelity_rewards(
            scores, ~torch.isnan(scores), torch.tensor(case["mos"]), case["dataset_name"], mode="official"
        )
        assert rewards.dtype == dtype
        torch.testing.assert_close(
            rewards.flatten(), _expected(case[key], dtype), atol=tolerance, rtol=0, equal_nan=True
        )


@pytest.mark.parametrize(
    "case",
    # The advantage of a single completion is undefined in the golden file too.
    [case for case in CASES if case.get("advantage_f64") and case["num_generations"] > 1],
    ids=lambda case: case["name"],
)
def test_golden_advantages(case):
    k = case["num_generations"]
    scores = _scores(case["completions"], k)
    accuracy = thurstone_fidelity_rewards(
        scores, ~torch.isnan(scores), torch.tensor(case["mos"]), case["dataset_name"], mode="official"
    )
    total = accuracy + torch.tensor(case["official_format_reward"], dtype=torch.float64).view(-1, k)
    advantage = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(
        advantage.flatten(), _expected(case["advantage_f64"]), atol=1e-9, rtol=0, equal_nan=True
    )


@pytest.mark.parametrize("index", range(len(SCOPES)))
@pytest.mark.parametrize("scope", ["device", "global"])
def test_golden_scopes(index, scope):
    case = SCOPES[index]
    scores = _scores(case["completions"], case["num_generations"])
    rewards = thurstone_fidelity_rewards(
        scores,
        ~torch.isnan(scores),
        torch.tensor(case["mos"], dtype=torch.float64),
        case["dataset_name"],
        device=case["rank_of_image"],
        mode="official",
        scope=scope,
    ).flatten()
    torch.testing.assert_close(rewards, _expected(case[f"{scope}_scope_f64"]), atol=1e-9, rtol=0)
    torch.testing.assert_close(rewards, _expected(case[f"{scope}_scope_official_f32"]), atol=1e-4, rtol=0)


# -- invariances (each holds for every option, so each is tried with several) ----------------------------------------

OPTIONS = [
    {},
    {"comparison": "scores"},
    {"variance": "fixed"},
    {"variance": "floored", "variance_value": 0.5},
    {"mode": "official"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_permuting_images_permutes_rewards(options):
    scores, valid, mos, dataset = _random_set(datasets=("a", "b"))
    order = torch.randperm(len(mos), generator=torch.Generator().manual_seed(1))
    rewards = thurstone_fidelity_rewards(scores, valid, mos, dataset, **options)
    permuted = thurstone_fidelity_rewards(
        scores[order], valid[order], mos[order], [dataset[i] for i in order], **options
    )
    torch.testing.assert_close(permuted, rewards[order], atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_monotone_map_of_mos_changes_no_bit(options):
    scores, valid, mos, dataset = _random_set()
    rewards = thurstone_fidelity_rewards(scores, valid, mos, dataset, **options)
    mapped = thurstone_fidelity_rewards(scores, valid, torch.exp(mos / 30) - 7, dataset, **options)
    assert torch.equal(rewards, mapped)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_second_dataset_changes_no_bit_of_the_first(options):
    scores, valid, mos, dataset = _random_set(b=8)
    more_scores, more_valid, more_mos, _ = _random_set(b=5, seed=3)
    alone = thurstone_fidelity_rewards(scores, valid, mos, dataset, **options)
    both = thurstone_fidelity_rewards(
        torch.cat([scores, more_scores]),
        torch.cat([valid, more_valid]),
        torch.cat([mos, more_mos]),
        dataset + ["other"] * 5,
        **options,
    )
    assert torch.equal(both[:8], alone)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_how_many_comparisons_are_made_at_a_time_changes_no_bit(options, monkeypatch):
    scores, valid, mos, dataset = _random_set(b=23, k=5, datasets=("a", "a", "b"))
    valid[3, 1] = valid[7, 1:] = False
    whole = rank_rewards(scores, valid, mos, dataset, **options)
    for chunk in (1, 300, 700):
        monkeypatch.setattr("thurl.rl.rewards.CHUNK", chunk)
        parts = rank_rewards(scores, valid, mos, dataset, **options)
        assert torch.equal(torch.nan_to_num(parts.rewards, nan=-1.0), torch.nan_to_num(whole.rewards, nan=-1.0))
        assert torch.equal(parts.opponents, whole.opponents)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shifting_all_scores_changes_nothing(options):
    scores, valid, mos, dataset = _random_set()
    options = {**options, "out_of_range": "official"}
    rewards = thurstone_fidelity_rewards(scores, valid, mos, dataset, **options)
    shifted = thurstone_fidelity_rewards(scores + 2.5, valid, mos, dataset, **options)
    torch.testing.assert_close(shifted, rewards, atol=1e-9, rtol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_negating_scores_and_mos_changes_nothing(options):
    scores, valid, mos, dataset = _random_set()
    options = {**options, "out_of_range": "official"}
    rewards = thurstone_fidelity_rewards(scores, valid, mos, dataset, **options)
    mirrored = thurstone_fidelity_rewards(-scores, valid, -mos, dataset, **options)
    torch.testing.assert_close(mirrored, rewards, atol=1e-12, rtol=0)


def test_right_order_earns_more_than_wrong_order():
    mos = torch.arange(6.0)
    good = (1 + mos[:, None] * 0.7 + torch.tensor([-0.1, 0.0, 0.1])).clamp(1, 5)
    valid = torch.ones_like(good, dtype=torch.bool)
    assert thurstone_fidelity_rewards(good, valid, mos).mean() > 0.99
    assert thurstone_fidelity_rewards(good.flip(0), valid, mos).mean() < 0.1


# -- options ---------------------------------------------------------------------------------------------------------


def test_comparison_with_each_score_equals_the_plain_loops():
    scores, valid, mos, _ = _random_set(b=4, k=3)
    rewards = thurstone_fidelity_rewards(scores, valid, mos, comparison="scores")
    var = scores.var(dim=1)
    for i in range(4):
        for k in range(3):
            total = 0.0
            for j in set(range(4)) - {i}:
                z = (scores[i, k] - scores[j]) / torch.sqrt(var[i] + var[j] + 1e-6)
                p = float(torch.special.ndtr(z).mean())
                g = float(mos[i] > mos[j])
                total += math.sqrt(p * g + 1e-6) + math.sqrt((1 - p) * (1 - g) + 1e-6)
            assert float(rewards[i, k]) == pytest.approx(total / 3, abs=1e-12)


def test_fixed_variance_is_thurstone_case_v():
    scores = torch.tensor([[4.0, 4.0], [3.0, 3.0]], dtype=torch.float64)
    rewards = thurstone_fidelity_rewards(scores, scores > 0, torch.tensor([1.0, 0.0]), variance="fixed")
    p = float(torch.special.ndtr(torch.tensor(1 / math.sqrt(2 + 1e-6), dtype=torch.float64)))
    assert float(rewards[0, 0]) == pytest.approx(math.sqrt(p + 1e-6) + 1e-3, abs=1e-12)


def test_variance_floor_keeps_certain_groups_apart():
    scores = torch.tensor([[4.0, 4.0, 4.01], [3.0, 3.01, 3.0]], dtype=torch.float64)
    mos = torch.tensor([1.0, 0.0])
    sharp = thurstone_fidelity_rewards(scores, scores > 0, mos)
    soft = thurstone_fidelity_rewards(scores, scores > 0, mos, variance="floored", variance_value=0.25)
    assert sharp.std(dim=1).max() < 1e-12 < soft.std(dim=1).min()


def test_soft_targets_from_opinion_spread():
    scores, valid, mos, _ = _random_set(b=2, k=4)
    std = torch.tensor([10.0, 20.0], dtype=torch.float64)
    rewards = rank_rewards(scores, valid, mos, mos_std=std, targets="soft").rewards
    g = float(torch.special.ndtr((mos[0] - mos[1]) / math.sqrt(500)))
    p = torch.special.ndtr((scores[0] - scores[1].mean()) / torch.sqrt(scores[0].var() + scores[1].var() + 1e-6))
    expected = torch.sqrt(p * g + 1e-6) + torch.sqrt((1 - p) * (1 - g) + 1e-6)
    torch.testing.assert_close(rewards[0], expected, atol=1e-12, rtol=0)
    certain = thurstone_fidelity_rewards(scores, valid, mos, mos_std=torch.zeros(2), targets="soft")
    torch.testing.assert_close(certain, thurstone_fidelity_rewards(scores, valid, mos), atol=1e-12, rtol=0)


def test_tie_margin():
    scores, valid, _, _ = _random_set(b=2)
    near, far = torch.tensor([50.0, 51.0]), torch.tensor([50.0, 50.0])
    tied = thurstone_fidelity_rewards(scores, valid, near, tie_margin=1.0)
    assert torch.equal(tied, thurstone_fidelity_rewards(scores, valid, far))
    assert not torch.equal(tied, thurstone_fidelity_rewards(scores, valid, near, tie_margin=0.5))


def test_out_of_range_policies():
    scores = torch.tensor([[4.0, 4.2, 100.0], [2.0, 2.2, 2.4]], dtype=torch.float64)
    mos, valid = torch.tensor([1.0, 0.0]), torch.ones(2, 3, dtype=torch.bool)
    invalid = rank_rewards(scores, valid, mos)
    assert invalid.valid.tolist() == [[True, True, False], [True, True, True]]
    assert float(invalid.rewards[0, 2]) == 0.0 and float(invalid.mean[0]) == pytest.approx(4.1)
    clipped = rank_rewards(scores, valid, mos, out_of_range="clip")
    assert float(clipped.mean[0]) == pytest.approx((4 + 4.2 + 5) / 3)
    used = rank_rewards(scores, valid, mos, out_of_range="official")
    assert float(used.mean[0]) == pytest.approx(108.2 / 3)


# -- failures --------------------------------------------------------------------------------------------------------


def test_a_failed_completion_earns_the_minimum_and_touches_nobody_else():
    scores, valid, mos, _ = _random_set(b=5, k=4)
    valid[2, 1] = False
    with_failure = rank_rewards(scores, valid, mos)
    poisoned = scores.clone()
    poisoned[2, 1] = NAN
    assert torch.equal(rank_rewards(poisoned, valid, mos).rewards, with_failure.rewards)
    assert float(with_failure.rewards[2, 1]) == 0.0
    assert float(with_failure.mean[2]) == pytest.approx(float(scores[2][valid[2]].mean()))
    assert bool((with_failure.rewards[valid] > 0).all())
    none = thurstone_fidelity_rewards(scores, valid, mos, failed="none")
    assert math.isnan(none[2, 1]) and int(torch.isnan(none).sum()) == 1


def test_an_image_with_one_valid_score_is_no_opponent():
    scores, valid, mos, _ = _random_set(b=4, k=3)
    valid[0, 1:] = False
    result = rank_rewards(scores, valid, mos)
    assert math.isnan(result.rewards[0, 0]) and result.rewards[0, 1:].tolist() == [0.0, 0.0]
    assert result.opponents[1:].tolist() == [2, 2, 2]
    without = thurstone_fidelity_rewards(scores[1:], valid[1:], mos[1:])
    torch.testing.assert_close(result.rewards[1:], without, atol=1e-15, rtol=0)


@pytest.mark.parametrize(("b", "k"), [(1, 4), (3, 1)])
def test_no_partner_or_no_variance_is_nan(b, k):
    scores, valid, mos, _ = _random_set(b=b, k=k)
    assert bool(torch.isnan(thurstone_fidelity_rewards(scores, valid, mos)).all())


def test_single_completion_with_fixed_variance_is_defined():
    scores, valid, mos, _ = _random_set(b=3, k=1)
    assert bool(torch.isfinite(thurstone_fidelity_rewards(scores, valid, mos, variance="fixed")).all())


def test_all_failed():
    scores, valid, mos, _ = _random_set(b=3, k=2)
    assert thurstone_fidelity_rewards(scores, ~valid, mos).tolist() == [[0.0, 0.0]] * 3
    assert bool(torch.isnan(thurstone_fidelity_rewards(scores, ~valid, mos, failed="none")).all())


def test_copies_of_one_image_are_not_compared():
    scores, valid, mos, _ = _random_set(b=4, k=3)
    doubled = [torch.cat([tensor, tensor[:1]]) for tensor in (scores, valid, mos)]
    result = rank_rewards(*doubled, image_id=["a", "b", "c", "d", "a"])
    assert result.opponents.tolist() == [3, 4, 4, 4, 3]
    torch.testing.assert_close(result.rewards[4], result.rewards[0], atol=1e-15, rtol=0)


def test_infinite_scores():
    scores, valid, mos, _ = _random_set(b=3, k=3)
    scores[0, 0] = math.inf
    ours = rank_rewards(scores, valid, mos, out_of_range="official")
    assert not bool(ours.valid[0, 0]) and float(ours.rewards[0, 0]) == 0.0
    # The official exception handler: every comparison with an undefined variance counts as p = 0.5.
    official = thurstone_fidelity_rewards(scores, valid, mos, mode="official")
    assert official[0].tolist() == pytest.approx([0.7081075] * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mos": torch.tensor([1.0, NAN, 2.0])}, r"not finite at position \[1\]"),
        ({"mos": torch.tensor([1.0, 2.0])}, r"`mos` has shape \(2,\)"),
        ({"valid": torch.ones(3, 2, dtype=torch.bool)}, "`valid` has shape"),
        ({"dataset": ["a"]}, "`dataset` has 1 entries"),
        ({"scope": "device"}, "give `device`"),
        ({"targets": "soft"}, "needs `mos_std`"),
        ({"targets": "soft", "mos_std": torch.tensor([1.0, -1.0, 1.0])}, r"position \[1\] is negative"),
        ({"comparison": "median"}, "'median'.*mean, scores"),
        ({"variance": "fixed", "variance_value": 0.0}, "must be positive"),
        ({"tie_margin": -1.0}, "0 or more"),
        ({"score_range": (5, 1)}, "below the second"),
        ({"colour": 1}, "Unknown option colour"),
    ],
)
def test_bad_input(change, message):
    scores, valid, mos, _ = _random_set(b=3, k=3)
    arguments = {"scores": scores, "valid": valid, "mos": mos, **change}
    with pytest.raises(ValueError, match=message):
        thurstone_fidelity_rewards(**arguments)


def test_options_object_and_overrides_agree():
    scores, valid, mos, _ = _random_set()
    options = RankRewardOptions(comparison="scores")
    assert torch.equal(
        thurstone_fidelity_rewards(scores, valid, mos, options=options),
        thurstone_fidelity_rewards(scores, valid, mos, comparison="scores"),
    )


def test_threshold_rewards():
    scores = torch.tensor([[3.0, 3.35, 3.3499, NAN]], dtype=torch.float64)
    rewards = threshold_rewards(scores, ~torch.isnan(scores), torch.tensor([3.0]), threshold=0.35)
    assert rewards.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    with pytest.raises(ValueError, match="must be positive"):
        threshold_rewards(scores, scores > 0, torch.tensor([3.0]), threshold=0)


def test_policy_gradient_learns_to_rank_from_the_reward_alone():
    """Spec, section 9.7. Bar set beforehand: SRCC > 0.95; the control's policy must not spread its images."""
    learnt = _bandit(seed=11, shuffled=False)[0]
    control_spread = _bandit(seed=11, shuffled=True)[1]
    assert learnt > 0.95
    assert control_spread < 0.1


def test_a_policy_that_often_fails_to_answer_learns_to_answer():
    """Spec, section 9.8. Bar set beforehand: from half of the answers unreadable to a parse rate above 0.95, and
    unreadable answers never earn more than readable ones."""
    history = _bandit(seed=12, shuffled=False, failing=True)[2]
    assert history[0]["parse_rate"] == pytest.approx(0.5, abs=0.2)
    assert history[-1]["parse_rate"] > 0.95
    for step in history:
        if step["failed"] is not None:
            assert step["failed"] <= step["answered"]


def _bandit(seed: int, shuffled: bool, failing: bool = False, steps: int = 300, b: int = 16, k: int = 6):
    """A categorical policy over 41 scores from one feature, trained with the real reward; no language model.

    With `failing`, a 42nd action is an unreadable answer, as likely at the start as all scores together.
    Returns SRCC, standard deviation of the means over pictures, and per step what was answered and earned.
    """
    import numpy as np

    from thurl.metrics import srcc

    generator = torch.Generator().manual_seed(seed)
    values = torch.linspace(1, 5, 41)
    hidden_w = torch.randn(1, 32, generator=generator)
    actions = 42 if failing else 41
    bias = torch.zeros(actions)
    bias[41:] = math.log(41)
    parameters = [hidden_w, torch.zeros(32), torch.randn(32, actions, generator=generator) * 0.1, bias]
    for parameter in parameters:
        parameter.requires_grad_()

    def policy(x):
        return torch.tanh(x[:, None] @ parameters[0] + parameters[1]) @ parameters[2] + parameters[3]

    history = []
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    for _ in range(steps):
        x = torch.rand(b, generator=generator) * 2 - 1
        mos = x[torch.randperm(b, generator=generator)] if shuffled else x
        log_p = torch.log_softmax(policy(x), dim=1)
        picks = torch.multinomial(log_p.exp(), k, replacement=True, generator=generator)
        valid = picks < 41
        rewards = thurstone_fidelity_rewards(values[picks.clamp(max=40)], valid, mos)
        history.append(
            {
                "parse_rate": float(valid.float().mean()),
                "failed": float(rewards[~valid].mean()) if not valid.all() else None,
                "answered": float(rewards[valid].nanmean()),
            }
        )
        rewards = torch.nan_to_num(rewards)  # as TRL's sum over rewards does
        advantage = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        loss = -(log_p.gather(1, picks) * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x = torch.linspace(-1, 1, 64)
        p = torch.softmax(policy(x), dim=1)[:, :41]
        mean = ((p @ values) / p.sum(dim=1)).numpy()
    return srcc(mean, x.numpy()), float(np.std(mean)), history
