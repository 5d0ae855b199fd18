"""The benchmark of the tiny EXIF recipes: what it keeps of a record, when a bar is met, and one short run."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest


FILE = Path(__file__).parents[2] / "benchmarks" / "exif_camera.py"


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("exif_camera_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(seed=1):
    def test(value):
        names = ("iso", "aperture", "exposure_time", "focal_length")
        return {"test": {"proxy_loss": 1.0, **{f"srcc_{name}": value for name in names}},
                "test_edits": {"auc_manipulated": 0.6}}  # fmt: skip

    generated = {"auc_before": 0.5, "auc": 0.7, "auc_control": 0.5, "auc_two_sided": 0.6, "tpr": 0.2,
                 "tpr_two_sided": 0.1, "n": 3}  # fmt: skip
    alarm = {"realised": 0.04, "realised_two_sided": 0.05, "standard_error": 0.01, "within": True, "official": 0.2}
    return {"seed": seed, "steps": 3, "seconds": 1.0, "before": test(0.1), "after": test(0.97), "control": test(0.05),
            "false_alarms": {"0.05": alarm}, "generated": {"reborn": generated}}  # fmt: skip


def test_a_record_becomes_rows_of_tables(benchmark):
    found = benchmark.short(record())
    assert found["settings"]["iso"] == {"srcc_before": 0.1, "srcc_after": 0.97, "srcc_control": 0.05}
    assert found["false_alarms"]["5 %"]["official"] == 0.2  # no point in a name: tables split names at points
    assert "n" not in found["generated"]["reborn"] and found["edits"]["auc_after"] == 0.6


@pytest.mark.parametrize(
    ("bar", "path", "value"),
    [
        ("learned", ("settings", "iso", "srcc_after"), 0.94),
        ("learned", ("settings", "aperture", "srcc_after"), 0.59),
        ("control", ("settings", "exposure_time", "srcc_control"), -0.3),
        ("false_alarms", ("false_alarms", "5 %", "within"), False),
        ("fakes", ("generated", "reborn", "auc"), 0.5),
        ("fakes", ("generated", "reborn", "auc_before"), 0.69),
    ],
)
def test_each_bar_can_be_missed(benchmark, bar, path, value):
    runs = [benchmark.short(record(seed)) for seed in (1, 2, 3)]
    assert all(benchmark.verdicts(runs).values())
    changed = copy.deepcopy(runs)
    for run in changed if bar == "fakes" else changed[:1]:
        place = run
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    assert benchmark.verdicts(changed) == {name: name != bar for name in benchmark.verdicts(runs)}


def test_an_undefined_control_has_learned_nothing(benchmark):
    run = benchmark.short(record())
    run["settings"]["iso"]["srcc_control"] = None
    assert benchmark.verdicts([run])["control"]


def test_the_results_file(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "one_run", lambda recipe, seed, *options: record(seed))
    assert benchmark.main(["--seeds", "4", "5", "--out", str(tmp_path / "r.json")]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert [run["seed"] for run in results["runs"]] == [4, 5] and results["met"]["fakes"]
    assert "settings.iso.srcc_after" in results["summary"]
    assert "fakes" in capsys.readouterr().out
