"""The kill campaign calls a run equal only where every file is, and counts whatever else happened."""

from __future__ import annotations

import json
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def kills(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return import_module("reliability_kills")


def runs(monkeypatch, kills, *outcomes):
    """The driver with runs that leave `content` and end with `code`, in this order."""
    left, moments = list(outcomes), []

    def run(recipe, folder, after=None):
        code, content = left.pop(0)
        moments.append(after)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_text(content)
        (folder / "log.jsonl").write_text("seconds")
        return code, "its last words"

    monkeypatch.setattr(kills, "run", run)
    return moments


KILLED = (-signal.SIGKILL, "half")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (((0, "a"), KILLED, (0, "a")), "equal"),
        (((0, "a"), KILLED, (0, "b")), "different"),
        (((0, "a"), KILLED, (1, "a")), "failed"),
        (((0, "a"), (2, "a")), "failed"),
        (((3, "a"),), "failed"),
        (((0, "a"), (0, "a"), (0, "a"), (0, "a")), "ended before the kill"),
        (((0, "a"), (0, "a"), KILLED, (0, "a")), "equal"),
    ],
)
def test_outcomes(kills, monkeypatch, tmp_path, outcomes, expected):
    runs(monkeypatch, kills, *outcomes)
    found = tmp_path / "kills.json"
    code = kills.main(["--recipes", "edit_vit", "--kills", "1", "--seed", "3", "--out", str(found)])
    document = json.loads(found.read_text())
    (record,) = document["kills"]
    assert record["outcome"] == expected and code == int(expected != "equal")
    assert record.get("message", "its last words") == "its last words"
    row = document["runs"][0]["recipes"]["edit_vit"]
    counted = expected if expected in ("equal", "different") else "failed"
    assert row["kills"] == 1 and [row[name] for name in ("equal", "different", "failed")] == [
        int(name == counted) for name in ("equal", "different", "failed")
    ]


def test_moments_spread_over_the_run_and_follow_the_seed(kills, monkeypatch):
    monkeypatch.setattr(kills.time, "monotonic", iter([0.0, 90.0] * 2).__next__)
    twice = []
    for _ in range(2):
        moments = runs(monkeypatch, kills, (0, "a"), *[KILLED, (0, "a")] * 3)
        kills.campaign("edit_vit", 3, 7, lambda record: None)
        twice.append([moment for moment in moments if moment is not None])
    assert twice[0] == twice[1]
    assert [int(moment // 30) for moment in twice[0]] == [0, 1, 2]


def test_a_run_without_products_is_no_success(kills, monkeypatch):
    monkeypatch.setattr(kills, "run", lambda recipe, folder, after=None: (0, ""))
    records = []
    kills.campaign("edit_vit", 1, 7, records.append)
    assert records[0]["outcome"] == "failed" and "no product" in records[0]["message"]


def test_a_killed_run_takes_its_children_along(kills, monkeypatch, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(kills, "find_recipe", lambda name: script)
    code, words = kills.run("edit_vit", tmp_path, 3.0)
    assert code == -signal.SIGKILL
    state, ends = Path(f"/proc/{int(words)}/stat"), time.monotonic() + 30
    while (
        state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
    ):  # the signal is sent, not yet felt
        assert time.monotonic() < ends
        time.sleep(0.05)
