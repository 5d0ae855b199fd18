"""The learning run of the tiny recipe, with its control. Minutes; the committed evidence is in results/."""

import importlib.util
import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_tiny_model_learns_to_rank_from_comparisons_alone(tmp_path):
    """Bar set beforehand (spec of the study): start |SRCC| < 0.2, end >= 0.75, shuffled labels |SRCC| < 0.3."""
    seed = secrets.randbelow(10**6)  # a fresh one each time; the message names it
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "tiny" / "visualquality_r1.yaml"), f"training.seed={seed}"]
        + [
            f"control.seed={seed}",
            "training.output_dir=out",
            "report.results=results.json",
            "report.html=report.html",
        ],
        cwd=tmp_path,
    )
    assert done.returncode == 0
    (record,) = json.loads((tmp_path / "results.json").read_text())["runs"]
    where = f"seed {seed}: {record}"
    assert abs(record["srcc_before"]) < 0.2, where
    assert record["srcc_after"] >= 0.75, where
    # A policy that gives every picture the same score has no correlation, which is what a control should come to.
    assert record["srcc_control"] is None or abs(record["srcc_control"]) < 0.3, where
    assert record["parse_rate_after"] > 0.95, where


def tiny_run(tmp_path, name, *overrides):
    seed = secrets.randbelow(10**6)
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "tiny" / f"{name}.yaml"), f"training.seed={seed}"]
        + [f"coto.seed={seed}", f"control.seed={seed}", "training.output_dir=out"]
        + ["report.results=results.json", "report.html=report.html", *overrides],
        cwd=tmp_path,
    )
    assert done.returncode == 0, seed
    return json.loads((tmp_path / "results.json").read_text())["runs"][0]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_tiny_language_model_learns_new_commands_with_coto(tmp_path, architecture):
    """Bar: exact answers below 0.1 before, at least 0.9 after, below 0.1 with shuffled answers."""
    record = tiny_run(tmp_path, "coto_llm", f"model.tiny.architecture={architecture}")
    assert record["accuracy_before"] < 0.1, record
    assert record["accuracy_after"] >= 0.9, record
    assert record["accuracy_control"] < 0.1, record


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_tiny_language_model_learns_from_rewards_with_coto(tmp_path):
    """Bar, set before the first run: below 0.2 before and with shuffled answers, at least 0.8 after."""
    record = tiny_run(tmp_path, "coto_llm_grpo")
    assert record["accuracy_before"] < 0.2 and record["accuracy_control"] < 0.2, record
    assert record["accuracy_after"] >= 0.8, record


def exif_records(recipe, seeds):
    """The tiny EXIF recipe on fresh seeds, as benchmarks/exif_camera.py runs and judges it."""
    spec = importlib.util.spec_from_file_location("exif_camera", ROOT / "benchmarks" / "exif_camera.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark, [benchmark.short(benchmark.one_run(recipe, secrets.randbelow(10**6), [])) for _ in range(seeds)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_camera_settings_are_learned():
    """Bars in the benchmark's text, set before the first run, here of one fresh seed."""
    benchmark, (run,) = exif_records("exif_ordinal", 1)
    met = benchmark.verdicts([run])
    assert all(met.values()), (met, run)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_blades_learns_settings_and_weights():
    """Bars: ISO above 0.9, false alarms within 3 standard errors, all weights moved, the control within 0.25 of 0."""
    _, (run,) = exif_records("blades", 1)
    assert run["settings"]["iso"]["srcc_after"] > 0.9, run
    assert all(entry["within"] for entry in run["false_alarms"].values()), run
    assert all(weight != 1 for weight in run["weights"].values()), run
    assert all(abs(entry["srcc_control"] or 0) < 0.25 for entry in run["settings"].values()), run
