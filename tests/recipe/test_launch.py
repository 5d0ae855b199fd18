from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.recipe import launch as launch_module
from thurl.recipe.document import FOOTER, HEADER
from thurl.recipe.launch import Arguments, parse_arguments, run_recipe
from thurl.recipe.methods import METHODS, Method


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(launch_module, "_GRACE_SECONDS", 0.0)


@pytest.fixture
def recipe(tmp_path):
    """A valid executable recipe that needs nothing but a CPU."""
    data = {
        "method": "visualquality_r1",
        "model": {"tiny": {}},
        "data": {"train": [{"format": "degraded_photos", "split": "train"}]},
        "training": {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "bf16": False,
            "num_generations": 2,
            "per_device_train_batch_size": 16,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(f"# a recipe\n{HEADER}\n{yaml.safe_dump(data)}\n{FOOTER}\n")
    return path


def environment(**extra):
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"} | extra


def start(*command, **extra):
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(**extra),
    )


def test_arguments():
    parsed = parse_arguments(["a.b=1", "--debug", "--local_rank=0", "c=x=y"])
    assert parsed == Arguments(("a.b=1", "c=x=y"), debug=True)
    with pytest.raises(UsageError) as error:
        parse_arguments(["word", "--learning_rate=1", "a=1"])
    assert len(error.value.problems) == 2


def stub_run(monkeypatch, run):
    module = type(sys)("stub_method")
    module.run = run
    monkeypatch.setitem(sys.modules, "stub_method", module)
    real = METHODS["visualquality_r1"]
    monkeypatch.setitem(METHODS, "visualquality_r1", Method(real.recipe, "stub_method:run", real.summary))


def test_run_gets_the_recipe_and_the_overrides(recipe, monkeypatch):
    calls = []
    stub_run(monkeypatch, lambda recipe, **kwargs: calls.append((recipe, kwargs)))
    assert run_recipe(str(recipe), ["training.learning_rate=2e-6"]) == 0
    ((given, kwargs),) = calls
    assert given.training["learning_rate"] == 2e-6
    assert kwargs == {"recipe_path": str(recipe), "overrides": ["training.learning_rate=2e-6"]}


def test_a_run_leaves_its_process_group(recipe, monkeypatch, tmp_path):
    """A gloo group that is left to the end of the interpreter now and then aborts it."""
    import torch.distributed as dist

    def join(recipe, **kwargs):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)

    stub_run(monkeypatch, join)
    assert run_recipe(str(recipe)) == 0
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("broken picture"), 1),
        (UsageError(["broken picture"]), 2),
        (MissingRequirementError(["broken picture"]), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_of_a_run(recipe, monkeypatch, capsys, error, code):
    def run(*args, **kwargs):
        raise error

    stub_run(monkeypatch, run)
    monkeypatch.setenv("RANK", "1")
    assert run_recipe(str(recipe)) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert code == 130 or "[rank 1]" in shown and "broken picture" in shown
    if code != 130:
        assert run_recipe(str(recipe), ["--debug"]) == code
        assert "Traceback" in capsys.readouterr().err


def test_a_crash_keeps_its_traceback(recipe, monkeypatch):
    def run(*args, **kwargs):
        raise RuntimeError("a bug, not a mistake of the user")

    stub_run(monkeypatch, run)
    with pytest.raises(RuntimeError):
        run_recipe(str(recipe))


def test_only_one_process_of_a_machine_reports_a_wrong_recipe(recipe, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_recipe(str(recipe), ["training.nonsense=1"]) == 2
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_recipe(str(recipe), ["training.nonsense=1"]) == 2
    assert "training.nonsense" in capsys.readouterr().err


def test_help_and_validate_only(recipe, capsys):
    assert run_recipe(str(recipe), ["--help"]) == 0
    assert "section.key=value" in capsys.readouterr().out
    assert run_recipe(str(recipe), ["--validate-only"]) == 0
    assert "valid (visualquality_r1)" in capsys.readouterr().out


def test_python_runs_an_executable_recipe(recipe):
    done = start(sys.executable, recipe, "--validate-only")
    assert done.returncode == 0, done.stderr
    assert "valid (visualquality_r1)" in done.stdout
    done = start(sys.executable, recipe, "training.lerning_rate=1")
    assert done.returncode == 2
    assert "did you mean `learning_rate`?" in done.stderr and "Traceback" not in done.stderr
    done = start(sys.executable, recipe, "training.lerning_rate=1", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr


@pytest.mark.distributed
def test_accelerate_runs_an_executable_recipe(recipe):
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    done = start(*launcher, recipe, "training.seed=7", "--validate-only")
    assert done.returncode == 0, done.stderr
    assert "valid (visualquality_r1)" in done.stdout
    config = RECIPES.parent / "accelerate_configs" / "cpu.yaml"
    done = start(*launcher, "--config_file", config, recipe, "training.sed=7")
    assert done.returncode != 0 and "did you mean `seed`?" in done.stderr


@pytest.mark.distributed
def test_torchrun_runs_an_executable_recipe(recipe):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # 9 rows x 2 processes divide into pairs and blocks of 3: the number of processes is taken into account.
    both = ["training.per_device_train_batch_size=9", "sampler.block_size=3"]
    done = start(*launcher, recipe, *both, "--validate-only")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("valid (visualquality_r1)") == 1  # one process speaks
    assert start(sys.executable, recipe, *both, "--validate-only").returncode == 2
    wrong = start(*launcher, recipe, "training.sed=7")
    assert wrong.returncode != 0 and wrong.stderr.count("did you mean `seed`?") == 1


@pytest.mark.parametrize("name", ["visualquality_r1", "visualquality_r1_lora"])
def test_paper_recipe_stops_with_everything_that_is_missing(name, tmp_path):
    done = start(sys.executable, RECIPES / f"{name}.yaml", HF_HOME=str(tmp_path))
    assert done.returncode == 3, done.stderr
    for word in ("Qwen/Qwen2.5-VL-7B-Instruct", "kadid10k/dmos.csv", "kadid10k/images", "GPU"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
