"""The bar of the restoration study, and the study itself (slow)."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "face_restoration_tiny.py"


@pytest.fixture(scope="module")
def study():
    spec = spec_from_file_location("face_restoration_tiny", SCRIPT)
    module = module_from_spec(spec)
    sys.modules["face_restoration_tiny"] = module
    spec.loader.exec_module(module)
    return module


def record(**changes):
    values = {"degraded": 20.0, "nlm": 22.0, "untrained": 20.0, "model": 23.0, "control": 15.0}
    return {"seed": 1, "psnr": values | changes, "ssim": dict(values)}


def test_the_bar(study):
    assert study.failures(record()) == []
    assert study.failures(record(model=22.0)) == ["psnr: nlm"]
    assert study.failures(record(model=19.0)) == ["psnr: degraded", "psnr: nlm"]
    assert study.failures(record(model=None)) == ["psnr: degraded", "psnr: nlm"]
    assert study.failures(record(control=20.0)) == ["psnr: control"]
    assert study.failures(record(control=None)) == ["psnr: control"]
    line = study.summary_line({**record(model=22.0), "failures": ["psnr: nlm"]})
    assert "PSNR degraded 20.00, nlm 22.00" in line and line.endswith("MISSED: psnr: nlm")


@pytest.mark.slow
def test_a_fresh_seed_passes(study, tmp_path):
    """The bar of the study, stated before it ran: better than everything else, and a control that is worse."""
    out = tmp_path / "results.json"
    assert study.main(["--seeds", "77", "--out", str(out), "--work", str(tmp_path / "work")]) == 0
    (run,) = json.loads(out.read_text())["runs"]
    assert run["failures"] == [] and run["verdict"] == {"model_beats_all": True, "control_fails": True}
