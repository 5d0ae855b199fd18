"""A recipe on one process and on two: what both log and learn, compared."""

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from ..rl.forked_worlds import command


def run(recipe, folder, processes, options, rows, steps):
    """Log entries and weights of a recipe whose steps take `rows` items on so many processes."""
    overrides = [
        *options,
        f"training.output_dir={folder}",
        f"training.per_device_train_batch_size={rows // processes}",
    ]
    overrides += [f"report.results={folder}/results.json", f"report.html={folder}/report.html"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command(processes, recipe, *overrides),
        capture_output=True, text=True, env=environment, timeout=280, cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    state = json.loads((folder / f"checkpoint-{steps}" / "trainer_state.json").read_text())
    return state["log_history"], load_file(folder / "model.safetensors")


def assert_equal(one, two, *, steps, at_least):
    """Both of `run`: the same entries, each with more than `at_least` numbers to compare, and the same weights."""
    (entries, weights), (others, other_weights) = one, two
    assert len(entries) == len(others) == steps + 1
    for entry, other in zip(entries, others, strict=True):
        names = [name for name in entry if name.startswith(("loss", "terms/", "weights/", "bilevel/", "eval_"))
                 and "runtime" not in name and "per_second" not in name]  # fmt: skip
        assert len(names) > at_least
        for name in names:
            assert other[name] == pytest.approx(entry[name], rel=2e-3, abs=2e-4, nan_ok=True), name
    assert set(weights) == set(other_weights)
    for name, tensor in weights.items():
        torch.testing.assert_close(other_weights[name], tensor, rtol=2e-3, atol=2e-4, msg=name)
