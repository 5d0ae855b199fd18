"""The speed benchmark of editing on a tiny model: both ways give the same, and the file holds what it should."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])  # as when it is started as a script
    spec = spec_from_file_location("vit_editing_speed", folder / "vit_editing_speed.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_round(benchmark: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--tiny", "--rounds", "1", "--batch", "2", "--outer", "2", "--steps", "3", "--out", str(out)]
    assert benchmark.main(arguments) == 0
    (run,) = json.loads(out.read_text())["runs"]
    assert set(run["ratio"]) == set(run["largest_difference"]) == {"search", "edit"}
    assert all(value > 0 for value in run["ratio"].values())
    assert run["largest_difference"]["search"] < 1e-3 and run["largest_difference"]["edit"] < 1e-5
