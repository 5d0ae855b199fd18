"""Generation with vLLM inside the training process, on the CPU: `make test-vllm`.

The numbers come from real GRPO runs of a tiny Qwen2.5-VL in float32 (tests/rl/vllm_runs.py), all in one process, which
spends most of its time on importing vLLM.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thurl.rl.parsing import format_reward, parse_score
from thurl.rl.rollouts import vision_token_ids
from thurl.rl.tiny import build_tiny_qwen2_5_vl


pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

MOST = 1e-3  # nats; measured 5e-7
ADAPTER = {"lora": True, "rate": 2e-2}
RUNS = {
    "full": {},
    "unsynchronised": {"nosync": True},
    "merged": ADAPTER | {"rollouts": {"adapter_sync": "merged"}},
    "adapter": ADAPTER | {"rollouts": {"adapter_sync": "adapter"}},
    "adapter_unsynchronised": ADAPTER | {"rollouts": {"adapter_sync": "adapter"}, "nosync": True},
    "pairs": {"pairs": True},
    "adapter_pairs": ADAPTER | {"rollouts": {"adapter_sync": "adapter"}, "pairs": True},
    "corrupted": {"uncollapsed": True, "guard": True},
    "same_pictures": {"count": 4, "rate": 2e-2},
    "kept_pictures": {"count": 4, "rate": 2e-2, "keep_pictures": True},
    "strict": {"rollouts": {"answer_format": "strict"}, "fields": {"max_completion_length": 48, "max_steps": 2}},
    "stop": {"rollouts": {"stop": ["a"]}, "fields": {"max_steps": 2}},
    "eager_vision": {"model": "eager", "fields": {"max_steps": 1}},
    "mass": {"model": "plain", "case": "forbidden_mass"},
    "resume": {"case": "resume"},
}


def _with_vision_logit(model, ids, logit):
    """Make the forbidden tokens' logits equal to `logit`: one hidden unit is 1 everywhere; only their rows read it."""
    text = model.model.language_model
    with torch.no_grad():
        text.embed_tokens.weight[:, 0] = 1
        merger = model.model.visual.merger.mlp[-1]
        merger.weight[0] = 0
        merger.bias[0] = 1
        for layer in text.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[ids] = 0
        model.lm_head.weight[ids, 0] = logit


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name of a run -> what it saw."""
    place = tmp_path_factory.mktemp("vllm")
    # "quiet": no probability on the vision tokens, as in trained models; "eager": nearly all of it.
    for name, logit in {"quiet": -40.0, "eager": 12.0, "plain": None}.items():
        model, processor = build_tiny_qwen2_5_vl(0)
        if logit is not None:
            _with_vision_logit(model, vision_token_ids(processor.tokenizer), logit)
        model.save_pretrained(place / name)
        processor.save_pretrained(place / name)
    (place / "pictures").mkdir()
    settings = [
        {
            "case": "train",
            "output": str(place / name),
            "pictures": str(place / "pictures"),
            **run,
            "folder": str(place / run.get("model", "quiet")),
        }
        for name, run in ((f"run_{name}", run) for name, run in RUNS.items())
    ]
    script = Path(__file__).with_name("vllm_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: json.loads((place / f"run_{name}" / "result.json").read_text()) for name in RUNS}


@pytest.mark.parametrize("name", ["full", "merged", "adapter", "pairs", "adapter_pairs", "same_pictures"])
def test_vllm_and_trainer_agree_after_every_update(runs, name):
    seen = runs[name]
    assert seen["steps"] == 4 == len(seen["differences"])
    assert max(seen["differences"]) < MOST
    assert seen["images_per_prompt"] == (2 if "pairs" in name else 1)


def test_a_closed_engine_gives_its_memory_back(runs):
    # Each has a cache of 1024 MB, and they were built one after another in one process.
    seen = [run["resident"] for run in runs.values()]
    assert max(seen) - min(seen) < 700


@pytest.mark.parametrize("name", ["unsynchronised", "adapter_unsynchronised"])
def test_without_weight_sync_they_do_not(runs, name):
    first, *later = runs[name]["differences"]
    assert first < MOST and min(later) > 20 * MOST


def test_a_picture_that_comes_again_is_seen_with_the_new_tower(runs):
    # TRL keeps encoded pictures over a sync; the other run does, too.
    first, *later = runs["kept_pictures"]["differences"]
    assert first < MOST and min(later) > 20 * MOST


def test_a_corrupted_prompt_stops_the_run(runs):
    assert runs["corrupted"]["steps"] == 0
    assert "vLLM sees another prompt or other weights" in runs["corrupted"]["error"]


def test_the_adapter_alone_gives_the_completions_of_the_merged_weights(runs):
    merged, adapter = runs["merged"], runs["adapter"]
    assert merged["completions"] == adapter["completions"] and len(adapter["completions"]) == 64
    assert merged["bytes"] == merged["parameters"] - merged["adapter"]
    assert adapter["bytes"] == adapter["adapter"] < merged["bytes"] / 10


def test_vision_tokens_are_never_drawn(runs):
    assert len(runs["eager_vision"]["forbidden"]) == 4
    for seen in runs.values():
        for ids in seen.get("completions", []):
            assert not set(ids) & set(seen["forbidden"])


def test_forbidden_tokens_change_log_probabilities_by_their_probability_alone(runs):
    seen, expected = torch.tensor(runs["mass"]["seen"]), torch.tensor(runs["mass"]["expected"])
    assert expected.max() > 1e-3 and len(seen) > 20
    torch.testing.assert_close(seen, expected, atol=2e-5, rtol=0)


def test_strict_answers_all_parse(runs):
    texts = runs["strict"]["texts"]
    assert len(texts) == 32 and len(set(texts)) > 20
    assert format_reward(texts, "strict") == [1.0] * 32 == format_reward(texts, "official")
    assert all(1 <= parse_score(text) <= 5 for text in texts)


def test_a_stop_string_ends_the_completion(runs):
    stopped = [
        (text, before)
        for text, before in zip(runs["stop"]["texts"], runs["stop"]["without_last"], strict=True)
        if "a" in text
    ]
    assert len(stopped) > 3
    assert not any("a" in before for _, before in stopped)
    assert max(runs["stop"]["differences"]) < MOST


def test_a_resumed_run_draws_what_the_whole_run_drew(runs):
    seen = runs["resume"]
    assert seen["resumed"] == seen["whole"][32:]
    assert max(seen["resumed differences"]) < MOST
    # Without a sync before the first completion the engine would answer with the start weights.
    assert seen["unsynchronised"] != seen["whole"][32:]
    assert min(seen["unsynchronised differences"]) > 20 * MOST
