from __future__ import annotations

import pytest

from thurl.recipe.fields import check_fields, grpo_problems, process_count, sft_problems, usable_fields


GOOD = {"per_device_train_batch_size": 48, "num_generations": 6}


def one(values, name, **kwargs):
    found = [message for path, message in grpo_problems(GOOD | values, **kwargs) if path == (name,)]
    assert len(found) == 1, grpo_problems(GOOD | values, **kwargs)
    return found[0]


def test_good_values_have_no_problems():
    assert check_fields(GOOD, "grpo_config") == []
    assert grpo_problems(GOOD) == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rat", 1, "did you mean `learning_rate`?"),
        ("xqzw", 1, "unknown key `xqzw`"),
        ("learning_rate", "fast", "must be a number"),
        ("learning_rate", 0, "must be above 0"),
        ("learning_rate", float("nan"), "finite"),
        ("num_generations", 6.0, "must be a whole number"),
        ("num_generations", True, "must be a whole number"),
        ("bf16", "yes", "write true or false"),
        ("save_strategy", False, 'write "no" in quotes'),
        ("save_strategy", "step", "did you mean `steps`?"),
        ("loss_type", "gpro", "did you mean `grpo`?"),
        ("lr_scheduler_type", "lineer", "did you mean `linear`?"),
        ("optim", "adam", "must be one of"),
        ("top_p", 1.5, "between 0 and 1"),
        ("beta", -0.1, "must not be negative"),
        ("max_completion_length", 0, "at least 1"),
        ("trust_remote_code", True, "thurl never does"),
        ("hub_token", "secret", "no place for a secret"),
        ("reward_weights", [1.0, 1.0], "reward.accuracy_weight"),
        ("model_init_kwargs", {"dtype": "auto"}, "model.dtype"),
        ("auto_find_batch_size", True, "whole groups"),
        ("vllm_mode", "remote", "colocate, server"),
        ("resume_from_checkpoint", True, "write `auto`"),
        ("resume_from_checkpoint", False, "write `null`"),
    ],
)
def test_single_fields(field, value, message):
    ((path, text),) = check_fields({field: value}, "grpo_config")
    assert path == (field,)
    assert message in text


def test_null_and_integers_for_floats_are_fine():
    values = {"deepspeed": None, "learning_rate": 1, "num_train_epochs": 10, "report_to": ["wandb"], "eval_steps": 0.5}
    assert check_fields(values, "grpo_config") == []


def test_training_arguments_know_no_grpo_fields():
    assert check_fields({"beta": 0.1, "learning_rate": 1e-3}, "training_arguments")[0][0] == ("beta",)


def test_groups_must_divide_the_generation_batch():
    assert "do not divide into groups of `num_generations` = 6" in one(
        {"per_device_train_batch_size": 8}, "per_device_train_batch_size"
    )
    assert grpo_problems({"per_device_train_batch_size": 8, "num_generations": 6}, processes=3) == []
    assert (
        grpo_problems({"per_device_train_batch_size": 2, "num_generations": 6, "gradient_accumulation_steps": 3}) == []
    )


def test_process_count_comes_from_the_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert process_count() == 3
    assert grpo_problems({"per_device_train_batch_size": 8, "num_generations": 6}) == []
    monkeypatch.setenv("WORLD_SIZE", "nonsense")
    assert process_count() == 1


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"num_generations": 1}, "num_generations", "at least 2 completions"),
        ({"generation_batch_size": 96, "steps_per_generation": 2}, "generation_batch_size", "excludes"),
        ({"generation_batch_size": 60}, "generation_batch_size", "multiple of the 48 x 1"),
        ({"eval_strategy": "steps"}, "per_device_eval_batch_size", "evaluation completions"),
        ({"bf16": True, "fp16": True}, "fp16", "both true"),
        ({"use_cpu": True, "fp16": True}, "fp16", "needs a GPU"),
        ({"use_vllm": True, "vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size", "do not divide"),
        ({"use_vllm": True, "vllm_server_base_url": "http://x"}, "vllm_server_base_url", "device clash"),
        (
            {"use_vllm": True, "vllm_mode": "server", "vllm_tensor_parallel_size": 2},
            "vllm_tensor_parallel_size",
            "server's command line",
        ),
        (
            {"use_vllm": True, "vllm_importance_sampling_clip_min": 4.0},
            "vllm_importance_sampling_clip_min",
            "must be below",
        ),
        ({"max_steps": 0}, "max_steps", "must be positive"),
        ({"max_steps": -5}, "max_steps", "must be positive"),
        ({"logging_steps": 0}, "logging_steps", "whole number"),
        ({"save_steps": 2.5}, "save_steps", "whole number"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end", "to be equal"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type", "follows an evaluation"),
        ({"sync_ref_model": True}, "sync_ref_model", "beta"),
        ({"remove_unused_columns": True}, "remove_unused_columns", "must stay false"),
        ({"resume_from_checkpoint": "no/such/folder"}, "resume_from_checkpoint", "must be `auto`"),
        ({"resume_from_checkpoint": "auot"}, "resume_from_checkpoint", "did you mean `auto`?"),
        ({"resume_from_checkpoint": "auto", "save_only_model": True}, "save_only_model", "remove one of them"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor", "dataloader_num_workers"),
    ],
)
def test_impossible_combinations(values, field, message):
    assert message in one(values, field)


