"""The learning study of A-FINE: which numbers miss the bar, the MSE baseline, rows of the tables, one short run."""

import copy
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thurl.iqa.afine.triplets import Triplet
from thurl.training.results import read_results


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "afine_learning.py"


@pytest.fixture(scope="module")
def study():
    spec = spec_from_file_location("afine_learning", SCRIPT)
    module = module_from_spec(spec)
    sys.modules["afine_learning"] = module
    spec.loader.exec_module(module)
    return module


def moment(naturalness, fidelity, afine, perfect_afine=0.98):
    return {
        "perfect": {"naturalness": naturalness, "fidelity": 0.99, "afine": perfect_afine},
        "imperfect": {"naturalness": naturalness, "fidelity": fidelity, "afine": afine},
    }


GOOD = {
    "seed": 1,
    "content": "textures",
    "before": moment(0.5, 0.75, 0.75),
    "after_naturalness": moment(0.95, 0.75, 0.85),
    "after_fidelity": moment(0.95, 0.75, 0.90),
    "after_adapter": moment(0.95, 0.75, 0.92),
    "control_adapter": moment(0.5, 0.75, 0.74),
    "mse": {"perfect": 1.0, "imperfect": 0.78},
}


def test_a_good_run_misses_nothing(study):
    assert study.missed(GOOD) == []


@pytest.mark.parametrize(
    ("when", "references", "score", "value", "missed"),
    [
        ("after_naturalness", "perfect", "naturalness", 0.92, {"naturalness_perfect"}),
        ("after_naturalness", "imperfect", "naturalness", 0.92, {"naturalness_imperfect"}),
        ("after_fidelity", "perfect", "fidelity", 0.965, {"fidelity_perfect", "fidelity_drop"}),
        ("after_adapter", "imperfect", "afine", 0.86, {"afine_imperfect", "adapter_drop"}),
        ("after_adapter", "imperfect", "afine", 0.875, {"adapter_drop"}),
        ("after_adapter", "imperfect", "fidelity", 0.86, {"afine_gain_fidelity"}),
        ("after_adapter", "perfect", "afine", 0.96, {"afine_perfect"}),
        ("before", "imperfect", "naturalness", 0.94, {"untrained"}),
        ("control_adapter", "perfect", "naturalness", 0.75, {"control_perfect"}),
        ("control_adapter", "imperfect", "afine", 0.83, {"control_gain"}),
        ("after_adapter", "imperfect", "afine", float("nan"), None),
    ],
)
def test_each_bar_can_be_missed(study, when, references, score, value, missed):
    record = copy.deepcopy(GOOD)
    record[when][references][score] = value
    found = set(study.missed(record))
    assert found == missed if missed is not None else found >= {"afine_imperfect", "afine_gain_mse"}


def test_rows_for_the_tables(study):
    row = study.with_rows(GOOD | {"missed": []})
    assert study.with_rows(row) == row
    assert row["misses"] == "nothing"
    assert study.with_rows(GOOD | {"missed": ["untrained", "fidelity_drop"]})["misses"] == "untrained, fidelity_drop"
    assert row["textures"]["imperfect"] == {
        "mse": 0.78,
        "naturalness_before": 0.5,
        "naturalness": 0.95,
        "fidelity_before": 0.75,
        "fidelity": 0.75,
        "afine_before": 0.90,
        "afine": 0.92,
    }
    assert row["control_textures"]["perfect"]["naturalness"] == 0.5


def test_squared_error_judges_pairs(study, tmp_path):
    for value in (100, 110, 150):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / f"{value}.png")
    near, far, reference = (str(tmp_path / f"{value}.png") for value in (110, 150, 100))
    assert study.mse_accuracy([Triplet(near, far, reference, 1), Triplet(near, far, reference, 0)]) == 0.5
    assert study.mse_accuracy([Triplet(far, near, reference, 0)]) == 1.0


def test_a_short_study_writes_its_file(study, tmp_path, monkeypatch, capsys):
    short = [f"data.train.{i}.{key}" for i in (0, 1) for key in ("contents=3", "triplets=12", "size=32")]
    short += [f"evaluation.sources.{i}.{key}" for i in (0, 1) for key in ("contents=3", "triplets=8", "size=32")]
    short += ["model.tiny.hidden=16", "model.tiny.image_size=32", "training.per_device_train_batch_size=4"]
    short += [f"{stage}.training.max_steps=1" for stage in ("naturalness", "fidelity", "adapter")]
    words = ["--seeds", "7", "--control", "7", "--out", str(tmp_path / "r.json"), "--work", str(tmp_path / "work")]
    assert study.main([*words, *short]) == 1, "one step cannot pass"
    document = read_results(tmp_path / "r.json")
    (run,) = document["runs"]
    assert run["seed"] == 7 and run["content"] == "textures" and "naturalness_perfect" in run["missed"]
    assert run["textures"]["perfect"]["afine"] == run["after_adapter"]["perfect"]["afine"]
    assert "MISSED" in capsys.readouterr().out
    assert study.main(["--join", str(tmp_path / "r.json"), "--out", str(tmp_path / "joined.json")]) == 1
    assert read_results(tmp_path / "joined.json")["runs"] == document["runs"]
