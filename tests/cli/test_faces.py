"""`thurl faces`: exit codes, files, resuming, comparison, leaderboard, converters."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from thurl.cli import app


def thurl(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    place = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for dataset in ("CelebA", "Wider-Test"):
        for number in range(3):
            smooth = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((192, 192))
            scene = Image.fromarray(np.clip(np.asarray(smooth) + rng.normal(0, 6, (192, 192, 3)), 0, 255).astype("u1"))
            for kind, sigma in (("gt", 0), ("lq", 3), ("good", 0.7), ("bad", 2)):
                folder = place / kind / dataset
                folder.mkdir(parents=True, exist_ok=True)
                (scene.filter(ImageFilter.GaussianBlur(sigma)) if sigma else scene).save(folder / f"{number}.png")
    return place


@pytest.fixture
def sets(drawn, tmp_path):
    """Originals, inputs, good and bad restorations; a copy that a test may spoil."""
    return shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def adaface(tmp_path_factory):
    from thurl.iqa.face_restoration.adaface import AdaFaceConfig, AdaFaceModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "adaface_ir50"
    config = AdaFaceConfig(depths=(1, 1, 1, 1), widths=(4, 4, 4, 8), embedding_size=16)
    AdaFaceModel(config).save_pretrained(folder)
    return folder.parent


def evaluate(sets, kind, *more, code=0):
    roots = ("--restored", sets / kind, "--lq", sets / "lq", "--gt", sets / "gt")
    return thurl("faces", "evaluate", *roots, "--device", "cpu", *more, code=code)


def test_missing_weights_end_in_seconds_with_every_item(tmp_path):
    (tmp_path / "r" / "CelebA").mkdir(parents=True)
    (tmp_path / "w").mkdir()
    command = [sys.executable, "-m", "thurl.cli", "faces", "evaluate", "--restored", str(tmp_path / "r")]
    command += ["--lq", str(tmp_path / "r"), "--weights-dir", str(tmp_path / "w"), "--protocol", "ntire2025"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, capture_output=True, text=True)
    # Processor time: what else runs on the machine must not fail this.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5
    assert done.returncode == 3, done.stderr
    for item in ("pyiqa", "RN50.pt", "ckpt_koniq10k.pt", "musiq_koniq", "niqe_modelparameters.mat", "one-align",
                 "pt_inception-2015-12-05", "inception_FFHQ_512.npz", "adaface_ir50", "--skip-missing"):  # fmt: skip
        assert item in done.stderr, item
    assert "sha256" in done.stderr and "size" in done.stderr


def test_classic_metrics_work_without_weights_and_write_everything(sets):
    out = sets / "run"
    result = evaluate(sets, "good", "--metrics", "classic", "--out", out, "--weights-dir", sets, "--json")
    printed = json.loads(result.stdout)
    summary = json.loads((out / "summary.json").read_text())
    assert printed["overall"] == summary["overall"] and summary["pictures"] == 6
    assert summary["overall"]["psnr"] > 25 and summary["incomplete"] == []
    header = (out / "per_image.csv").read_text().splitlines()[0].split(",")
    assert header[:2] == ["dataset", "name"] and header[-3:] == ["id_threshold", "id_pass", "error"]
    assert (out / "table.md").read_text().startswith("| metric | CelebA | Wider-Test | all |")
    assert not (out / "failures").exists()
    assert summary["commit"] is None or isinstance(summary["commit"], str)


def test_a_second_run_needs_resume_and_changes_nothing(sets):
    out = sets / "run"
    first = evaluate(sets, "good", "--metrics", "psnr,ssim", "--out", out)
    assert "psnr" in first.stdout
    written = (out / "per_image.csv").read_bytes()
    assert "--resume" in evaluate(sets, "good", "--metrics", "psnr,ssim", "--out", out, code=2).stderr
    evaluate(sets, "good", "--metrics", "psnr,ssim", "--out", out, "--resume", "--workers", "2", "--batch", "2")
    assert (out / "per_image.csv").read_bytes() == written


def test_identity_failures_are_shown_and_strict_ends_with_one(sets, adaface):
    identity = ("--metrics", "id_sim", "--weights-dir", adaface)
    result = evaluate(sets, "bad", *identity, "--id-threshold", "1.0", "--out", sets / "run")
    assert "identity: 6 of 6 faces failed" in result.stdout and "fixed points" in result.stderr
    with Image.open(sets / "run" / "failures" / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * 384, 2 * 220)
    evaluate(sets, "bad", *identity, "--id-threshold", "-1", "--out", sets / "run", "--resume")
    assert not (sets / "run" / "failures" / "contact_sheet.png").exists()


def test_strict_ends_with_one_when_the_challenge_rule_is_broken(tmp_path, adaface):
    from thurl.iqa.face_restoration.protocol import NTIRE2025

    rng = np.random.default_rng(0)
    for dataset, face in NTIRE2025.items():
        for kind in ("lq", "restored"):
            (tmp_path / kind / dataset).mkdir(parents=True)
            for number in range(face.images):
                # Twelve faces of the strictest set are noise instead of what they were.
                lost = kind == "restored" and dataset == "LFW-Test" and number < 12
                pixels = (
                    rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) if lost else np.full((32, 32, 3), number, "u1")
                )
                Image.fromarray(pixels).save(tmp_path / kind / dataset / f"{number}.png", compress_level=1)
    roots = ("--restored", tmp_path / "restored", "--lq", tmp_path / "lq", "--protocol", "ntire2025")
    options = ("--metrics", "id_sim", "--weights-dir", adaface, "--device", "cpu", "--batch", "64", "--json")
    result = thurl("faces", "evaluate", *roots, *options, "--strict", code=1)
    identity = json.loads(result.stdout)["identity"]
    assert identity["failures"] == 12 and identity["valid"] is False
    assert "12 faces failed, at most 10 may" in result.stderr


def test_an_incomplete_set_ends_with_four_after_writing(sets):
    (sets / "good" / "CelebA" / "1.png").write_bytes(b"")
    result = evaluate(sets, "good", "--metrics", "psnr", "--out", sets / "run", code=4)
    assert "--allow-missing" in result.stderr
    assert "CelebA,1,,,,restored: 0 bytes" in (sets / "run" / "per_image.csv").read_text()
    evaluate(sets, "good", "--metrics", "psnr", "--allow-missing")


def test_runs_are_compared(sets):
    evaluate(sets, "bad", "--metrics", "psnr,ssim,tenengrad", "--out", sets / "a")
    result = evaluate(sets, "good", "--metrics", "psnr,ssim,tenengrad", "--out", sets / "b", "--baseline", sets / "a")
    assert "against" in result.stdout
    summary = json.loads((sets / "b" / "summary.json").read_text())
    (lines,) = summary["baselines"].values()
    assert {line["metric"]: line["better"] for line in lines} == {"psnr": "b", "ssim": "b", "tenengrad": ""}
    printed = json.loads(thurl("faces", "compare", sets / "a", sets / "b", "--json").stdout)
    assert printed == lines
    text = thurl("faces", "compare", sets / "b", sets / "a", "--resamples", "200").stdout
    assert "psnr" in text and "interval" in text
    thurl("faces", "compare", sets / "a", sets / "none", code=1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--metrics", "psnrr"), "did you mean `psnr`"),
        (("--protocol", "ntire2025", "--id-threshold", "0.3"), "thresholds of its own"),
        (("--weights", "adaface"), "NAME=PATH"),
        (("--weights", "adafce=x"), "did you mean `adaface`"),
        (("--weights-dir", "nowhere"), "no such folder"),
        (("--metrics", "psnr", "--baseline", "x"), "give --out"),
        (("--landmarks", "nowhere.csv"), "no such landmark file"),
    ],
)
def test_wrong_options_say_what_is_wrong(sets, more, message):
    result = evaluate(sets, "good", *more, code=1 if "--landmarks" in more else 2)
    assert message in result.stderr


def test_metrics_are_listed_with_what_they_miss(tmp_path):
    found = {entry["name"]: entry for entry in json.loads(thurl("faces", "metrics", "--json").stdout)}
    assert found["fid"]["set"] and found["fid"]["missing"] and not found["psnr"]["missing"]
    assert found["tenengrad"]["lower_is_better"] is None and found["psnr"]["needs"] == ["gt"]
    assert {"afine_lq", "vlm"} <= set(found)
    assert "niqe_fitted" in thurl("faces", "metrics", "--weights-dir", tmp_path).stdout


def test_a_pristine_model_is_fitted_and_used(sets):
    model = sets / "pristine.npz"
    thurl("faces", "fit-niqe", sets / "gt", "--output", model, code=1)  # 24 patches are too few
    for number in range(6):
        pixels = np.random.default_rng(number).normal(128, 30, (40, 40, 3)).clip(0, 255).astype("u1")
        Image.fromarray(pixels).resize((300, 300)).save(sets / "gt" / f"more{number}.png")
    thurl("faces", "fit-niqe", sets / "gt", "--output", model)
    thurl("faces", "fit-niqe", sets / "gt", "--output", model, code=2)
    result = thurl(
        "faces", "evaluate", "--restored", sets / "good", "--weights-dir", sets, "--metrics", "classic", "--json"
    )
    overall = json.loads(result.stdout)["overall"]
    assert overall["niqe_fitted"] > 0 and overall["brisque_fitted"] > 0


def test_scores_of_a_table_are_checked(tmp_path):
    path = tmp_path / "board.csv"
    thurl("faces", "leaderboard", path, "--template")
    thurl("faces", "leaderboard", path, "--template", code=2)
    with open(path, "a") as file:
        file.write("one,0.8,0.6,75,4,4.5,50,10,4.15\ntwo,0.8,0.6,75,4,4.5,50,0,4.3\n")
    printed = {entry["team"]: entry for entry in json.loads(thurl("faces", "leaderboard", path, "--json").stdout)}
    assert printed["one"]["flagged"] is False and printed["two"]["flagged"] is True
    assert "differs" in thurl("faces", "leaderboard", path).stdout
    assert "differs" not in thurl("faces", "leaderboard", path, "--tolerance", "0.2").stdout


def test_features_of_reference_pictures_serve_fid_and_kid(sets):
    from thurl.iqa.face_restoration.inception import fid_network

    torch.manual_seed(0)
    state = fid_network().state_dict()
    torch.save(state, sets / "pt_inception-2015-12-05.pth")  # noqa: TID251 - the released format
    weights = ("--weights-dir", sets, "--device", "cpu")
    thurl("faces", "features", sets / "gt" / "CelebA", "--output", sets / "reference_features.npz", *weights)
    reference = ("--weights", f"fid_reference={sets / 'reference_features.npz'}")
    (sets / "some").mkdir()
    (sets / "gt" / "Wider-Test").rename(sets / "some" / "Wider-Test")
    roots = ("--restored", sets / "some", "--metrics", "fid,kid")
    result = thurl("faces", "evaluate", *roots, *weights, *reference, "--cache", sets / "cache", "--json")
    summary = json.loads(result.stdout)
    assert len(list((sets / "cache" / "features").rglob("*.npy"))) == 3  # both metrics share them
    assert (
        summary["sets"]["fid"]["count"] == summary["sets"]["kid"]["count"] == 3
        and summary["sets"]["fid"]["reference_count"] == 3
    )
    assert summary["overall"]["fid"] > 0 and summary["overall"]["kid"] is not None
    assert summary["score"]["label"] == "partial (1 of 6)"
    assert "biased upwards" in result.stderr


def test_released_files_are_converted(tmp_path):
    rng = np.random.default_rng(0)
    content = {"mean": rng.normal(size=4), "cov": np.eye(4)}
    torch.save(content, tmp_path / "ffhq.pth")  # noqa: TID251 - the released format
    thurl("faces", "convert", "statistics", tmp_path / "ffhq.pth", tmp_path / "ffhq.npz")
    with np.load(tmp_path / "ffhq.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["mean"], content["mean"])
    thurl("faces", "convert", "statistics", tmp_path / "ffhq.pth", tmp_path / "ffhq.npz", code=2)
    thurl("faces", "convert", "adaface", tmp_path / "ffhq.pth", tmp_path / "out", code=1)
    thurl("faces", "convert", "niqe", tmp_path / "none.mat", tmp_path / "x.npz", code=3)
