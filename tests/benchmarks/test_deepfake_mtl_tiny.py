"""The bars of the tiny DeepFake recipe, and a fresh seed of it (slow)."""

import importlib.util
import secrets
from pathlib import Path

import pytest


FILE = Path(__file__).parents[2] / "benchmarks" / "deepfake_mtl_tiny.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("deepfake_mtl_tiny", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(before=0.5, validation=0.8, test=0.8, regions=0.8):
    parts = {"before": (before, before), "validation": (validation, validation), "test": (test, regions)}
    found = {name: dict(zip(("video_auc", "region_auc"), values, strict=True)) for name, values in parts.items()}
    return {"seed": 1, "steps": 2, **found}


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"before": 0.6}, ["video_auc_before", "region_auc_before"]),
        ({"validation": 0.64}, ["video_auc_validation", "region_auc_validation"]),
        ({"test": 0.64}, ["video_auc_test"]),
        ({"regions": float("nan")}, ["region_auc_test"]),
    ],
)
def test_bars(study, changes, missed):
    assert study.failures(study.short(record(**changes))) == missed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_fresh_seed_learns(study):
    seed = secrets.randbelow(10**6)  # a fresh one each time; the message names it
    found = study.one_run(seed)
    assert study.failures(found) == [], found
