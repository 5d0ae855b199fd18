"""The DeepFake recipe on two processes through the real launcher."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ..rl.forked_worlds import command


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "tiny" / "deepfake_mtl.yaml"
STEPS = 3
OPTIONS = [
    "model.tiny={patch_size: 16, hidden: 8, layers: 1, heads: 2}",
    "data.sources=[{format: drawn, people: {train: 8, outer: 2, val: 2}, frames: 1}]",
    "data.augmentation=0.5",
    "evaluation=null",
    "bilevel.delayed=false",
    *(f"training.{name}={STEPS}" for name in ("max_steps", "save_steps", "eval_steps")),
    "training.logging_steps=1",
    "training.load_best_model_at_end=false",
    "training.dataloader_drop_last=true",
    # Adam would blow up the rounding in gradients that are 0, those of the keys' biases.
    "training.optim=sgd",
    "training.learning_rate=0.1",
]


def run(folder, processes):
    """Log entries and weights of the recipe on so many processes with 8 faces a step."""
    overrides = [*OPTIONS, f"training.output_dir={folder}", f"training.per_device_train_batch_size={8 // processes}"]
    overrides += [f"report.results={folder}/results.json", f"report.html={folder}/report.html"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command(processes, RECIPE, *overrides),
        capture_output=True, text=True, env=environment, timeout=280, cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return state["log_history"], load_file(folder / "model.safetensors")


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_two_processes_train_what_one_does(tmp_path):
    """16 faces to train on: the second epoch begins in the third step, so its augmentations must be new on both."""
    (one, weights), (two, others) = (run(tmp_path / f"on_{count}", count) for count in (1, 2))
    assert len(one) == len(two) == STEPS + 1
    for entry, other in zip(one, two, strict=True):
        names = [name for name in entry if name.startswith(("loss", "terms/", "weights/", "bilevel/", "eval_"))
                 and "runtime" not in name and "per_second" not in name]  # fmt: skip
        assert len(names) > 10
        for name in names:
            assert other[name] == pytest.approx(entry[name], rel=2e-3, abs=2e-4, nan_ok=True), name
    assert set(weights) == set(others)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=2e-3, atol=2e-4, msg=name)
