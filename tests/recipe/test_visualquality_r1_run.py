"""The tiny recipe from end to end, shortened, through the launchers people use."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from thurl.data.records import RatedImage
from thurl.recipe import visualquality_r1_run
from thurl.recipe.validate import load_recipe
from thurl.recipe.visualquality_r1_run import prompt_preset, reward_functions, training_arguments


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "tiny" / "visualquality_r1.yaml"
SHORT = (
    "model.tiny.hidden=32 model.tiny.heads=1 model.tiny.vision_hidden=32 model.tiny.vision_heads=1 "
    "warm_start.pretext_steps=4 warm_start.format_steps=60 warm_start.format_batch=16 data.train.0.repeats=4 "
    "data.train.1.repeats=4 data.validation.0.repeats=1 evaluation.sources.0.repeats=1 evaluation.every_steps=1 "
    "evaluation.n_samples=2 training.max_steps=2 training.logging_steps=1 training.num_generations=4 "
    "sampler.block_size=4 training.seed=5"
).split()


def _launch(command, tmp_path, *overrides):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(RECIPE), *SHORT, "training.output_dir=out", "report.results=out/results.json"]
        + ["report.html=out/report.html", *overrides],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done, tmp_path / "out"


@pytest.mark.distributed
def test_accelerate_launch_trains_evaluates_and_reports(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    done, out = _launch(
        [*command, str(ROOT / "accelerate_configs" / "cpu.yaml")],
        tmp_path,
        "training.per_device_train_batch_size=32",
        "control.shuffle_mos=true",
    )
    results = json.loads((out / "results.json").read_text())
    (record,) = results["runs"]
    assert record["seed"] == 5 and record["seconds"] > 0
    assert {"srcc_before", "srcc_after", "srcc_control", "plcc_after"} <= set(record)
    assert set(record["per_degradation"]) == {"noise", "blur", "blocks", "darkness"}
    assert [entry["step"] for entry in results["validation"]] == [0, 1, 2]
    assert results["overrides"][0] == SHORT[0]
    assert "overall" in done.stdout and "SRCC" in done.stdout
    seconds = record["seconds_per_step"]
    assert seconds["rollout"] > 0 and seconds["evaluation"] > 0 and seconds["weight_sync"] == 0
    assert sum(value for name, value in seconds.items() if name != "step") == pytest.approx(seconds["step"])
    assert "Where the time of 2 steps went" in done.stdout + done.stderr
    assert "Where the time went" in (out / "report.html").read_text()
    report = (out / "report.html").read_text()
    assert "SRCC control" in report and "://" not in report, "one page, nothing fetched"
    # What it leaves behind can be scored with, asked the question it was trained on.
    from thurl.rl import QualityScorer

    scorer = QualityScorer.from_pretrained(out)
    assert scorer.preset.question == "Rate the quality of this picture from 1 to 5."
    picture = next((out / "data" / "held_out" / "images").glob("*.png"))
    assert len(scorer.score([picture], max_new_tokens=16)) == 1
    assert (out / "control" / "model.safetensors").is_file()


@pytest.mark.distributed
def test_two_processes_with_an_adapter(tmp_path):
    """The start is built by one process, outside the group; the adapter leaves the vision tower alone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    _, out = _launch(
        [*command, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"],
        tmp_path,
        "training.per_device_train_batch_size=16",
        "model.freeze=[]",
        "adapter={r: 4, alpha: 8}",
        "training.save_strategy=steps",
        "training.save_steps=1",
    )
    from safetensors import safe_open

    with safe_open(out / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert names and not [name for name in names if "visual" in name]
        assert any(weights.get_tensor(name).abs().sum() > 0 for name in names if "lora_B" in name)
    record = json.loads((out / "results.json").read_text())["runs"][0]
    assert record["srcc_control"] is None
    for folder in (out, out / "checkpoint-1"):
        assert json.loads((folder / "thurl_prompt.json").read_text())["question"].startswith("Rate the quality")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_on_two_cpu_processes(tmp_path, stage):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done, out = _launch(
        [*command, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"],
        tmp_path,
        "training.per_device_train_batch_size=16",
        "model.freeze=[]",
        f"training.deepspeed=deepspeed_configs/zero{stage}.json",
    )
    assert "Warning" not in done.stderr, "DeepSpeed's calls of torch warn in every step"
    results = json.loads((out / "results.json").read_text())
    assert [entry["step"] for entry in results["validation"]] == [0, 1, 2]
    from safetensors.torch import load_file

    from thurl.rl import QualityScorer

    # The whole weights, not a share, and trained ones.
    start, end = load_file(out / "start" / "model.safetensors"), load_file(out / "model.safetensors")
    assert {name: value.shape for name, value in end.items()} == {name: value.shape for name, value in start.items()}
    assert sum(not value.equal(start[name]) for name, value in end.items()) > 0.9 * len(end)
    picture = next((out / "data" / "held_out" / "images").glob("*.png"))
    assert len(QualityScorer.from_pretrained(out).score([picture], max_new_tokens=16)) == 1


def _recipe(name, *overrides):
    return load_recipe(str(ROOT / "recipes" / name), list(overrides)).recipe


def test_the_papers_recipe_becomes_the_papers_settings(monkeypatch):
    recipe = _recipe("visualquality_r1.yaml")
    rank, formatting = reward_functions(recipe)
    assert rank.options.comparison == "mean" and rank.options.variance == "sample" and rank.options.scope == "device"
    assert rank.block_size == 8 and rank.options.eps == 1e-6 and formatting.mode == "official"
    assert recipe.adapter is None
    preset = prompt_preset(recipe)
    assert preset.text("think").startswith("You are doing the image quality assessment task.")
    assert not preset.vision_id


def test_regression_and_adapter_recipes():
    threshold, _ = reward_functions(_recipe("visualquality_r1_regression.yaml"))
    assert threshold.__name__ == "threshold" and threshold.threshold == 0.35
    lora = _recipe("visualquality_r1_lora.yaml").adapter
    assert lora.kind == "lora" and lora.r == 64 and lora.exclude_vision


def test_reward_weights_reach_the_trainer(tmp_path):
    recipe = _recipe("tiny/visualquality_r1.yaml", "reward.format_weight=0.5", f"training.output_dir={tmp_path}")
    args = training_arguments(recipe)
    assert args.reward_weights == [1.0, 0.5]
    assert args.num_generations == 8 and args.loss_type == "grpo"


@pytest.mark.parametrize(("override", "mode"), [((), "off"), (("model.prefix_sharing=on",), "on")])
def test_prefix_sharing_reaches_the_trainer(monkeypatch, tmp_path, override, mode):
    class Reached(Exception):
        pass

    def trainer(*args, prefix_sharing, **kwargs):
        raise Reached(prefix_sharing)

    monkeypatch.setattr(visualquality_r1_run, "load_model", lambda *args: (None, None))
    monkeypatch.setattr(visualquality_r1_run, "rank_trainer", lambda section: trainer)
    recipe = _recipe("tiny/visualquality_r1.yaml", f"training.output_dir={tmp_path}", *override)
    study = SimpleNamespace(train=[RatedImage("a.png", 1.0)])
    with pytest.raises(Reached, match=f"^{mode}$"):
        visualquality_r1_run.train(recipe, training_arguments(recipe), study, "no-model")
