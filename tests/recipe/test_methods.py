"""Methods of other packages: the worked example of docs/extending.md runs, and a broken one harms nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from thurl.recipe.methods import METHODS, add_installed
from thurl.training.results import read_results


ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "add_a_method"


def install(place, name, line):
    """What pip leaves of a package for `importlib.metadata`."""
    information = place / f"{name}-0.1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text(f"[thurl.methods]\n{line}\n")


def declared():
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["thurl.methods"].items()
    return f"{name} = {value}"


def launched(place, *arguments):
    paths = [str(EXAMPLE), str(place), str(ROOT / "src")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command += [str(EXAMPLE / "blur_judge.yaml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240)


def test_the_worked_example_learns_through_the_launcher(tmp_path):
    install(tmp_path / "site", "blur_judge", declared())
    done = launched(tmp_path / "site", f"training.output_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    (record,) = read_results(tmp_path / "run" / "results.json")["runs"]
    assert record["eval"]["srcc"] > 0.8
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_example_stays_small():
    lines = sum(len(path.read_text().splitlines()) for path in EXAMPLE.rglob("*.py"))
    assert lines < 150


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("absent = no_such_package:METHOD", "ModuleNotFoundError"),
        ("wrong = math:pi", "it is no `Method`"),
        ("afine = math:pi", "the name is taken"),
    ],
)
def test_a_method_that_cannot_be_used_is_left_out_and_named(tmp_path, monkeypatch, caplog, line, reason):
    install(tmp_path, "broken", line)
    monkeypatch.syspath_prepend(str(tmp_path))
    methods = dict(METHODS)
    add_installed(methods)
    assert methods == METHODS
    assert line.split(" = ")[0] in caplog.text and reason in caplog.text
