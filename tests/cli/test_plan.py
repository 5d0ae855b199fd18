from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thurl.cli import app
from thurl.recipe import plan as recipe_plan
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe


def run(*words):
    return CliRunner().invoke(app, ["plan", *map(str, words)])


def planned(*words):
    result = run(*words, "--json")
    return result.exit_code, json.loads(result.stdout)


def test_the_paper_fits_where_it_ran():
    code, plan = planned("visualquality_r1", "--gpus", 16, "--device", "a100")
    assert code == 0 and plan["fits"] and plan["problems"] == []
    assert plan["parameters"] == pytest.approx(8.29e9, rel=1e-3)
    assert plan["tokens"] == {"prompt": 362, "answer": 256, "rows": 48}
    assert plan["peak"] == max(sum(parts.values()) for parts in plan["phases"].values()) < plan["usable"]
    assert set(plan["seconds"]) == {"rollout", "old log-probabilities", "reference", "update", "weight sync"}


def test_a_run_that_cannot_fit_says_why_and_what_to_do():
    result = run("visualquality_r1", "--gpus", 1, "--gpu-memory", 80, "--zero", 0)
    assert result.exit_code == 1
    assert "does not fit: the update needs" in result.output and "take more GPUs" in result.output
    small = run("visualquality_r1", "--gpus", 16, "--gpu-memory", 40)
    assert small.exit_code == 1 and "training.vllm_gpu_memory_utilization` to 0.47" in small.output
    # ... and doing it helps.
    again = run(
        *("visualquality_r1", "training.vllm_gpu_memory_utilization=0.47", "--gpus", 16, "--gpu-memory", 40),
        *("training.per_device_train_batch_size=24", "training.gradient_accumulation_steps=2"),
        "reward.scope=global",
    )
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    "before, after, remedy",
    [
        (["--zero", 0], ["--zero", 3], "zero3.json"),
        (["training.gradient_checkpointing=false"], [], "training.gradient_checkpointing=true"),
        (["training.vllm_enable_sleep_mode=false", "training.vllm_gpu_memory_utilization=0.6"], [], "sleep_mode=true"),
    ],
)
def test_each_remedy_is_named_where_it_helps(before, after, remedy):
    recipe = ["visualquality_r1", "--gpus", 8, "--gpu-memory", 80]
    result = run(*recipe, *before)
    assert result.exit_code == 1 and remedy in result.output
    assert run(*recipe, *after).exit_code == 0


def test_the_tiny_recipe_knows_its_own_pictures():
    code, plan = planned("tiny/visualquality_r1", "--gpu-memory", 4)
    assert code == 0 and plan["seconds"] is None
    # 48 x 48 pixels in patches of 8, four of them a token; the words as its own tokenizer cuts them.
    from thurl.recipe.visualquality_r1 import prompt_preset
    from thurl.rl.tiny import CHAT_TEMPLATE, build_tiny_tokenizer

    recipe = load_recipe(find_recipe("tiny/visualquality_r1"), ()).recipe
    tokenizer = build_tiny_tokenizer()
    messages = prompt_preset(recipe).messages("think")
    text = tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    real = len(tokenizer(text)["input_ids"]) - 1 + 9
    assert real <= plan["tokens"]["prompt"] <= real + 4  # <think> and the like are one token here, three for Qwen


def test_a_model_in_a_folder(tmp_path):
    from thurl.rl.tiny import build_tiny_qwen2_5_vl

    model, _ = build_tiny_qwen2_5_vl(0)
    model.config.save_pretrained(tmp_path)
    _, plan = planned("visualquality_r1", f"model.name_or_path={tmp_path}", "--gpu-memory", 80)
    assert plan["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    (tmp_path / "config.json").write_text("{")
    broken = run("visualquality_r1", f"model.name_or_path={tmp_path}", "--gpu-memory", 80)
    assert broken.exit_code == 2 and "is no JSON object" in broken.output


@pytest.mark.parametrize(
    "words, message",
    [
        (["visualquality_r1"], "--gpu-memory GIB"),
        (["visualquality_r1", "--device", "h10"], "did you mean `h100`?"),
        (["visualquality_r1", "--gpu-memory", 80, "--picture", "512"], "write WIDTHxHEIGHT"),
        (["visualquality_r1", "--gpu-memory", 80, "--picture", "0x5"], "write WIDTHxHEIGHT"),
        (["visualquality_r1", "model.name_or_path=a/b", "--gpu-memory", 80], "sizes of a/b are not known"),
        (["visualquality_r1", "training.bogus=1", "--gpu-memory", 80], "bogus"),
        (["nothing", "--gpu-memory", 80], "neither a file nor a recipe"),
    ],
)
def test_wrong_questions(words, message):
    result = run(*words)
    assert result.exit_code == 2 and message in result.output


def test_larger_pictures_and_more_gpus():
    _, small = planned("visualquality_r1", "--gpus", 8, "--device", "h100")
    _, large = planned("visualquality_r1", "--gpus", 8, "--device", "h100", "--picture", "2048x1536")
    assert large["tokens"]["prompt"] > 10 * small["tokens"]["prompt"] and large["peak"] > small["peak"]
    assert sum(large["seconds"].values()) > sum(small["seconds"].values())
    _, many = planned("visualquality_r1", "--gpus", 64, "--device", "h100")
    assert many["phases"]["update"]["optimizer"] == pytest.approx(small["phases"]["update"]["optimizer"] / 8)


def test_warning_before_a_run_that_may_not_fit(monkeypatch, caplog):
    import torch

    recipe = load_recipe(find_recipe("visualquality_r1"), ()).recipe
    caplog.set_level("INFO", logger="thurl")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe_plan.warn_before_start(recipe)
    assert not caplog.records
    card = type("Card", (), {"total_memory": 24 * 2**30})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    recipe_plan.warn_before_start(recipe)
    assert any("may not fit" in record.message and record.levelname == "WARNING" for record in caplog.records)
    caplog.clear()
    recipe_plan.warn_before_start(load_recipe(find_recipe("visualquality_r1"), ["model.name_or_path=a/b"]).recipe)
    assert [record.levelname for record in caplog.records] == ["INFO"] and "not known" in caplog.text


def test_planning_is_light():
    import subprocess
    import sys

    code = (
        "import sys; from thurl.recipe.plan import make_plan; from thurl.recipe.validate import load_recipe; "
        "from thurl.recipe.shipped import find_recipe; "
        "make_plan(load_recipe(find_recipe('visualquality_r1'), ()).recipe, gpus=8, memory=80); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
