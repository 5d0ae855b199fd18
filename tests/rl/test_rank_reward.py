import math

import pytest
import torch

from thurl.rl.rank_reward import FormatReward, GatheredScores, RankReward, ThresholdReward, completion_text
from thurl.rl.rewards import thurstone_fidelity_rewards


def _say(score):
    return [{"role": "assistant", "content": f"<think>x</think><answer>{score}</answer>"}]


def _batch(b=6, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = (1 + 4 * torch.rand(b, k, generator=generator, dtype=torch.float64)).mul(100).round().div(100)
    columns = {
        "completions": [_say(f"{score:.2f}") for score in scores.flatten().tolist()],
        "mos": [float(i // k) for i in range(b * k)],
        "dataset": ["a" if i // k < b // 2 else "b" for i in range(b * k)],
        "image_id": [f"image{i // k}" for i in range(b * k)],
    }
    return scores, columns


def test_equals_the_pure_function():
    scores, columns = _batch()
    rewards = RankReward()(**columns)
    expected = thurstone_fidelity_rewards(
        scores, scores > 0, torch.arange(6.0), ["a", "a", "a", "b", "b", "b"]
    ).flatten()
    assert rewards == pytest.approx(expected.tolist(), abs=1e-12)


def test_works_as_a_plain_trl_reward_with_only_a_mos_column():
    scores, columns = _batch()
    rewards = RankReward(num_generations=4)(
        prompts=["q"] * 24,
        completions=[completion[0]["content"] for completion in columns["completions"]],
        completion_ids=[[1]] * 24,
        mos=columns["mos"],
        trainer_state=None,
    )
    assert rewards == pytest.approx(
        thurstone_fidelity_rewards(scores, scores > 0, torch.arange(6.0)).flatten().tolist(), abs=1e-12
    )
    with pytest.raises(ValueError, match="pass it to `RankReward`"):
        RankReward()(completions=columns["completions"], mos=columns["mos"])


def test_group_size_follows_evaluation():
    """TRL may evaluate with another number of completions than it trains with."""
    _, columns = _batch(k=6)
    assert RankReward(num_generations=4)(**columns) == RankReward(num_generations=6)(**columns)


def test_failures_earn_the_minimum_and_are_counted():
    _, columns = _batch()
    columns["completions"][5] = [{"role": "assistant", "content": "I see 2 dogs"}]
    logged, extra = {}, {}
    rewards = RankReward()(**columns, log_metric=logged.__setitem__, log_extra=extra.__setitem__)
    assert rewards[5] == 0.0 and min(r for i, r in enumerate(rewards) if i != 5) > 0
    assert logged["rank/parse_rate"] == pytest.approx(23 / 24)
    assert extra["score"][5] is None and len(extra["score"]) == 24
    assert extra["opponents"] == [2] * 24
    # mode official reads the 2 out of the dogs
    official = RankReward(mode="official")(**columns)
    assert official[5] > 0


def test_metrics():
    scores, columns = _batch()
    logged = {}
    RankReward()(**columns, log_metric=logged.__setitem__)
    assert logged["rank/score_mean"] == pytest.approx(float(scores.mean()))
    assert logged["rank/score_std"] == pytest.approx(float(scores.std(dim=1).mean()))
    assert logged["rank/no_partner"] == 0.0
    assert -1 <= logged["rank/batch_srcc"] <= 1
    ordered = {**columns, "completions": [_say(1 + 0.5 * mos) for mos in columns["mos"]]}
    RankReward()(**ordered, log_metric=logged.__setitem__)
    assert logged["rank/batch_srcc"] == pytest.approx(1.0)


def test_undefined_metrics_are_left_out_and_rewards_none():
    _, columns = _batch(b=1)
    logged = {}
    rewards = RankReward()(**columns, log_metric=logged.__setitem__)
    assert rewards == [None] * 4
    assert logged["rank/no_partner"] == 1.0 and "rank/batch_srcc" not in logged
    failed = RankReward()(**{**columns, "completions": [_say("bad")] * 4}, log_metric=logged.__setitem__)
    assert failed == [0.0] * 4


def test_device_scope_by_process_and_by_block():
    scores, columns = _batch()
    rows = list(
        zip(scores.flatten().tolist(), columns["mos"], ["a"] * 24, columns["image_id"], [None] * 24, strict=True)
    )
    by_process = GatheredScores.from_rows([rows[:12], rows[12:]])
    by_block = GatheredScores.from_rows([rows], block_size=3)
    options = RankReward(scope="device").options
    expected = by_process.rewards(options).rewards
    assert torch.equal(by_block.rewards(options).rewards, expected)
    alone = GatheredScores.from_rows([rows[:12]]).rewards(options).rewards
    assert torch.equal(expected[:3], alone)


def test_groups_split_over_processes():
    scores, columns = _batch()
    rows = list(
        zip(
            scores.flatten().tolist(),
            columns["mos"],
            columns["dataset"],
            columns["image_id"],
            [None] * 24,
            strict=True,
        )
    )
    options = RankReward().options
    whole = GatheredScores.from_rows([rows]).rewards(options).rewards
    split = GatheredScores.from_rows([rows[:10], rows[10:13], [], rows[13:]]).rewards(options).rewards
    assert torch.equal(whole, split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mos": [None] * 24}, r"'image0': None"),
        ({"mos": ["good"] * 24}, r"'image0': 'good'"),
        ({"mos": [math.nan] * 24}, "must be a finite number"),
        ({"image_id": [str(i) for i in range(24)]}, "at least 2"),
    ],
)
def test_bad_columns(change, message):
    _, columns = _batch()
    with pytest.raises(ValueError, match=message):
        RankReward()(**{**columns, **change})


def test_soft_targets_name_the_images_without_spread():
    _, columns = _batch()
    with pytest.raises(ValueError, match="missing for image0, image1"):
        RankReward(targets="soft")(**columns)
    assert len(RankReward(targets="soft")(**columns, mos_std=[1.0] * 24)) == 24


def test_constructor_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="at least 2 completions"):
        RankReward(num_generations=1)
    with pytest.raises(ValueError, match="'strict' or 'official'"):
        RankReward(parse_mode="lenient")
    with pytest.raises(ValueError, match="either `options` or single options"):
        RankReward(options=RankReward().options, scope="device")
    with pytest.raises(ValueError, match="'strict' or 'official'"):
        FormatReward("loose")


def test_format_and_threshold_rewards():
    completions = [_say(3), _say(3.5), "nothing"]
    assert FormatReward()(completions=completions) == [1.0, 1.0, 0.0]
    logged = {}
    rewards = ThresholdReward()(completions=completions, mos=[3.0, 3.0, 3.0], log_metric=logged.__setitem__)
    assert rewards == [1.0, 0.0, 0.0] and logged["rank/parse_rate"] == pytest.approx(2 / 3)


def test_names_for_the_log():
    assert [RankReward().__name__, FormatReward().__name__, ThresholdReward().__name__] == [
        "thurstone_fidelity",
        "format",
        "threshold",
    ]


def test_completion_text_forms():
    assert completion_text("a") == "a"
    assert completion_text([{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]) == "a"
    assert completion_text([{"role": "assistant", "content": None}]) == ""
