"""`thurl afine-eval` on small sets: numbers, JSON, the score file, and what it says when something is missing."""

import csv
import json

import pytest
from typer.testing import CliRunner

from thurl.cli import app
from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.generated import texture_contents, write_generated
from thurl.iqa.afine.model import AFineModel


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    write_generated(folder, texture_contents(3, size=32, seed=1), triplets=15, seed=1)
    vision = {"hidden_size": 16, "intermediate_size": 32, "image_size": 32}
    AFineModel(AFineConfig.tiny(projection_size=4, vision_config=vision)).save_pretrained(folder / "model")
    return folder


def run(place, *words):
    return CliRunner().invoke(app, ["afine-eval", *map(str, words), "--model", str(place / "model")])


def test_pairs_of_a_file(place, tmp_path):
    words = (place / "imperfect.csv", "--images", place / "images", "--type", "PNY", "--intervals", 20)
    done = run(place, *words, "--json", "--scores", tmp_path / "scores.csv")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    table = found["tests"]["imperfect"]
    entry = table["accuracy"]["afine"]
    assert table["pairs"] == 15 and entry["all"] == entry["PNY"] == entry["ref_below"] == entry["correct"] / 15
    assert entry["interval"][0] <= entry["all"] <= entry["interval"][1]
    with (tmp_path / "scores.csv").open() as file:
        rows = {(row["reference"], row["image"]): float(row["afine"]) for row in csv.DictReader(file)}
    assert len(rows) == found["settings"]["images"], "each image once"
    with (place / "imperfect.csv").open() as file:
        lines = [line.strip().split(",") for line in file]
    at = {(r.rpartition("/")[2], i.rpartition("/")[2]): value for (r, i), value in rows.items()}
    right = sum((at[ref, a] < at[ref, b]) == (g == "1") for a, b, ref, g, *_ in lines)
    assert right == entry["correct"]
    text = run(place, *words)
    assert text.exit_code == 0 and "imperfect: 15 pairs" in text.stdout and "lower is better" in text.stderr


def test_opinions_have_correlations(place, tmp_path):
    words = (place / "mos", "--format", "by_reference", "--images", place / "images", "--intervals", 0, "--json")
    done = run(place, *words, "--scenes", tmp_path / "scenes.csv")
    assert done.exit_code == 0, done.output
    with (tmp_path / "scenes.csv").open() as file:
        scenes = list(csv.DictReader(file))
    assert len(scenes) == 6 and sum(int(row["pairs"]) for row in scenes) == 6 * 6 * 3
    mean = sum(float(row["fidelity_srcc"]) for row in scenes) / 6
    assert mean == pytest.approx(
        next(iter(json.loads(done.stdout)["tests"].values()))["correlation"]["fidelity"]["srcc"]
    )
    again = run(place, *words, "--scenes", tmp_path / "scenes.csv")
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    (table,) = json.loads(done.stdout)["tests"].values()
    assert set(table["correlation"]["fidelity"]) >= {"srcc", "plcc", "plcc_logistic"}
    assert table["correlation"]["fidelity"]["srcc"] > 0.9, "fidelity follows the level even untrained"
    assert table["pairs"] == 6 * 6 * 3, "n round(log2 n) pairs of six scenes"


def test_what_is_missing_is_said(place, tmp_path):
    done = run(place, place / "none.csv")
    assert done.exit_code == 3 and "none.csv does not exist" in done.stderr
    done = run(place, place / "imperfect.csv", "--images", tmp_path)
    assert done.exit_code == 3 and "pictures are missing" in done.stderr
    done = run(place, place / "imperfect.csv", "--format", "triplet")
    assert done.exit_code == 2 and "did you mean" in done.stderr
    words = ["afine-eval", str(place / "imperfect.csv"), "--images", str(place / "images"), "--model", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (1, 3) and str(tmp_path) in done.stderr
