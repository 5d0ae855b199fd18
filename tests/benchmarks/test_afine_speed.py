"""The speed benchmark of A-FINE on a tiny model: both ways give the same scores, and the file holds what it should."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "afine_speed.py"
    spec = spec_from_file_location("afine_speed", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_rounds(benchmark, tmp_path):
    out = tmp_path / "out.json"
    assert benchmark.main(["--tiny", "--rounds", "2", "--batch", "3", "--scene", "3", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert [run["seed"] for run in document["runs"]] == [0, 1]
    for run in document["runs"]:
        assert set(run["ratio"]) == {"batch", "one_reference", "scene", "naturalness"}
        assert all(value > 0 for value in run["ratio"].values())
        assert run["largest_difference"] < 1e-4
    memory = {name: entry["mib"] for name, entry in document["runs"][0]["memory"].items()}
    assert memory["naturalness"] < memory["score"] < memory["gradient_with_checkpointing"] < memory["gradient"]