def test_resuming_from_auto_or_a_folder_is_fine(tmp_path):
    for value in ("auto", str(tmp_path), None):
        assert grpo_problems(GOOD | {"resume_from_checkpoint": value}) == []


def test_wrong_single_fields_do_not_hide_combinations():
    values = {"num_generations": 6, "per_device_train_batch_sise": 7, "loss_type": "x", "bf16": True, "fp16": True}
    assert usable_fields(values, "grpo_config")["per_device_train_batch_size"] == 7
    assert {path[0] for path, _ in grpo_problems(values)} == {"per_device_train_batch_size", "fp16"}


def test_combinations_agree_with_the_installed_trainer(tmp_path):
    """What we refuse, `GRPOConfig` refuses; what we accept, it accepts (the rules it has, on one process)."""
    from trl import GRPOConfig

    cases = [
        {},
        {"per_device_train_batch_size": 8},
        {"num_generations": 1},
        {"generation_batch_size": 96},
        {"generation_batch_size": 60},
        {"generation_batch_size": 96, "steps_per_generation": 2},
        {"bf16": True, "fp16": True},
        {"logging_steps": 0},
        {"save_strategy": "steps", "save_steps": 2.5},
        {"load_best_model_at_end": True},
        {"per_device_eval_batch_size": 8, "eval_strategy": "steps", "eval_steps": 5},
        {"per_device_eval_batch_size": 6, "eval_strategy": "steps", "eval_steps": 5},
        {"vllm_importance_sampling_clip_min": 4.0, "use_vllm": True},
        {"log_completions_hub_repo": "a/b"},
        {"warmup_steps": -1},
    ]
    for case in cases:
        values = GOOD | {"bf16": False, "report_to": "none"} | case
        ours = bool(grpo_problems(values, 1) or check_fields(values, "grpo_config"))
        try:
            GRPOConfig(output_dir=str(tmp_path), use_cpu="use_vllm" not in case, **values)
            theirs = False
        except ValueError:
            theirs = True
        assert ours == theirs, case


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"bf16": True, "fp16": True}, "fp16", "both true"),
        ({"max_steps": 0}, "max_steps", "must be positive"),
        ({"max_length": 0}, "max_length", "at least 1"),
        ({"packing": True, "max_length": None}, "packing", "the length of a packed row"),
        ({"eval_strategy": "steps", "eval_steps": 5}, "eval_strategy", "must stay no"),
        ({"resume_from_checkpoint": "auot"}, "resume_from_checkpoint", "did you mean `auto`?"),
    ],
)
def test_impossible_combinations_of_supervised_fine_tuning(values, field, message):
    found = sft_problems(values)
    assert [text for path, text in found if path == (field,) and message in text], found


def test_supervised_fine_tuning_knows_its_own_fields():
    assert sft_problems({"max_length": None, "learning_rate": 1e-4}) == []
    assert check_fields({"max_length": None, "loss_type": "nll", "packing": False}, "sft_config") == []
    ((path, message),) = check_fields({"num_generations": 4}, "sft_config")
    assert path == ("num_generations",) and "unknown key" in message
    assert check_fields({"loss_type": "grpo"}, "sft_config") and check_fields({"pad_token": "x"}, "sft_config")
