"""The speed benchmark of the codec on its smallest setting: all ways agree, and the file holds what it should."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "distillation_codec.py"
    spec = spec_from_file_location("distillation_codec", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_rounds(benchmark, tmp_path):
    out = tmp_path / "out.json"
    arguments = ["--settings", "digits_8x8", "--rounds", "2", "--repeats", "1", "--out", str(out)]
    assert benchmark.main(arguments) == 0
    document = json.loads(out.read_text())
    assert [run["seed"] for run in document["runs"]] == [0, 1]
    assert document["settings"]["digits_8x8"]["slices"] == 10
    for run in document["runs"]:
        found = run["digits_8x8"]
        assert set(found["ratio"]) == {"layers", "slices"} and min(found["ratio"].values()) > 0
        assert found["largest_difference"] < 1e-4
        assert found["memory"]["in_parts_mib"] < found["memory"]["at_once_mib"] / 2
