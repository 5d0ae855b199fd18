"""The tiny recipe with vLLM on the CPU, as docs/rollouts.md runs it; `make test-vllm`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_the_tiny_recipe_with_vllm(tmp_path):
    """LoRA, the adapter handed over alone, and the control run with a second engine in the same process."""
    overrides = {
        "training.use_vllm": "true",
        "training.vllm_mode": "colocate",
        "training.max_steps": 2,
        "training.logging_steps": 1,
        "training.output_dir": tmp_path,
        "model.freeze": "[]",
        "adapter.r": 4,
        "rollouts.adapter_sync": "adapter",
        "warm_start.pretext_steps": 5,
        "warm_start.format_steps": 20,
        "data.train.0.repeats": 20,
        "data.train.1.repeats": 20,
        "evaluation": "null",
        "report.results": tmp_path / "results.json",
        "report.html": "null",
    }
    done = subprocess.run(
        [
            sys.executable,
            "recipes/tiny/visualquality_r1.yaml",
            *(f"{key}={value}" for key, value in overrides.items()),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    printed = done.stdout + done.stderr
    for step in ("step 2/2", "control: step 2/2"):
        assert step in printed
    assert json.loads((tmp_path / "results.json").read_text())["runs"]
    assert (tmp_path / "adapter_model.safetensors").is_file()
