"""Files and folders: pairing, rows for what cannot be scored, references computed once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.errors import DataError
from thurl.iqa.afine import AFine, AFineModel, pair_files, score_pairs
from thurl.iqa.afine.files import COLUMNS
from thurl.iqa.afine.pairing import Pair


SIZES = {"a": (64, 48), "b": (40, 70), "c": (64, 48)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """References a, b, c, three versions of a and b, and what people leave lying about."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name in ("ref", "dis/deep"):
        (root / name).mkdir(parents=True)
    for name, (height, width) in SIZES.items():
        ref = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(ref).save(root / "ref" / f"{name}.png")
        for version in range(3 if name != "c" else 0):
            dis = np.clip(ref + generator.normal(0, 10 + 20 * version, ref.shape), 0, 255).astype(np.uint8)
            Image.fromarray(dis).save(root / "dis" / f"{name}_{version}.png")
    (root / "dis" / "a_broken.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(root / "dis" / "a-small.png")
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(root / "dis" / "lonely.png")
    Image.open(root / "ref" / "b.png").save(root / "dis" / "deep" / "b.bmp")
    return root


def score(model, *arguments, **options):
    pairs, _ = pair_files(*arguments, match=options.pop("match", "prefix"), recursive=options.pop("recursive", False))
    return list(score_pairs(model, pairs, **options))


# --- pairing ---------------------------------------------------------------------------------------------------------


def names(pairs):
    return {pair.dis.rsplit("/", 1)[1]: pair.ref and pair.ref.rsplit("/", 1)[1] for pair in pairs}


def test_one_reference_serves_a_folder(folder):
    pairs, unused = pair_files(folder / "ref" / "a.png", folder / "dis")
    assert set(names(pairs).values()) == {"a.png"} and len(pairs) == 9 and unused == []
    pairs, _ = pair_files(folder / "ref" / "a.png", [folder / "dis" / "a_0.png", folder / "dis" / "a_1.png"])
    assert list(names(pairs)) == ["a_0.png", "a_1.png"]


def test_references_are_found_by_name_or_by_prefix(folder, tmp_path):
    pairs, unused = pair_files(folder / "ref", folder / "dis", match="prefix", recursive=True)
    found = names(pairs)
    assert found.pop("lonely.png") is None
    assert all(found[name] == f"{name[0]}.png" for name in found) and "b.bmp" in found
    assert [path.rsplit("/", 1)[1] for path in unused] == ["c.png"]
    (lonely,) = [pair for pair in pairs if pair.ref is None]
    assert "'lonely'" in lonely.problem

    for name in ("x.png", "x_y.png", "deep/x.png"):
        (tmp_path / "ref" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ref" / name).touch()
    for name in ("x.jpg", "x_y_4.jpg", "x2.jpg", "deep/x.jpg"):
        (tmp_path / "dis" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dis" / name).touch()
    pairs, unused = pair_files(tmp_path / "ref", tmp_path / "dis", recursive=True)
    assert [pair.ref and pair.ref.split("/ref/")[1] for pair in pairs] == ["deep/x.png", "x.png", None, None]
    assert "prefix" in pairs[2].problem and len(unused) == 1
    pairs, _ = pair_files(tmp_path / "ref", tmp_path / "dis", match="prefix")
    # The longest name wins; x2 is another name, not a version of x.
    assert [pair.ref and pair.ref.split("/ref/")[1] for pair in pairs] == ["x.png", None, "x_y.png"]
    pairs, _ = pair_files(tmp_path / "ref", tmp_path / "dis", match="prefix", recursive=True)
    assert "2 references fit" in pairs[0].problem


def test_missing_folders_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        pair_files(folder / "ref", tmp_path / "none")
    with pytest.raises(DataError, match="no pictures in"):
        pair_files(tmp_path, folder / "dis")


# --- scoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_rows_hold_every_stage_and_bad_files_are_named(golden_model, folder, batch_size):
    rows = score(golden_model, folder / "ref", folder / "dis", batch_size=batch_size)
    by_name = {row.dis.rsplit("/", 1)[1]: row for row in rows}
    assert [row.dis for row in rows] == sorted(row.dis for row in rows)
    bad = {name: row.error for name, row in by_name.items() if not row.ok}
    assert set(bad) == {"a_broken.png", "a-small.png", "lonely.png"}
    assert "a_broken.png: not a picture" in bad["a_broken.png"]
    assert "10x10 pixels, its reference 48x64" in bad["a-small.png"]
    metric = AFine(golden_model)
    for name, row in by_name.items():
        if not row.ok:
            assert math.isnan(row.afine_scaled) and math.isnan(row.naturalness_dis)
            assert row.row()["afine"] is None and row.error
            continue
        output = metric.components(folder / "ref" / f"{name[0]}.png", folder / "dis" / name)
        for field in COLUMNS[3:-1]:
            assert getattr(row, field) == pytest.approx(output[field].item(), abs=1e-3), (name, field)


def test_naturalness_alone_needs_no_reference(golden_model, folder):
    rows = score(golden_model, None, folder / "dis")
    assert len(rows) == 9 and [row.ok for row in rows].count(False) == 1
    for row in rows:
        if row.ok:
            expected = AFine(golden_model, "afine_nr")(row.dis).item()
            assert row.naturalness_dis == pytest.approx(expected, abs=1e-4)
            assert row.ref == "" and math.isnan(row.afine) and row.row()["fidelity"] is None


@pytest.mark.parametrize(("options", "passes"), [({}, 7), ({"cache_bytes": 0}, 12)])
def test_a_reference_goes_through_the_tower_once(golden_model, folder, monkeypatch, options, passes):
    seen = []
    original = AFineModel.features
    monkeypatch.setattr(AFineModel, "features", lambda self, x, **o: seen.append(len(x)) or original(self, x, **o))
    pairs = [
        Pair(str(folder / "dis" / f"a_{version}.png"), str(folder / "ref" / "a.png")) for version in (0, 1, 2, 0, 1, 2)
    ]
    rows = list(score_pairs(golden_model, pairs, batch_size=1, **options))
    assert sum(seen) == passes
    assert [row.afine for row in rows[:3]] == pytest.approx([row.afine for row in rows[3:]], abs=1e-5)


def test_large_pictures_go_through_the_tower_in_portions(golden_model, folder, monkeypatch):
    whole = score(golden_model, folder / "ref" / "a.png", folder / "dis")
    seen = []
    original = AFineModel.features
    monkeypatch.setattr(AFineModel, "features", lambda self, x, **o: seen.append(len(x)) or original(self, x, **o))
    portions = score(golden_model, folder / "ref" / "a.png", folder / "dis", batch_pixels=2 * 64 * 48)
    assert seen == [3, 1]  # the reference and two pictures, then the third
    assert [row.ok for row in portions] == [row.ok for row in whole]


def test_an_unreadable_reference_is_said_for_each_of_its_pictures(golden_model, folder, monkeypatch):
    rows = score(golden_model, folder / "dis" / "a_broken.png", folder / "ref", batch_size=2)
    assert not any(row.ok for row in rows) and len(rows) == 3
    assert all(row.error.startswith("the reference: ") and "a_broken.png" in row.error for row in rows)


def test_a_score_that_is_no_number_is_a_failure(golden_model, folder, monkeypatch):
    monkeypatch.setattr(golden_model.adapter.k, "data", torch.tensor([torch.nan]))
    (row,) = score(golden_model, folder / "ref" / "a.png", folder / "dis" / "a_0.png")
    assert not row.ok and "no finite number" in row.error and math.isnan(row.fidelity)


def test_a_batch_of_nothing_is_refused(golden_model):
    with pytest.raises(ValueError, match="batch_size"):
        list(score_pairs(golden_model, [], batch_size=0))
