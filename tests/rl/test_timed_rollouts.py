import inspect
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.timed_rollouts import uses_reference
from thurl.training.timing import HostClock


SLEEP = 0.05


CALLS = []


def letters(completions, **_):
    CALLS.append(len(completions))
    time.sleep(SLEEP)
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def _run(tiny_folder, records, tmp_path, peft_config=None, prefix_sharing="off", **fields):
    defaults = {
        **{"use_cpu": True, "bf16": False, "per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 4},
        **{"max_completion_length": 4, "logging_steps": 2, "report_to": [], "save_strategy": "no", "seed": 1},
        **{"gradient_checkpointing": False, "disable_tqdm": True},
    }
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    trainer = RankGRPOTrainer(
        model,
        reward_funcs=[letters],
        args=RankGRPOConfig(str(tmp_path), **{**defaults, **fields}),
        train_dataset=build_rank_dataset(records),
        processing_class=AutoProcessor.from_pretrained(tiny_folder),
        peft_config=peft_config,
        block_size=2,
        prefix_sharing=prefix_sharing,
    )
    readings = []
    trainer.timer.clock = HostClock(lambda: readings.append(time.perf_counter()) or readings[-1])
    trainer.train()
    entries = [
        {name.removeprefix("timing/"): value for name, value in entry.items() if name.startswith("timing/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return trainer, entries, readings


@pytest.mark.parametrize("prefix_sharing", ["off", "on"])
def test_phases_add_up_to_the_step(tiny_folder, rated_images, tmp_path, prefix_sharing):
    trainer, entries, readings = _run(
        tiny_folder, rated_images, tmp_path, prefix_sharing=prefix_sharing, save_strategy="steps", save_steps=2
    )
    assert len(entries) == 2
    for index, entry in enumerate(entries):
        assert set(entry) == {*RankGRPOTrainer.phases, "other", "step"}
        for name in ("data", "rollout", "reward", "reference_logps", "update"):
            assert entry[name] > 0, name
        assert entry["old_logps"] == entry["weight_sync"] == entry["evaluation"] == 0, "nothing of the kind ran"
        assert entry["save"] > 0 if index else entry["save"] == 0, "the first checkpoint follows the first entry"
        assert entry["reward"] >= SLEEP, "one batch of completions per step"
        assert sum(value for name, value in entry.items() if name != "step") == pytest.approx(entry["step"])
    # The second reading is that of the beginning of the training, the first is before it.
    assert sum(trainer.timing["seconds"].values()) == pytest.approx(readings[-1] - readings[1], rel=1e-9)
    assert trainer.timing["steps"] == 4 and trainer.timing["seconds"]["reward"] >= 4 * SLEEP


def test_completions_that_are_used_again_cost_their_share(tiny_folder, rated_images, tmp_path):
    # One generation batch for the 4 steps; the policy moves on, so that old log-probabilities are needed.
    CALLS.clear()
    trainer, entries, _ = _run(tiny_folder, rated_images, tmp_path, steps_per_generation=2, num_iterations=2)
    first, second = entries
    assert first["old_logps"] > 0 and first["reference_logps"] > 0
    assert CALLS == [16] and first["reward"] >= SLEEP / 2, "the time of one generation is shared by two steps"
    assert first["reward"] == pytest.approx(trainer.timing["seconds"]["reward"] / 2)
    for name in ("rollout", "reward", "old_logps", "reference_logps"):
        assert second[name] == 0, name
    assert second["update"] > 0


def test_the_reference_of_an_adapter_is_told_from_its_policy(tiny_folder, rated_images, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    _, entries, _ = _run(tiny_folder, rated_images, tmp_path, lora, steps_per_generation=2, num_iterations=2)
    assert entries[0]["old_logps"] > 0 and entries[0]["reference_logps"] > 0
    _, entries, _ = _run(tiny_folder, rated_images, tmp_path, lora)
    assert entries[0]["old_logps"] == 0 < entries[0]["reference_logps"]


def test_uses_reference(tiny_folder):
    plain, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    assert uses_reference(other, other) and not uses_reference(plain, other) and not uses_reference(plain, None)
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert not uses_reference(model, None)
    with use_adapter(model, adapter_name=None):
        assert uses_reference(model, None)
    model.add_adapter("ref", LoraConfig(r=2, target_modules=["q_proj"]))
    with use_adapter(model, adapter_name="ref"):
        assert uses_reference(model, None)
    assert not uses_reference(model, None)


def test_weight_sync_is_taken_out_of_the_rollout(tiny_folder, rated_images, tmp_path, monkeypatch):
    class Generation:
        def sync_weights(self):
            time.sleep(SLEEP)

    generation, plain = Generation(), GRPOTrainer._generate_single_turn
    monkeypatch.setattr(RankGRPOTrainer, "vllm_generation", generation, raising=False)
    monkeypatch.setattr(
        GRPOTrainer, "_generate_single_turn", lambda self, *args: generation.sync_weights() or plain(self, *args)
    )
    _, entries, _ = _run(tiny_folder, rated_images, tmp_path)
    assert all(entry["weight_sync"] >= SLEEP and entry["rollout"] > 0 for entry in entries)
    assert generation.sync_weights.__func__ is Generation.sync_weights, "put back"


def test_hooks_still_have_their_signatures():
    assert list(inspect.signature(GRPOTrainer._generate_single_turn).parameters)[:3] == [
        "self",
        "prompt_ids",
        "images",
    ]
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "self.vllm_generation.sync_weights()" in source and "unwrapped_model.generate(" in source
    assert "self.rollout_func(prompts, self)" in inspect.getsource(GRPOTrainer._generate)
    assert "self._calculate_rewards(" in inspect.getsource(GRPOTrainer._generate_and_score_completions)
    loop = inspect.getsource(Trainer._run_epoch)
    order = ("self.get_batch_samples(", "callback_handler.on_step_begin(", "self.training_step(", "optimizer.step()")
    places = [loop.index(text) for text in (*order, "callback_handler.on_step_end(", "self._maybe_log_save_evaluate(")]
    assert places == sorted(places)
    assert "self._save_checkpoint(model, trial)" in inspect.getsource(Trainer._maybe_log_save_evaluate)
