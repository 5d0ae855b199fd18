"""The evaluator judges folders of the restoration study: an untrained network misses the bar."""

import json
import math
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from thurl.restoration import RestorationConfig, RestorationImageProcessor, RestorationModel


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "face_restoration_judged.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = spec_from_file_location("face_restoration_judged", SCRIPT)
    module = module_from_spec(spec)
    sys.modules["face_restoration_judged"] = module
    spec.loader.exec_module(module)
    return module


def test_the_bar(benchmark):
    low, high = ({metric: value for metric in benchmark.AGAINST_ORIGINAL} for value in (1.0, 2.0))
    assert benchmark.failures({"degraded": low, "bicubic": low, "model": high}) == []
    missed = benchmark.failures({"degraded": low, "bicubic": high, "model": high})
    assert missed == [f"{metric}: bicubic" for metric in benchmark.AGAINST_ORIGINAL]
    undefined = dict.fromkeys(benchmark.AGAINST_ORIGINAL, math.nan)
    assert len(benchmark.failures({"degraded": low, "bicubic": low, "model": undefined})) == 6


def test_an_untrained_network_is_the_input_and_misses_it(benchmark, tmp_path):
    model = RestorationModel(RestorationConfig(hidden_sizes=[8], depths=[1], decoder_depths=[]))
    model.save_pretrained(tmp_path / "seed_5")
    RestorationImageProcessor().save_pretrained(tmp_path / "seed_5")
    out = tmp_path / "results.json"
    small = ["evaluation.repeats=1", "evaluation.size=96", 'evaluation.cleanups=["bicubic"]']
    assert benchmark.main([str(tmp_path / "seed_5"), "--out", str(out), "--overrides", *small]) == 1
    (run,) = json.loads(out.read_text())["runs"]
    assert run["seed"] == 5 and list(run["judged"]) == ["degraded", "bicubic", "model"]
    # Its last layer starts at zero, so it gives the input back.
    assert run["judged"]["model"]["psnr"] == pytest.approx(run["judged"]["degraded"]["psnr"], abs=1e-6)
    assert run["judged"]["degraded"]["lq_ssim_8"] == pytest.approx(1, abs=1e-6)
    assert "psnr: degraded" in run["failures"]
