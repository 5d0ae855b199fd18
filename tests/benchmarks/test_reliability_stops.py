"""The campaign of stopped runs counts what is wrong as wrong; the runs themselves are its own."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from thurl.training.checkpoints import write_manifest


FOLDER = Path(__file__).parents[2] / "benchmarks"
GOOD = {
    "code": 1, "unsaid": [], "traceback": False, "broken": [], "not_finite": [], "second_code": 0, "changed": [],
    "last_words": "No space left on device",
}  # fmt: skip


@pytest.fixture(scope="module")
def campaign():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        yield SimpleNamespace(**{name: import_module(name) for name in ("reliability_stops", "stopped_runs")})


@pytest.mark.parametrize(
    ("kind", "doctored", "outcome"),
    [
        ("disk", {}, "expected"),
        ("sigterm", {"code": 143}, "expected"),
        ("sigterm", {"code": -15}, "expected"),
        ("dead", {"code": 1}, "expected"),
        ("disk", {"code": None}, "hung"),
        ("disk", {"second_code": None}, "hung"),
        ("disk", {"broken": ["checkpoint-2: model.safetensors is missing"]}, "lost"),
        ("rate", {"code": 0, "not_finite": ["model.safetensors"]}, "lost"),
        ("nan", {"not_finite": ["checkpoint-4/model.safetensors"]}, "lost"),
        ("disk", {"second_code": 1}, "different"),
        ("sigterm", {"code": 143, "changed": ["model.safetensors"]}, "different"),
        ("sigterm", {"code": 1}, "code"),
        ("disk", {"code": 143}, "code"),
        ("nan", {"code": 0}, "code"),
        ("disk", {"traceback": True}, "message"),
        ("nan", {"unsaid": ["Step 4 "]}, "message"),
        ("disk", {"code": 0}, "missed"),
    ],
)
def test_a_doctored_outcome_is_counted_as_wrong(campaign, kind, doctored, outcome):
    assert campaign.reliability_stops.judge(kind, {**GOOD, **doctored}) == outcome


@pytest.mark.parametrize(("changed", "status"), [([], 0), (["model.safetensors"], 1)])
def test_cases_are_counted_by_kind_and_recipe_and_decide_the_status(campaign, tmp_path, monkeypatch, changed, status):
    stops = campaign.reliability_stops

    class Undisturbed:
        path = tmp_path

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        used = staticmethod(lambda: 2**20)
        wait = staticmethod(lambda seconds: 0)

    monkeypatch.setattr(stops, "preload", lambda: None)
    monkeypatch.setattr(stops, "Place", Undisturbed)
    monkeypatch.setattr(stops, "Run", lambda *_, **__: Undisturbed())
    draws = []

    def strike(kind, recipe, draw, expected, size, *_):
        assert 0.1 * 2**20 <= size <= 0.95 * 2**20
        draws.append((kind, draw.random()))
        return {**GOOD, "changed": changed if kind == "nan" else []}

    monkeypatch.setattr(stops, "strike", strike)
    out = tmp_path / "out.json"
    options = ["--recipes", "exif_ordinal", "--kinds", "disk", "nan", "dead", "--out", str(out)]
    assert stops.main(options) == status
    first = list(draws)
    assert stops.main([*options, "--seed", "2"]) == status and {kind for kind, _ in first} == {"disk", "nan"}
    assert len(set(draws)) == 6  # every case has moments of its own
    written = json.loads(out.read_text())
    wrong = "different" if changed else "expected"
    groups = written["runs"][0]["groups"]
    assert groups["disk: exif_ordinal"]["expected"] == groups["disk: exif_ordinal"]["cases"] == 2
    assert groups["nan: exif_ordinal"]["cases"] == groups["nan: exif_ordinal"][wrong] == 1
    assert [case["kind"] for case in written["cases"]] == ["disk", "disk", "nan"]
    assert ("last_words" in written["cases"][-1]) == bool(changed)


def test_what_a_run_left_is_looked_at(campaign, tmp_path):
    runs = campaign.stopped_runs
    for step in (2, 4):
        folder = tmp_path / "stage" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
        write_manifest(folder, step=step)
    assert runs.broken_checkpoints(tmp_path) == [] and runs.not_finite_files(tmp_path) == []
    save_file({"weight": torch.tensor([1.0, torch.nan])}, folder / "model.safetensors")
    assert runs.not_finite_files(tmp_path) == ["stage/checkpoint-4/model.safetensors"]
    assert len(runs.broken_checkpoints(tmp_path)) == 1
    (tmp_path / "log.jsonl").write_text('{"loss": 1, "step": 1}\n{"eval_loss": 2, "step": 1}\n{"lo')
    (tmp_path / "stage" / "log.jsonl").write_text('{"loss": 1, "step": 1}\n')
    assert runs.logged_steps(tmp_path) == 2


def test_the_poison_spoils_one_step_of_any_trainer(campaign, monkeypatch):
    class Tiny(campaign.stopped_runs.Trainer):
        def __init__(self):
            self.state = SimpleNamespace(global_step=0)

        def compute_loss(self, *_):
            return torch.tensor(2.0)

    monkeypatch.setattr(campaign.stopped_runs.Trainer, "training_step", lambda self: self.compute_loss())
    campaign.stopped_runs.poison(3)
    tiny, losses = Tiny(), []
    for step in range(4):
        tiny.state.global_step = step
        losses.append(float(tiny.training_step()))
    assert losses[:2] == [2.0, 2.0] and losses[2] != losses[2] and losses[3] == 2.0


def test_every_recipe_of_the_campaign_is_one_that_can_be_shortened(campaign):
    from thurl.recipe.shipped import find_recipe
    from thurl.recipe.validate import load_recipe

    stops = campaign.reliability_stops
    for recipe, changes in stops.SMALL.items():
        load_recipe(str(find_recipe(f"tiny/{recipe}")), (*stops.SHORT[recipe], *changes, *stops.RATES.get(recipe, ())))


def test_what_a_full_disk_struck_is_read_from_the_message(campaign):
    place, struck = Path("/disk"), campaign.reliability_stops._struck
    full = "No space left on device (0.0 MiB free in /disk)"
    assert struck(f"failed:\n  The checkpoint of step 2 could not be written: /disk: {full}", place) == "checkpoint"
    assert struck(f"failed:\n  /disk/report.html: {full}. Make room", place) == "report.html"
    assert struck(f"failed:\n  /disk: {full}. Make room", place) == "folder"
