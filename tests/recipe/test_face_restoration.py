"""The restoration recipe: validation, the whole run scaled down, resume, processes, losses by path, learning."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from thurl.errors import UsageError
from thurl.recipe.face_restoration_run import run
from thurl.recipe.launch import run_recipe
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe
from thurl.restoration.restorer import Restorer
from thurl.training.results import read_results

from ..rl.forked_worlds import command
from .run_reports import check_run_report


SCRIPT = Path(__file__).with_name("restoration_run.py")
TINY = str(find_recipe("tiny/face_restoration"))
FULL = str(find_recipe("face_restoration"))


def _load():
    spec = spec_from_file_location("restoration_run", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


small = _load()


# --- validation ------------------------------------------------------------------------------------------------------


def test_all_mistakes_at_once_without_torch():
    overrides = [
        *("degradation.jpeg=[90,200]", "degradation.upsample_method=bicubik", "losses.features.weight=1"),
        *(
            "losses.identity.weight=0.5",
            "losses.identity.path=x",
            "data.size=4",
            "model.depths=[1]",
            "data.crob=whole",
        ),
        *("evaluation.cleanups=[wiener]", "training.learning_rat=1", "training.bf16=true", "training.fp16=true"),
    ]
    script = (
        "import sys\nfrom thurl.errors import UsageError\nfrom thurl.recipe.validate import load_recipe\n"
        f"try:\n    load_recipe({TINY!r}, {overrides!r})\nexcept UsageError as error:\n"
        "    print(*error.problems, sep='\\n')\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        *(
            "degradation.jpeg: is [90, 200]",
            "did you mean `bicubic`?",
            "losses.features.path: is needed with a weight",
        ),
        *("data.size: is 4", "model.depths: has 1 levels, `hidden_sizes` 3", "unknown key `crob`"),
        *("'wiener' is not one of bicubic", "did you mean `learning_rate`", "`bf16` and `fp16` are both true"),
    ):
        assert words in done.stdout, words


def test_combinations_that_make_no_sense():
    with pytest.raises(UsageError, match="needs aligned faces"):
        load_recipe(TINY, ["losses.identity.weight=1", "losses.identity.path=weights"])
    with pytest.raises(UsageError, match="needs the section `evaluation`"):
        load_recipe(TINY, ["evaluation=null"])
    with pytest.raises(UsageError, match="is for `crop: random`"):
        load_recipe(TINY, ["data.crop=whole"])
    with pytest.raises(UsageError, match="is fixed by the model"):
        load_recipe(TINY, ["model.name_or_path=folder"])
    with pytest.raises(UsageError, match="must be numbers of CLIP's blocks"):
        load_recipe(FULL, ["losses.features.kind=clip"])


def test_what_is_missing_ends_with_3_and_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_recipe(FULL) == 3
    said = capsys.readouterr().err
    for words in ("data/ffhq/ffhq_512 is not here", "loss `features`", "loss `identity`", "GPU: "):
        assert words in said
    assert "loss `afine`" not in said and "naturalness" not in said, "a loss of weight 0 needs no weights"
    assert run_recipe(FULL, ["losses.identity.weight=0", "--validate-only"]) == 0


def test_the_paper_recipe_has_the_degradations_of_gfpgan():
    section = load_recipe(FULL).recipe.degradation
    assert (section.blur_sigma, section.downsample, section.noise) == ((0.1, 10.0), (0.8, 8.0), (0.0, 20.0))
    assert section.jpeg == (60, 100) and section.kernel_size == 41 and section.anisotropic == 0.5


# --- the run ---------------------------------------------------------------------------------------------------------


def test_the_whole_run(tmp_path):
    overrides = [
        "control.unrelated_targets=true", "control.max_steps=2",
        "training.eval_strategy=steps", "training.eval_steps=4",
        "training.save_strategy=steps", "training.save_steps=4", f"report.results={tmp_path / 'results.json'}",
        f"report.html={tmp_path / 'report.html'}", "report.examples=2",
    ]  # fmt: skip
    loaded = small.recipe(tmp_path / "run", *overrides)
    record = run(loaded, recipe_path="tiny/face_restoration", overrides=overrides)
    check_run_report(tmp_path / "results.json", tmp_path / "report.html")
    assert read_results(tmp_path / "results.json")["runs"][0]["psnr"] == record["psnr"]
    for metric in ("psnr", "ssim"):
        assert set(record[metric]) == {"degraded", "gaussian", "untrained", "model", "control"}
        assert record[metric]["untrained"] == record[metric]["degraded"], "at first the network does nothing"
        assert record[metric]["model"] != record[metric]["degraded"]
    assert record["pictures"] == 6 and set(record["verdict"]) == {"model_beats_all", "control_fails"}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 2 * 4 + 1 and "squares of other items" in page and "JPEG quality" in page
    items = [json.loads(line) for line in (tmp_path / "run" / "test.jsonl").read_text().splitlines()]
    assert np.mean([item["psnr"] for item in items]) == pytest.approx(record["psnr"]["model"])
    assert [item["photo"] for item in items] == ["china", "coffee", "coins"] * 2
    control = tmp_path / "run" / "control"
    assert (control / "model.safetensors").is_file() and not (control / "checkpoint-4").exists(), "two steps"
    # The saved folder, and a checkpoint of it, restore pictures.
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-4"):
        (restored,) = Restorer.from_pretrained(folder, "cpu").restore(np.zeros((20, 30, 3), np.uint8))
        assert restored.size == (30, 20)
    assert "blind restoration baseline" in (tmp_path / "run" / "README.md").read_text()


def test_weights_move_and_follow_the_seed(tmp_path):
    record, weights = small.trained(tmp_path)
    again, same = small.trained(tmp_path, dataloader_num_workers=2)
    assert record["loss"] == again["loss"] and all(torch.equal(weights[name], same[name]) for name in weights)
    start = small.trainer_of(tmp_path)[0].model.state_dict()
    assert all(not torch.equal(weights[name], start[name]) for name in weights)
    other, _ = small.trained(tmp_path, seed=1)
    assert other["loss"] != record["loss"]
    items = record["items"]
    assert record["metrics"]["psnr"] == pytest.approx(np.mean([item["psnr"] for item in items]))


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def test_resuming_equals_going_on(tmp_path):
    """Four batches an epoch: the checkpoint lies inside the first one, the end in the second."""
    options = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    overrides = ("data.repeats=2", "training.max_steps=7")
    whole, weights = small.trained(tmp_path / "whole", *overrides, **options)
    trainer, _ = small.trainer_of(tmp_path / "cut", *overrides, **options)
    trainer.add_callback(Stop())
    trainer.train()
    resumed, again = small.trained(tmp_path / "cut", *overrides, **options, resume_from_checkpoint="auto")
    assert resumed["loss"] == whole["loss"] and len(whole["loss"]) == 7
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert resumed["metrics"] == whole["metrics"]
    assert whole["epoch"] == resumed["epoch"] == 1, "the second epoch has degradations of its own"


@pytest.mark.distributed
def test_two_processes_train_what_one_does(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command(2, SCRIPT, tmp_path / "two", tmp_path / "run", "training.per_device_train_batch_size=2"),
        capture_output=True, text=True, env=environment, timeout=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    one, weights = small.trained(tmp_path / "one")
    for rank in range(2):
        record = json.loads(Path(f"{tmp_path / 'two'}.{rank}.json").read_text())
        assert record["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert record["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
        assert [item["row"] for item in record["items"]] == list(range(6))
        for name, value in load_file(f"{tmp_path / 'two'}.{rank}.safetensors").items():
            torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)
