"""The kill campaign calls a run equal only where every file is, and counts whatever else happened."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def kills(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return import_module("reliability_kills")


def runs(monkeypatch, kills, *outcomes):
    """The driver with runs that leave `content` and end with `code`, in this order."""
    left, moments = list(outcomes), []

    def run(recipe, folder, after=None, late=False):
        code, content = left.pop(0)
        moments.append(after)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data.ddr").write_text(content)
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


def test_moments_are_in_turn_after_and_before_the_first_checkpoint_and_follow_the_seed(kills, monkeypatch, tmp_path):
    def run(recipe, folder, after=None, late=False):
        (folder / "checkpoint-2").mkdir(parents=True, exist_ok=True)
        (folder / "data.ddr").write_text("a")
        if after is None and folder.name == "whole":  # it took 40 s to the checkpoint and 20 s from there
            os.utime(folder / "checkpoint-2", (now[0] + 40, now[0] + 40))
            now[0] += 60
        if after is not None:
            moments.append((late, after))
            return -signal.SIGKILL, ""
        return 0, ""

    monkeypatch.setattr(kills, "run", run)
    monkeypatch.setattr(kills.time, "time", lambda: now[0])
    twice = []
    for _ in range(2):
        now, moments = [1000.0], []
        kills.campaign("edit_vit", 4, 7, lambda record: None)
        twice.append(moments)
    assert twice[0] == twice[1]
    assert [late for late, _ in moments] == [True, False, True, False]
    assert all(0 <= after <= (20 if late else 40) for late, after in moments) and len(set(moments)) == 4


def test_a_run_without_products_is_no_success(kills, monkeypatch):
    monkeypatch.setattr(kills, "run", lambda recipe, folder, after=None, late=False: (0, ""))
    records = []
    kills.campaign("edit_vit", 1, 7, records.append)
    assert records[0]["outcome"] == "failed" and "no product" in records[0]["message"]


def test_seconds_are_not_compared_and_everything_else_is(kills, tmp_path):
    def left(value, seconds, rest="a"):
        save_file({"x": torch.tensor([value])}, tmp_path / "a.safetensors", {"seconds": seconds, "rest": rest})
        (tmp_path / "sequence.json").write_text(json.dumps({"tasks": [{"wall_seconds": seconds, "classes": value}]}))
        return kills.products(tmp_path)

    first = left(1.0, "1")
    assert set(first) == {"a.safetensors", "sequence.json"} and first == left(1.0, "2")
    changed = left(2.0, "1")
    assert all(changed[name] != first[name] for name in first)
    assert left(1.0, "1", "b")["a.safetensors"] != first["a.safetensors"]


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


def test_late_kills_wait_for_a_checkpoint(kills, monkeypatch, tmp_path):
    script = tmp_path / "late.py"
    script.write_text(
        "import pathlib, sys, time\ntime.sleep(1)\n"
        f"pathlib.Path({str(tmp_path / 'run' / 'checkpoint-2')!r}).mkdir(parents=True)\nprint('saved', flush=True)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(kills, "find_recipe", lambda name: script)
    assert kills.run("edit_vit", tmp_path / "run", 0.5, True) == (-signal.SIGKILL, "saved\n")
