"""The evaluator: the challenge's rules end to end, bad files as named rows, resuming, equal bytes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.errors import MissingRequirementError, UsageError
from thurl.iqa.face_restoration.cache import ResultCache
from thurl.iqa.face_restoration.discovery import find_faces
from thurl.iqa.face_restoration.evaluation import IdentityRuleError, IncompleteSetError, evaluate_faces
from thurl.iqa.face_restoration.interface import (
    Metric,
    MetricContext,
    SetMetric,
    SetResult,
    WeightFile,
    register_metric,
)
from thurl.iqa.face_restoration.landmarks import COLUMNS, FFHQ_512
from thurl.iqa.face_restoration.protocol import NTIRE2025
from thurl.iqa.face_restoration.report import contact_sheet, per_image_csv, write_evaluation
from thurl.iqa.face_restoration.settings import EvaluationSettings, choose_metrics

from .conftest import QUICK, blurred, procedural, rows_of, settings, write


GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "ntire_score_tiny.json").read_text())["aggregation"]


# --- the challenge ---------------------------------------------------------------------------------------------------


def stub(name, table, needs=frozenset()):
    """A metric that knows the golden value of each picture."""

    class Known(Metric):
        def score(self, batch):
            return torch.tensor([table[key.split("/")[1] + ".png"] for key in batch.keys], dtype=torch.float64)

    Known.name, Known.needs = name, frozenset(needs)
    return Known


@pytest.fixture
def golden_set(tmp_path, registry):
    """The golden pictures of the official aggregation as files, with metrics that return their golden values."""
    names = {"NIQE": "niqe", "CLIP_IQA": "clipiqa", "MANIQA": "maniqa", "MUSIQ": "musiq", "QALIGN": "qalign"}
    for official, ours in names.items():
        registry[ours] = stub(ours, {key: row[official] for key, row in GOLDEN["per_image"].items()})
    similarity = {key: row["ID_Sim"] for key, row in GOLDEN["per_image"].items()}
    registry["id_sim"] = stub("id_sim", similarity, {"lq", "landmarks"})

    class Fid(SetMetric):
        name = "fid"

        def features(self, batch):
            return torch.zeros(len(batch), 1)

        def update(self, features):
            self.count = len(features)

        def compute(self):
            return SetResult(GOLDEN["fid"], {"count": self.count})

    registry["fid"] = Fid
    for key, row in GOLDEN["per_image"].items():
        for kind in ("restored", "lq"):
            write(tmp_path / kind / row["Dataset"] / key, np.full((16, 16, 3), 90 + (kind == "lq"), dtype=np.uint8))
    return tmp_path


def challenge(folder, **changes):
    values = {"restored": folder / "restored", "lq": folder / "lq", "protocol": "ntire2025"}
    return EvaluationSettings(**values | changes)


def test_the_whole_evaluation_gives_the_official_table(golden_set):
    evaluation = evaluate_faces(challenge(golden_set, allow_missing=True))
    summary, expected = evaluation.summary, GOLDEN["expected"]
    assert summary["score"]["total"] == pytest.approx(expected["Weighted Score"]["Total"], rel=1e-9)
    assert summary["score"]["label"] == "6 of 6"
    assert summary["overall"]["niqe"] == pytest.approx(expected["All"]["NIQE"], rel=1e-9)
    assert summary["overall"]["id_sim"] == pytest.approx(expected["All"]["ID_Sim"], rel=1e-9)
    assert summary["identity"]["failures"] == expected["All"]["low_ID_Sim"]
    for dataset, entry in summary["datasets"].items():
        assert entry["means"]["musiq"] == pytest.approx(expected[dataset]["MUSIQ"], rel=1e-9)
        assert entry["identity_failures"] == expected[dataset]["low_ID_Sim"]
    assert summary["sets"]["fid"] == {"count": 20}
    # 430 of the 450 faces are not there, so the rule of ten failures stays open.
    assert summary["identity"]["unchecked"] == 430 and summary["identity"]["valid"] is None
    evaluation.raise_for_status(strict=True)


def test_an_incomplete_set_gets_no_score_unless_that_is_allowed(golden_set):
    evaluation = evaluate_faces(challenge(golden_set))
    assert evaluation.summary["score"]["total"] is None
    assert any("430 pictures" in reason for reason in evaluation.summary["incomplete"])
    with pytest.raises(IncompleteSetError, match="430 pictures"):
        evaluation.raise_for_status()


@pytest.mark.parametrize(("failures", "valid"), [(10, True), (11, False)])
def test_a_full_set_is_valid_up_to_ten_failures(tmp_path, registry, failures, valid):
    pixels = np.full((8, 8, 3), 100, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    lost = [("CelebA", number) for number in range(failures)]
    for dataset, face in NTIRE2025.items():
        for kind in ("restored", "lq"):
            (tmp_path / kind / dataset).mkdir(parents=True)
            for number in range(face.images):
                (tmp_path / kind / dataset / f"{number}.png").write_bytes(stream.getvalue())

    class Similarity(Metric):
        name = "id_sim"
        needs = frozenset({"lq", "landmarks"})

        def score(self, batch):
            limits = [NTIRE2025[key.split("/")[0]].threshold for key in batch.keys]
            lower = [(key.split("/")[0], int(key.split("/")[1])) in lost for key in batch.keys]
            return torch.tensor([t - 1e-6 * low for t, low in zip(limits, lower, strict=True)], dtype=torch.float64)

        def fingerprint(self):
            return "by place"

    registry["id_sim"] = Similarity
    evaluation = evaluate_faces(
        challenge(tmp_path, metrics=("id_sim",), batch_size=64, context=MetricContext()), lambda done, total: None
    )
    identity = evaluation.summary["identity"]
    assert evaluation.summary["incomplete"] == []
    assert (identity["checked"], identity["unchecked"]) == (450, 0)
    assert identity["failures"] == failures and identity["valid"] is valid
    assert len(identity["failed"]) == failures
    assert any("copies of their input" in warning for warning in evaluation.summary["warnings"])
    if valid:
        evaluation.raise_for_status(strict=True)
    else:
        evaluation.raise_for_status()
        with pytest.raises(IdentityRuleError):
            evaluation.raise_for_status(strict=True)
    sheet = contact_sheet([row for row in evaluation.rows if row.passes is False])
    assert sheet.size[0] == 4 * 2 * 192


def test_the_challenge_knows_its_data_sets_and_needs_inputs(golden_set):
    with pytest.raises(UsageError, match="identity rule of ntire2025 needs --lq"):
        choose_metrics(challenge(golden_set, lq=None))
    write(golden_set / "restored" / "Other" / "x.png", procedural(0, 16))
    with pytest.raises(UsageError, match="Other"):
        evaluate_faces(challenge(golden_set))


def test_dropped_terms_are_named(golden_set, registry):
    class Missing(registry["qalign"]):
        requires = (WeightFile("qalign", ("qalign",), "nowhere"),)

    registry["qalign"] = Missing
    with pytest.raises(MissingRequirementError, match="qalign"):
        evaluate_faces(challenge(golden_set, allow_missing=True))
    summary = evaluate_faces(challenge(golden_set, allow_missing=True, skip_missing=True)).summary
    assert summary["score"]["label"] == "partial (5 of 6)" and summary["score"]["missing"] == ["qalign"]
    assert summary["score"]["total"] == pytest.approx(
        GOLDEN["expected"]["Weighted Score"]["Total"] - GOLDEN["expected"]["Weighted Score"]["QALIGN"], rel=1e-9
    )
    assert list(summary["skipped"]) == ["qalign"]


# --- files that are wrong --------------------------------------------------------------------------------------------


def test_every_bad_file_is_a_named_row_and_the_run_goes_on(faces):
    restored = faces / "restored" / "CelebA"
    whole = (restored / "0.png").read_bytes()
    (restored / "0.png").write_bytes(whole[: len(whole) // 2])  # corrupt
    (restored / "1.png").write_bytes(b"")  # zero bytes
    write(restored / "2.png", procedural(12, 1))  # one pixel
    (faces / "lq" / "Wider-Test" / "0.png").unlink()  # missing pair
    (faces / "restored" / "Wider-Test" / "1.png").unlink()  # never restored
    write(faces / "restored" / "Wider-Test" / "2.jpg", procedural(2))  # one name twice in a set
    scene = procedural(30)
    for kind in ("gt", "lq", "restored"):
        write(faces / kind / "Other" / "grey.png", scene)
        write(faces / kind / "Other" / "deep.png", scene)
        write(faces / kind / "Other" / "alpha.png", scene)
    grey = scene[..., 0]
    Image.fromarray(grey).save(faces / "restored" / "Other" / "grey.png")  # not RGB
    Image.fromarray(grey.astype(np.uint16) * 257).save(faces / "restored" / "Other" / "deep.png")
    alpha = np.concatenate([scene, np.zeros_like(scene[..., :1])], axis=2)
    Image.fromarray(alpha, "RGBA").save(faces / "restored" / "Other" / "alpha.png")
    evaluation = evaluate_faces(settings(faces, metrics=("psnr", "lq_psnr_8", "tenengrad", "clipping")))
    rows = {(row["dataset"], row["name"]): row for row in rows_of(evaluation)}
    assert list(rows) == sorted(rows)
    error = {key: row["error"] for key, row in rows.items()}
    assert "truncated or corrupt" in error["CelebA", "0"]
    assert "0 bytes" in error["CelebA", "1"]
    assert "1x1" in error["CelebA", "2"] and "psnr: " in error["CelebA", "2"]
    assert error["Wider-Test", "0"] == "without an LQ picture"
    assert rows["Wider-Test", "0"]["psnr"] and not rows["Wider-Test", "0"]["lq_psnr_8"]
    assert error["Wider-Test", "1"] == "without a restored picture"
    assert "2 files of one name: 2.jpg, 2.png" in error["Wider-Test", "2"]
    assert [error["Other", name] for name in ("alpha", "deep", "grey")] == ["", "", ""]
    assert float(rows["Other", "alpha"]["clipping"]) == 1.0  # transparent is black
    assert math.isclose(float(rows["Other", "deep"]["psnr"]), float(rows["Other", "grey"]["psnr"]))
    for key in (("CelebA", "0"), ("CelebA", "1"), ("Wider-Test", "1")):
        assert all(rows[key][metric] == "" for metric in ("psnr", "lq_psnr_8", "tenengrad"))
    warnings = "\n".join(evaluation.summary["warnings"])
    assert "transparency put on black (1): Other/alpha" in warnings and "16 bits scaled to 8" in warnings
    assert "without an LQ picture: Wider-Test/0" in warnings
    assert str(faces) not in per_image_csv(evaluation)
    with pytest.raises(IncompleteSetError, match="6 pictures with errors"):
        evaluation.raise_for_status()


def test_equal_names_in_two_sets_stay_apart(faces):
    rows = rows_of(evaluate_faces(settings(faces)))
    assert [(row["dataset"], row["name"]) for row in rows][::3] == [("CelebA", "0"), ("Wider-Test", "0")]
    assert rows[0]["psnr"] != rows[3]["psnr"]
    assert all(row["error"] == "" for row in rows)


def test_pairs_are_found_whatever_the_ending_and_below_subfolders(faces):
    pixels = np.asarray(Image.open(faces / "lq" / "CelebA" / "0.png"))
    (faces / "lq" / "CelebA" / "0.png").unlink()
    write(faces / "lq" / "CelebA" / "0.JPEG", pixels, quality=95)
    for kind in ("gt", "lq", "restored"):
        write(faces / kind / "CelebA" / "more" / "0.png", procedural(5))
        write(faces / kind / "loose.webp", procedural(6))
    items = {item.key: item for item in find_faces(faces / "restored", lq=faces / "lq", gt=faces / "gt").items}
    assert items["CelebA/0"].lq.name == "0.JPEG"
    assert items["CelebA/more/0"].problems == () and items["./loose"].problems == ()


def test_pictures_of_several_sizes_are_scored_as_they_would_be_alone(faces):
    for number, side in enumerate((200, 176)):
        for kind, sigma in (("gt", 0), ("lq", 3), ("restored", 1)):
            write(faces / kind / "Sizes" / f"{number}.png", blurred(procedural(number, side), sigma))
    together = evaluate_faces(settings(faces, batch_size=8)).rows
    alone = evaluate_faces(settings(faces, batch_size=1)).rows
    for a, b in zip(together, alone, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-12)


def test_inputs_that_do_not_fit_are_all_told(tmp_path, faces):
    with pytest.raises(UsageError) as error:
        find_faces(tmp_path / "no", lq=tmp_path / "none")
    assert len(error.value.problems) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no picture"):
        find_faces(tmp_path / "empty")
    for changes in ({"protocol": "x"}, {"batch_size": 0}, {"id_threshold": 2.0},
                    {"protocol": "ntire2025", "id_threshold": 0.3}):  # fmt: skip
        with pytest.raises(UsageError):
            settings(faces, **changes)
    with pytest.raises(UsageError) as error:
        choose_metrics(settings(faces, gt=None, metrics=("psnr", "tenengrd", "ms_ssim")))
    text = "\n".join(error.value.problems)
    assert "psnr needs --gt" in text and "did you mean `tenengrad`" in text and "ms_ssim needs --gt" in text


def test_a_group_takes_what_the_inputs_allow(faces):
    names, skipped = choose_metrics(settings(faces, gt=None, metrics=("classic",)))
    assert "lq_psnr_8" in names and "psnr" not in names and "niqe_fitted" not in names
    assert skipped["psnr"] == ["--gt is not given"]
    with pytest.raises(MissingRequirementError) as error:
        choose_metrics(settings(faces, metrics=("official",)))
    text = "\n".join(error.value.problems)
    for name in ("niqe", "clipiqa", "maniqa", "musiq", "qalign", "fid", "id_sim"):
        assert any(name in line.split(": ")[0].split(", ") for line in error.value.problems), name
    assert text.count("`pyiqa` is not installed") == 1  # one thing, one line, whatever wants it


# --- landmarks -------------------------------------------------------------------------------------------------------


def test_landmarks_come_from_the_file_or_are_the_fixed_ones(faces, registry):
    seen = {}

    class Points(Metric):
        name = "points"
        needs = frozenset({"landmarks"})

        def score(self, batch):
            seen.update(zip(batch.keys, np.asarray(batch.landmarks), strict=True))
            return torch.ones(len(batch))

    register_metric(Points)
    evaluation = evaluate_faces(settings(faces, metrics=("points",)))
    np.testing.assert_allclose(seen["CelebA/0"], np.array(FFHQ_512) * 192 / 512)
    assert any("fixed points" in warning for warning in evaluation.summary["warnings"])
    table = faces / "points.csv"
    lines = [",".join(("filename", "dataset", *COLUMNS)), "0,CelebA," + ",".join(map(str, range(10)))]
    table.write_text("\n".join(lines) + "\n")
    evaluation = evaluate_faces(settings(faces, metrics=("points",), landmarks=table))
    np.testing.assert_array_equal(seen["CelebA/0"], np.arange(10).reshape(5, 2))
    rows = {(row["dataset"], row["name"]): row for row in rows_of(evaluation)}
    assert rows["CelebA", "0"]["points"] == "1"
    assert rows["CelebA", "1"]["points"] == "" and rows["CelebA", "1"]["error"] == "without landmarks"
    unused = evaluate_faces(settings(faces, metrics=("tenengrad",), landmarks=table))
    assert unused.summary["incomplete"] == []


# --- the same bytes --------------------------------------------------------------------------------------------------


def test_runs_workers_and_resumed_runs_write_the_same_bytes(faces, registry):
    calls = []

    @register_metric
    class Counted(Metric):
        name = "counted"

        def score(self, batch):
            calls.extend(batch.keys)
            return batch.pixels("restored").std(dim=(1, 2, 3))

    chosen = (*QUICK, "ssim", "noise_sigma", "counted")
    first = per_image_csv(evaluate_faces(settings(faces, metrics=chosen, batch_size=2)))
    assert per_image_csv(evaluate_faces(settings(faces, metrics=chosen, batch_size=2))) == first
    assert per_image_csv(evaluate_faces(settings(faces, metrics=chosen, batch_size=2, workers=2))) == first
    cache = faces / "cache"
    evaluate_faces(settings(faces, metrics=chosen, batch_size=2, cache=cache))
    lines = (cache / "values.jsonl").read_text().splitlines(keepends=True)
    # Killed after a third, in the middle of a line.
    (cache / "values.jsonl").write_text("".join(lines[: len(lines) // 3]) + lines[len(lines) // 3][:20])
    calls.clear()
    assert per_image_csv(evaluate_faces(settings(faces, metrics=chosen, batch_size=2, cache=cache))) == first
    assert 0 < len(calls) < 6
    calls.clear()
    again = evaluate_faces(settings(faces, metrics=chosen, batch_size=3, cache=cache))
    assert per_image_csv(again) == first and calls == []


def test_kept_results_belong_to_content_version_and_weights(faces, registry):
    calls = []

    class Counted(Metric):
        name = "counted"
        needs = frozenset({"lq"})

        def score(self, batch):
            calls.extend(batch.keys)
            return torch.ones(len(batch))

        def fingerprint(self):
            return self.context.options.get("weights", "")

    register_metric(Counted)

    def run(**options):
        calls.clear()
        evaluate_faces(
            settings(faces, metrics=("counted",), cache=faces / "c", context=MetricContext(options=options))
        )
        return len(calls)

    assert run() == 6
    assert run() == 0
    write(faces / "gt" / "CelebA" / "0.png", procedural(77))  # the metric does not look at it
    assert run() == 0
    write(faces / "lq" / "CelebA" / "0.png", procedural(77))
    assert run() == 1
    assert run(weights="others") == 6
    Counted.version = "2"
    assert run() == 6


def test_undefined_values_are_tried_again_and_infinite_ones_kept(tmp_path):
    cache = ResultCache(tmp_path)
    cache.keep("a", math.nan)
    cache.keep("b", math.inf)
    cache.keep("c", 0.1)
    cache.flush()
    loaded = ResultCache(tmp_path)
    assert (loaded.value("a"), loaded.value("b"), loaded.value("c")) == (None, math.inf, 0.1)


def test_equal_pictures_have_infinite_psnr_in_the_csv_and_none_in_the_json(faces, tmp_path):
    evaluation = evaluate_faces(settings(faces, restored=faces / "gt", metrics=("psnr",)))
    assert {row["psnr"] for row in rows_of(evaluation)} == {"inf"}
    write_evaluation(evaluation, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["overall"]["psnr"] is None
