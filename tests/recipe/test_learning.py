"""The learning run of the tiny recipe, with its control. Minutes; the committed evidence is in results/."""

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
