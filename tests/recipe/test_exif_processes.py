"""BLADES on two processes, with an encoder whose rows do not depend on each other."""

from pathlib import Path

import pytest

from .two_processes import assert_equal, run


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "tiny" / "blades.yaml"
STEPS = 4
OPTIONS = (
    "model.tiny.depths=[1,1] model.tiny.hidden_sizes=[8,12] model.tiny.stem_channels=8 model.tiny.feature_size=6 "
    "model.tiny.norm=group data.source.count=60 data.source.size=24 transform.size=24 evaluation=null "
    "control.shuffle_settings=false detector.rates=[0.1] detector.components=2 training.dataloader_drop_last=true "
    f"training.max_steps={STEPS} training.save_steps={STEPS} training.eval_steps={STEPS} training.logging_steps=1 "
    "training.load_best_model_at_end=false bilevel.delayed=false detector.pca=null "
    # Adam would blow up the rounding in gradients that are 0, those of the keys' biases.
    "training.optim=sgd training.learning_rate=0.1"
).split()


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_two_processes_train_what_one_does(tmp_path):
    """33 photographs to train on: the second epoch begins in the third step, so its edits must be new on both."""
    folders = [tmp_path / "one", tmp_path / "two"]
    one, two = (run(RECIPE, folder, count, OPTIONS, 16, STEPS) for count, folder in enumerate(folders, start=1))
    for folder in folders:
        assert (folder / "detector.safetensors").is_file() and (folder / "report.html").is_file()
    assert_equal(one, two, steps=STEPS, at_least=20)
