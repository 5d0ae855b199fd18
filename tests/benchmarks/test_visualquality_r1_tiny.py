from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest


FILE = Path(__file__).parents[2] / "benchmarks" / "visualquality_r1_tiny.py"
GOOD = {"seed": 1, "srcc_before": -0.05, "srcc_after": 0.81, "srcc_control": None, "seconds": 200.0}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("visualquality_r1_tiny_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"srcc_before": -0.2}, ["srcc_before"]),
        ({"srcc_after": 0.7499}, ["srcc_after"]),
        ({"srcc_after": None}, ["srcc_after"]),
        ({"srcc_control": -0.31}, ["srcc_control"]),
        ({"seconds": 361.0, "srcc_control": 0.4}, ["srcc_control", "seconds"]),
    ],
)
def test_the_bar(benchmark, change, missed):
    record = {**GOOD, **change}
    assert benchmark.failures(record) == missed
    line = benchmark.summary_line({**record, "failures": missed})
    assert ("MISSED" in line) == bool(missed)


def test_time_of_the_control_is_not_counted_and_a_failed_seed_shows(benchmark, tmp_path):
    """The recipe is a stand-in that leaves the record a run would leave."""
    recipe = tmp_path / "stand_in.py"
    recipe.write_text(
        "import json, sys, time\n"
        "options = dict(word.split('=', 1) for word in sys.argv[1:])\n"
        "assert options['control.shuffle_mos'] == 'true'\n"
        "time.sleep(0.5)\n"
        "seed = int(options['training.seed'])\n"
        "record = {'seed': seed, 'srcc_before': 0.0, 'srcc_after': 0.9 - 0.3 * (seed == 2), 'srcc_control': None,\n"
        "          'plcc_after': 0.9, 'per_degradation': {'blur': 0.9}, 'seconds': 0.3, 'seconds_control': 0.4}\n"
        "from pathlib import Path\n"
        "path = Path(options['report.results'])\n"
        "path.parent.mkdir(parents=True)\n"
        "path.write_text(json.dumps({'runs': [record]}))\n"
    )
    out = tmp_path / "out.json"
    arguments = ["--recipe", str(recipe), "--out", str(out), "--work", str(tmp_path / "work"), "--seeds"]
    assert benchmark.main([*arguments, "1", "3"]) == 0
    assert benchmark.main([*arguments, "1", "2"]) == 1
    document = json.loads(out.read_text())
    assert [run["seed"] for run in document["runs"]] == [1, 2] and document["passed"] == 1
    assert document["runs"][1]["failures"] == ["srcc_after"]
    first = document["runs"][0]
    assert first["seconds"] == pytest.approx(first["seconds_with_control"] - 0.4)
    assert document["versions"]["torch"] and document["machine"]["cores"] >= 1
