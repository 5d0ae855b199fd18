"""`thurl afine`."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from thurl.cli import app
from thurl.iqa.afine import AFine, AFineConfig, AFineModel
from thurl.iqa.afine.official import to_official


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    AFineModel(AFineConfig.tiny()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for side in ("ref", "dis", "broken"):
        (root / side).mkdir()
    for name in "ab":
        ref = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(ref).save(root / "ref" / f"{name}.png")
        Image.fromarray(ref // 2).save(root / "dis" / f"{name}.png")
    for side in ("dis", "broken"):
        (root / side / "c.png").write_bytes(b"no picture")
    return root


def run(*arguments):
    return CliRunner().invoke(app, ["afine", *map(str, arguments)])


def test_two_files_are_scored(model, pictures):
    done = run(pictures / "ref" / "a.png", pictures / "dis" / "a.png", "-m", model)
    assert done.exit_code == 0, done.output
    headings, line = done.stdout.splitlines()[:2]
    expected = AFine.from_pretrained(model)(pictures / "ref" / "a.png", pictures / "dis" / "a.png").item()
    assert headings.split()[:2] == ["D_s", "D"] and float(line.split()[0]) == pytest.approx(expected, abs=0.01)
    assert line.endswith("a.png") and "lower is better" in done.stderr
    # The order of the two counts.
    turned = run(pictures / "dis" / "a.png", pictures / "ref" / "a.png", "-m", model)
    assert turned.stdout.splitlines()[1].split()[0] != line.split()[0]


def test_folders_become_csv_and_json_with_bad_files_as_rows(model, pictures, tmp_path):
    target = tmp_path / "deep" / "scores.csv"
    arguments = (pictures / "ref", pictures / "dis", "-m", model, "--json", "--csv", target)
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["ok"] for row in rows] == [True, True, False] and all(row["lower_better"] is True for row in rows)
    assert rows[2]["afine_scaled"] is None and "no reference" in rows[2]["error"]
    assert "c.png" in done.stderr and "2 of 3 pictures scored" in done.stderr
    with target.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["dis"] for line in table] == [row["dis"] for row in rows]
    for line, row in zip(table[:2], rows[:2], strict=True):
        assert float(line["afine_scaled"]) == row["afine_scaled"] and float(line["naturalness_ref"])
    assert table[2]["afine_scaled"] == "" and table[2]["ok"] == "False"
    again = run(*arguments)
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    assert run(*arguments, "--overwrite").exit_code == 0


def test_naturalness_needs_no_reference(model, pictures):
    done = run(pictures / "dis", pictures / "ref" / "a.png", "--no-reference", "-m", model, "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["ok"] for row in rows] == [True, True, False, True]
    assert all(row["naturalness_dis"] is not None and row["afine"] is None for row in rows if row["ok"])
    plain = run(pictures / "dis", "--nr", "-m", model)
    assert plain.stdout.splitlines()[0].split() == ["naturalness", "picture"]


def test_the_command_says_what_is_wrong(model, pictures, tmp_path):
    done = run(pictures / "ref", "-m", model, "--dtype", "int8", "--csv", tmp_path)
    assert done.exit_code == 2
    assert all(word in done.stderr for word in ("REF and DIST", "int8", "this is a folder"))
    assert run(pictures / "ref", pictures / "none", "-m", model).exit_code == 1
    done = run(pictures / "ref", pictures / "dis", "-m", tmp_path / "none")
    assert done.exit_code == 3 and "no A-FINE model" in done.stderr
    done = run(pictures / "broken", "--nr", "-m", model)
    assert done.exit_code == 1 and "none of the 1 pictures" in done.stderr


def test_a_release_is_converted_and_parts_it_lacks_are_not_scored_with(model, pictures, tmp_path):
    state = to_official(AFineModel.from_pretrained(model))
    torch.save(state, tmp_path / "afine.pth")  # noqa: TID251 - the released file is a pickle
    done = run("convert", tmp_path / "afine.pth", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert "adapter.k  5\n" in done.stdout and "naturalness_map.centre  4.9592" in done.stdout
    pair = pictures / "ref" / "a.png", pictures / "dis" / "a.png"
    scores = {run(*pair, "-m", place).stdout for place in (model, tmp_path / "model", tmp_path / "afine.pth")}
    assert len(scores) == 1
    assert run("convert", tmp_path / "afine.pth", tmp_path / "model").exit_code == 2

    del state["adapter"], state["fidelity"]
    torch.save(state, tmp_path / "part.pth")  # noqa: TID251 - as above
    done = run("convert", tmp_path / "part.pth", tmp_path / "part")
    assert done.exit_code == 1 and "adapter: the whole part is missing" in done.stderr
    done = run("convert", tmp_path / "part.pth", tmp_path / "part", "--allow-missing", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["untrained"] == ["fidelity_head", "adapter"]
    done = run(*pair, "-m", tmp_path / "part")
    assert done.exit_code == 1 and "fidelity_head, adapter" in done.stderr
    assert run(pair[1], "--nr", "-m", tmp_path / "part").exit_code == 0
