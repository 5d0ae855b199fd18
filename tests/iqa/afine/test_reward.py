"""A-FINE as a reward: TRL's contract, failures that never look like a score, and the example that trains with it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from thurl.data.images import ImageError
from thurl.iqa.afine import AFine, AFineModel, AFineReward, reward_of


EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "afine_reward.py"


@pytest.fixture(scope="module")
def faithful(tiny_afine):
    """A metric that is all fidelity: naturalness is the same for every picture, as for a head that learned nothing."""
    model = tiny_afine()
    with torch.no_grad():
        for parameter in model.naturalness_head.score.parameters():
            parameter.zero_()
    return AFine(model)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    generator = np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(4)]


def render(completion, reference, **row):
    if completion == "skip":
        return None
    if completion == "small":
        return Image.new("RGB", (8, 8))
    if completion == "floats":
        return torch.full((3, 48, 48), 200.0)
    if completion == "nan":
        return torch.full((3, 48, 48), torch.nan)
    return Image.open(reference).filter(ImageFilter.GaussianBlur(float(completion)))


def test_rewards_are_one_minus_the_scaled_score(faithful, paths):
    completions = ["0", "1", "4", "0", "1"]
    references = [paths[0], paths[0], paths[0], paths[1], paths[1]]
    found = AFineReward(faithful, render, batch_size=2)(completions=completions, reference=references)
    for completion, reference, reward in zip(completions, references, found, strict=True):
        score = faithful(reference, render(completion, reference)).item()
        assert reward == pytest.approx(1 - score / 100, abs=1e-6) and 0 <= reward <= 1
    assert found[0] > found[1] > found[2]
    chat = [[{"role": "assistant", "content": text}] for text in completions]
    blocks = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in completions]
    for form in (chat, blocks):
        assert AFineReward(faithful, render)(completions=form, reference=references) == pytest.approx(found, abs=1e-6)


def test_failures_are_marked_and_what_does_not_apply_is_none(faithful, paths):
    completions = ["1", "word", "skip", "small", "floats", "nan", "1"]
    references = [paths[0]] * 6 + [None]
    metrics, extra = {}, {}
    options = {"log_metric": metrics.__setitem__, "log_extra": extra.__setitem__, "trainer_state": object()}
    options |= {"prompts": [""] * 7, "completion_ids": [[1]] * 7}
    reward = AFineReward(faithful, render)
    found = reward(completions=completions, reference=references, **options)
    assert found[0] > 0 and found[1] == found[3] == found[4] == found[5] == 0
    assert found[2] is None and found[6] is None
    assert metrics["afine/failed"] == pytest.approx(4 / 5) and metrics["afine/score"] == pytest.approx(
        100 * (1 - found[0]), abs=1e-4
    )
    assert extra["afine_scaled"][1:] == [None] * 6
    none = AFineReward(faithful, render, failed="none")(completions=completions, reference=references)
    assert none[0] == found[0] and none[1:] == [None] * 6


def test_references_go_through_the_tower_once_per_prompt(faithful, paths, monkeypatch):
    seen = []
    original = AFineModel.features
    monkeypatch.setattr(AFineModel, "features", lambda self, x, **o: seen.append(len(x)) or original(self, x, **o))
    AFineReward(faithful, render)(completions=["0", "1", "2"] * 2, reference=[paths[0]] * 3 + [paths[1]] * 3)
    assert seen == [8]


def test_what_is_wrong_with_the_run_is_raised(faithful, paths, tmp_path):
    reward = AFineReward(faithful, render)
    with pytest.raises(ValueError, match="no column 'reference'"):
        reward(completions=["1"], picture=[paths[0]])
    with pytest.raises(ImageError, match="no such file"):
        reward(completions=["1"], reference=[str(tmp_path / "none.png")])

    def broken(completion, **row):
        raise TypeError("a fault of the program")

    with pytest.raises(TypeError, match="fault of the program"):
        AFineReward(faithful, broken)(completions=["1"], reference=[paths[0]])
    with pytest.raises(ValueError, match="minimum or none"):
        AFineReward(faithful, render, failed="zero")


def test_the_map_turns_the_direction_and_keeps_nan():
    found = reward_of(torch.tensor([0.0, 25.0, 100.0, torch.nan]))
    assert found[:3].tolist() == [1.0, 0.75, 0.0] and found[3].isnan()


# --- in GRPO ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("afine_reward_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_trains(example, faithful, paths, tmp_path):
    trainer = example.build_trainer(faithful, paths, str(tmp_path), steps=2, seed=0)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = [name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])]
    assert "lm_head.weight" in moved and len(moved) > len(before) / 2
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 2 and all(0 <= entry["afine/failed"] <= 1 for entry in logged)
    assert not any(parameter.grad is not None for parameter in faithful.model.parameters())


@pytest.mark.slow
def test_the_policy_of_the_example_learns_to_smooth(example, faithful, paths, tmp_path, monkeypatch):
    # Bars, with a seed that was not looked at before: fewer than a tenth of the last answers fail, and they earn more
    # than leaving the noise. Control: where the noisy picture is the reference, the policy smooths less than that.
    render, answers = example.render, {}
    noisy = {path: str(tmp_path / f"noisy{number}.png") for number, path in enumerate(paths)}
    for path, other in noisy.items():
        render("0", path).save(other)
    clean_of = {other: path for path, other in noisy.items()}
    given = []

    def rendered(completion, reference, **row):
        picture = render(completion, clean_of.get(reference, reference))
        given.append(int(completion))
        return picture

    monkeypatch.setattr(example, "render", rendered)
    for target, references in (("clean", paths), ("noisy", list(noisy.values()))):
        trainer = example.build_trainer(faithful, references, str(tmp_path / target), steps=40, seed=1)
        trainer.train()
        last = [entry for entry in trainer.state.log_history if "reward" in entry][-5:]
        assert sum(entry["afine/failed"] for entry in last) / 5 < 0.1
        answers[target] = sum(given[-100:]) / 100
        if target == "clean":
            untouched = AFineReward(faithful, render)(completions=["0"] * 4, reference=paths)
            assert sum(entry["reward"] for entry in last) / 5 > sum(untouched) / 4
    assert answers["noisy"] < answers["clean"]
