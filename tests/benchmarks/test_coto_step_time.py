"""The step-time benchmark of CoTo: its count of work, and one round of it on a smaller model."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from thurl.coto.masks import draw_mask


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "coto_step_time.py"
    spec = spec_from_file_location("coto_step_time", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_count_of_a_step(benchmark):
    assert benchmark.counted((True,) * 4, 2.0, 3.0, 8.0) == 13.0
    assert benchmark.counted((False, False, True, False), 2.0, 3.0, 8.0) == 2.0 + 8.0 / 4 + 3.0 / 2


@pytest.mark.parametrize(("p", "expected"), [(0.1, 0.63), (0.25, 0.74), (0.5, 0.88)])
def test_the_share_above_the_lowest_active_layer(p, expected):
    """The formula of docs/coto.md and its values there, against masks as drawn."""
    groups, steps = 8, 4000
    some = 1 - (1 - p) ** groups
    share = 1 - sum(((1 - p) ** k - (1 - p) ** groups) / some for k in range(1, groups)) / groups
    drawn = sum(groups - draw_mask(p, groups, step=step)[0].index(True) for step in range(steps)) / steps / groups
    assert share == pytest.approx(expected, abs=0.005) and drawn == pytest.approx(share, abs=0.02)


def test_one_round(benchmark, monkeypatch, tmp_path):
    for name, value in {"LAYERS": 2, "WIDTH": 32, "LENGTH": 8, "RANK": 2}.items():
        monkeypatch.setattr(benchmark, name, value)
    out = tmp_path / "out.json"
    options = ["--rounds", "2", "--cycles", "1", "--steps", "4", "--kinds", "LoRA", "HiRA", "--out", str(out)]
    assert benchmark.main(options) == 0
    document = json.loads(out.read_text())
    assert [run["seed"] for run in document["runs"]] == [0, 1]
    run = document["runs"][0]
    assert list(run["step"]) == [
        "LoRA", "LoRA, checkpointing without idle", "LoRA, checkpointing", "LoRA, reentrant without idle",
        "LoRA, reentrant", "HiRA", "HiRA, checkpointing",
    ]  # fmt: skip
    assert all(list(row) == ["p10", "p25", "p50", "p75", "p100"] for row in run["step"].values())
    for kind in ("LoRA", "HiRA"):
        assert run["count"][kind]["p100"] == pytest.approx(1.0)
        numbers = run["milliseconds"][kind]
        assert numbers["step"] == pytest.approx(
            numbers["base_forward"] + numbers["base_backward"] + numbers["adapter"]
        )
        assert run["run"][kind]["of_bound"] * run["run"][kind]["bound"] == pytest.approx(run["run"][kind]["saving"])
        assert 0 < run["run"][kind]["active"] <= 1
