from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from thurl.cli import app


ROOT = Path(__file__).parents[2]
PAPER = str(ROOT / "recipes" / "visualquality_r1.yaml")


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_list():
    result = run("list")
    assert result.exit_code == 0
    assert "visualquality_r1_multi" in result.output and "tiny/visualquality_r1" in result.output
    rows = json.loads(run("list", "--json").output)["recipes"]
    assert all(row["summary"] and Path(row["file"]).is_file() for row in rows)


def test_show_is_a_recipe_again(tmp_path):
    result = run("show", "visualquality_r1", "training.learning_rate=2e-6")
    assert result.exit_code == 0
    data = yaml.safe_load(result.stdout)
    assert data["training"]["learning_rate"] == 2e-6 and data["sampler"]["block_size"] == 8
    (tmp_path / "again.yaml").write_text(result.stdout)
    assert run("validate", tmp_path / "again.yaml").exit_code == 0
    everything = yaml.safe_load(run("show", "visualquality_r1", "--defaults").stdout)["training"]
    assert len(everything) > 150 and everything["beta"] == 0.04


def test_validate_all_shipped_recipes():
    result = run("validate", *sorted((ROOT / "recipes").rglob("*.yaml")))
    assert result.exit_code == 0
    assert result.output.count(": valid") == len(list((ROOT / "recipes").rglob("*.yaml")))
    assert "note:" in result.output and "data/kadid10k/dmos.csv is not here" in result.output


def test_validate_reports_everything_with_exit_code_2():
    result = run("validate", PAPER, "training.bogus=1", "reward.kindd=x", "training.learning_rate=fast")
    assert result.exit_code == 2
    assert "3 problems" in result.output
    assert "Traceback" not in result.output
    (report,) = json.loads(run("validate", PAPER, "training.bogus=1", "--json").stdout)
    assert report["valid"] is False and len(report["problems"]) == 1


def test_validate_goes_on_after_a_wrong_recipe(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("a: [")
    result = run("validate", wrong, PAPER, "nowhere.yaml")
    assert result.exit_code == 2
    assert f"{PAPER}: valid" in result.output
    assert "not valid YAML" in result.output and "nowhere.yaml is neither a file" in result.output


def test_validate_for_other_numbers_of_processes():
    odd = ["training.per_device_train_batch_size=24", "sampler.block_size=8", "reward.scope=global"]
    assert run("validate", PAPER, *odd).exit_code == 2
    assert run("validate", PAPER, *odd, "--processes", "2").exit_code == 0


def test_train_stops_with_exit_code_3(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["thurl"])
    result = run("train", "visualquality_r1", "training.seed=1")
    assert result.exit_code == 3
    assert run("train", "visualquality_r1", "training.sed=1").exit_code == 2
    assert run("train", "visualquality_r1", "--seed").exit_code == 2
    assert run("train", "nothing").exit_code == 2


def test_env():
    report = json.loads(run("env", "--json").stdout)
    assert report["versions"]["thurl"] and "machine" in report
    assert "versions.torch:" in run("env").output


def test_usage_errors_of_the_command_line():
    assert run("validate").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("--version").output.startswith("thurl 0.")


@pytest.mark.parametrize("words", [["--help"], ["validate", PAPER], ["list"], ["train", PAPER, "training.sed=1"]])
def test_light_commands_import_no_torch(words):
    code = (
        "import sys\nsys.argv = ['thurl', *sys.argv[1:]]\n"
        "from thurl.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'PIL', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "sys.stderr.write(f'HEAVY={sorted(heavy)}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.endswith("HEAVY=[]"), done.stderr
    assert "Traceback" not in done.stderr
