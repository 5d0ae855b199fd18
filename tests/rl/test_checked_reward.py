"""Reward functions that misbehave, alone and in the trainer; batches without anything to learn from."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from thurl.errors import ThurlError
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.checked_reward import checked_reward, reward_problem


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0, None, math.nan], ""),
        ((1, True, np.float32(2)), ""),
        (None, "its `return` missing"),
        (3.0, "returned 3.0 instead of one reward per completion"),
        ([1.0, 2.0], "returned 2 rewards for 3 completions"),
        ([1.0, math.inf, -math.inf], "returned inf for completion 1, -inf for completion 2; a reward is a finite"),
        ([1.0, "good", [2]], "'good' for completion 1, [2] for completion 2"),
        ("abc", "'a' for completion 0"),
    ],
)
def test_rewards_are_judged(rewards, message):
    found = reward_problem(rewards, 3)
    assert message in found and bool(found) == bool(message)


def test_checked_functions_keep_their_names_and_models_are_left_alone():
    def good(completions, scale=1, **_):
        """Says so."""
        return torch.arange(len(completions)) * scale

    class Reward:
        def __call__(self, completions, **_):
            return [0.0] * len(completions)

    async def later(completions, **_):
        return [0.0] * len(completions)

    checked = checked_reward(good)
    assert checked.__name__ == "good" and checked(prompts=[], completions=["a", "b"], scale=2) == [0, 2]
    assert checked_reward(Reward()).__name__ == "Reward"
    model = torch.nn.Linear(1, 1)
    assert checked_reward("a/model") == "a/model" and checked_reward(model) is model and checked_reward(later) is later


def _trainer(tiny_folder, rated_images, tmp_path, reward, **fields):
    defaults = {
        "use_cpu": True,
        "bf16": False,
        "learning_rate": 5e-2,
        "beta": 0.0,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_steps": 1,
        "max_completion_length": 4,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    return RankGRPOTrainer(
        AutoModelForImageTextToText.from_pretrained(tiny_folder),
        reward_funcs=reward,
        args=RankGRPOConfig(str(tmp_path), **{**defaults, **fields}),
        train_dataset=build_rank_dataset(rated_images),
        processing_class=AutoProcessor.from_pretrained(tiny_folder),
        block_size=4,
    )


def _raises(completions, **_):
    raise RuntimeError("no GPU for the judge")


def _too_few(completions, **_):
    return [1.0] * (len(completions) - 1)


def _nothing(completions, **_):
    return None


def _infinite(completions, **_):
    return [math.inf] * len(completions)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (_raises, "`_raises` raised RuntimeError: no GPU for the judge"),
        (_too_few, "`_too_few` returned 15 rewards for 16"),
        (_nothing, "`_nothing` returned None"),
        (_infinite, "`_infinite` returned inf for completion 0"),
    ],
)
def test_a_failing_reward_stops_the_run_and_is_named(tiny_folder, rated_images, tmp_path, reward, message):
    trainer = _trainer(tiny_folder, rated_images, tmp_path, [reward])
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with pytest.raises(ThurlError, match=message):
        trainer.train()
    assert all(map(torch.equal, before, trainer.model.parameters())), "nothing was learned from it"


def _varied(completions, **_):
    return [float(index % 4) for index in range(len(completions))]


def _constant(completions, **_):
    return [1.0] * len(completions)


def _all_none(completions, **_):
    return [None] * len(completions)


def _all_nan(completions, **_):
    return [math.nan] * len(completions)


@pytest.mark.parametrize(
    ("reward", "fields", "moves"),
    [
        ([_varied], {}, True),
        ([_constant], {}, False),
        ([_all_none], {}, False),
        ([_all_nan], {}, False),
        ([_all_nan, _varied], {}, True),
        ([_varied], {"mask_truncated_completions": True}, False),
    ],
    ids=["varied", "zero_variance", "none", "nan", "nan_and_varied", "all_truncated"],
)
def test_without_a_signal_nothing_moves_and_nothing_is_nan(tiny_folder, rated_images, tmp_path, reward, fields, moves):
    trainer = _trainer(tiny_folder, rated_images, tmp_path, reward, **fields)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    entry = trainer.state.log_history[0]
    assert math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"])
    assert entry["completions/clipped_ratio"] == 1.0, "an untrained model does not end within four tokens"
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    same = all(map(torch.equal, before, trainer.model.parameters()))
    assert same != moves
