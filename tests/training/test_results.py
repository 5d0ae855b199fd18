"""Result files: complete, checked, atomic, and honest about what is undefined."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from thurl.errors import DataError
from thurl.training import results
from thurl.training.results import environment, read_results, summarise, write_atomically, write_results


RUNS = [
    {"seed": 0, "srcc_after": 0.8, "per_degradation": {"blur": {"srcc": 0.7}}, "seconds": 10.0},
    {"seed": 1, "srcc_after": 0.9, "per_degradation": {"blur": {"srcc": math.nan}}, "seconds": 12},
]


def test_a_file_round_trips_with_versions_machine_and_spread(tmp_path):
    path = tmp_path / "new folder" / "demo.json"
    written = write_results(path, recipe="recipes/tiny/demo.yaml", overrides=["a=1"], runs=RUNS, note="synthetic")
    read = read_results(path)
    assert read == written
    assert read["recipe"] == "recipes/tiny/demo.yaml" and read["overrides"] == ["a=1"] and read["note"] == "synthetic"
    assert read["versions"]["torch"] and read["versions"]["thurl"] and read["machine"]["cores"] >= 1
    assert read["summary"]["srcc_after"] == pytest.approx(
        {"mean": 0.85, "std": math.sqrt(0.005), "min": 0.8, "max": 0.9, "n": 2}
    )


def test_undefined_numbers_are_null_and_counted_out(tmp_path):
    path = tmp_path / "demo.json"
    write_results(path, recipe="demo", runs=RUNS)
    assert "NaN" not in path.read_text()
    read = read_results(path)
    assert read["runs"][1]["per_degradation"]["blur"]["srcc"] is None
    assert read["summary"]["per_degradation.blur.srcc"] == {"mean": 0.7, "std": None, "min": 0.7, "max": 0.7, "n": 1}


def test_a_value_undefined_in_every_run_has_no_mean():
    assert summarise([{"seed": 3, "srcc": None}])["srcc"] == {
        "mean": None,
        "std": None,
        "min": None,
        "max": None,
        "n": 0,
    }


def test_numpy_values_become_json(tmp_path):
    runs = [{"seed": np.int64(4), "srcc": np.float32(0.5), "curve": np.arange(3), "ok": True}]
    with pytest.raises(DataError, match="seed"):
        write_results(tmp_path / "a.json", recipe="demo", runs=runs)
    runs[0]["seed"] = 4
    written = write_results(tmp_path / "b.json", recipe="demo", runs=runs, overrides={"path": tmp_path})
    assert written["runs"] == [{"seed": 4, "srcc": 0.5, "curve": [0, 1, 2], "ok": True}]
    assert json.loads((tmp_path / "b.json").read_text())["overrides"] == {"path": str(tmp_path)}


def test_no_secret_of_the_command_line_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "unusual-token-123")
    overrides = [
        "data.train.0.obtain=https://ann:pass-word@host/file",
        "hub.tags=[unusual-token-123]",
        "report.html=page.html",
    ]
    path = tmp_path / "a.json"
    written = write_results(path, recipe="demo", runs=RUNS, overrides=overrides)
    assert written["overrides"] == [
        "data.train.0.obtain=https://(hidden)@host/file",
        "hub.tags=[(hidden)]",
        "report.html=page.html",
    ]
    write_results(tmp_path / "b.json", recipe="demo", runs=RUNS, overrides={"key": ["hf_abcdefghij", 3]})
    assert read_results(tmp_path / "b.json")["overrides"] == {"key": ["(hidden)", 3]}
    assert "pass-word" not in path.read_text() and "unusual" not in path.read_text()


def test_all_problems_come_together_and_nothing_is_written(tmp_path):
    path = tmp_path / "bad.json"
    with pytest.raises(DataError) as caught:
        write_results(path, recipe="", runs=[{"srcc": 1.2}, {"seed": 1, "inner": {"plcc_after": -3.0, "seconds": -1}}])
    text = str(caught.value)
    for part in (
        "`recipe`",
        "runs[0]: `seed`",
        "`srcc` is 1.2",
        "`inner.plcc_after` is -3.0",
        "`inner.seconds` is -1",
    ):
        assert part in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runs", [[], [3]])
def test_a_result_needs_a_run(tmp_path, runs):
    with pytest.raises(DataError, match="runs"):
        write_results(tmp_path / "x.json", recipe="demo", runs=runs)


def test_reserved_entries_cannot_be_overwritten(tmp_path):
    with pytest.raises(DataError, match="machine"):
        write_results(tmp_path / "x.json", recipe="demo", runs=RUNS, machine="mine")


def test_what_is_not_json_is_refused(tmp_path):
    with pytest.raises(DataError, match="object"):
        write_results(tmp_path / "x.json", recipe="demo", runs=[{"seed": 0, "thing": object()}])


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"format": 99, "runs": []}', '{"format": 1, "recipe": "a"}'])
def test_reading_something_else_says_which_file_and_why(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(DataError, match="other.json"):
        read_results(path)


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such result file"):
        read_results(tmp_path / "none.json")


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, "old\n")

    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(results.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new\n")
    assert path.read_text() == "old\n"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_a_written_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    write_atomically(tmp_path / "ours", "x")
    (tmp_path / "theirs").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_the_commit_of_an_unrelated_repository_is_not_taken(monkeypatch, tmp_path):
    # A copy that lies inside somebody else's repository, untracked, must not report that repository's commit.
    foreign = tmp_path / "site-packages" / "results.py"
    foreign.parent.mkdir()
    foreign.write_text("")
    monkeypatch.setattr(results, "__file__", str(foreign))
    assert environment()["commit"] is None
