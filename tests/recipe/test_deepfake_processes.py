"""The DeepFake recipe on two processes."""

from pathlib import Path

import pytest

from .two_processes import assert_equal, run


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "tiny" / "deepfake_mtl.yaml"
STEPS = 3
OPTIONS = [
    "model.tiny={patch_size: 16, hidden: 8, layers: 1, heads: 2}",
    "data.sources=[{format: drawn, people: {train: 8, outer: 2, val: 2}, frames: 1}]",
    "data.augmentation=0.5",
    "evaluation=null",
    "bilevel.delayed=false",
    "bilevel.every=1",
    *(f"training.{name}={STEPS}" for name in ("max_steps", "save_steps", "eval_steps")),
    "training.logging_steps=1",
    "training.load_best_model_at_end=false",
    "training.dataloader_drop_last=true",
    # Adam would blow up the rounding in gradients that are 0, those of the keys' biases.
    "training.optim=sgd",
    "training.learning_rate=0.1",
]


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_two_processes_train_what_one_does(tmp_path):
    """16 faces to train on: the second epoch begins in the third step, so its augmentations must be new on both."""
    folders = [tmp_path / "one", tmp_path / "two"]
    one, two = (run(RECIPE, folder, count, OPTIONS, 8, STEPS) for count, folder in enumerate(folders, start=1))
    assert_equal(one, two, steps=STEPS, at_least=10)
