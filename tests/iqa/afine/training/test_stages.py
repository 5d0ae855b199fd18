"""The stages on MethodTrainer: what moves, what stays, passes per size, resume, two processes, what a folder holds."""

import json
import os
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.iqa.afine.evaluation import SCORES, AFineEvaluator, TestSet, evaluate_tests, joined, predictor
from thurl.iqa.afine.losses import stage_terms
from thurl.iqa.afine.model import AFineModel
from thurl.iqa.afine.stages import STAGES, TRAINED, AFineStageModel
from thurl.iqa.afine.trainer import RestartSchedule
from thurl.iqa.afine.triplet_pictures import (
    ComparisonPictures,
    ScoredTriplets,
    TripletPictures,
    collate_pictures,
    find_triplet_pictures,
)
from thurl.iqa.afine.triplets import Triplet, read_triplets
from thurl.training.restarts import cosine_with_restarts

from ....rl.forked_worlds import command


SCRIPT = Path(__file__).with_name("afine_runs.py")


def _load():
    spec = spec_from_file_location("afine_runs", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runs = _load()


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# --- pictures and batches --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Triplets of pictures of three sizes, one of them no multiple of the patch; some images are the reference."""
    folder, rng, found = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0), []
    for scene, size in enumerate([(32, 32), (48, 32), (40, 56), (32, 32)]):
        paths = []
        for i in range(3):
            paths.append(str(folder / f"{scene}_{i}.png"))
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(paths[-1])
        found += [Triplet(*paths, 1, 0, 0.5), Triplet(paths[1], paths[2], paths[2], 0, 0, 0.5)]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_mixed_batch_is_one_pass_per_size_and_equals_single_ones(mixed, stage, monkeypatch):
    model = runs.tiny_model().double().eval()
    model.begin_stage(stage)
    data = TripletPictures(mixed, augment=False)
    items = [data[i] for i in range(len(data))]
    batch = collate_pictures(items)
    assert sorted(tuple(group["pixels"].shape) for group in batch["groups"]) == [
        (3, 3, 32, 48), (3, 3, 56, 40), (6, 3, 32, 32)
    ]  # fmt: skip
    passes = []
    features = AFineModel.features
    monkeypatch.setattr(AFineModel, "features", lambda self, x, **kw: passes.append(len(x)) or features(self, x, **kw))
    whole = model(**batch).terms
    assert sorted(passes) == [3, 3, 6], "each picture goes through the tower once"
    singles = [model(**collate_pictures([item])).terms for item in items]
    for name, value in whole.items():
        torch.testing.assert_close(
            value, torch.stack([terms[name] for terms in singles]).mean(), rtol=1e-9, atol=1e-12
        )


def test_scores_of_a_mixed_batch_come_in_the_order_of_the_pairs(mixed):
    model = runs.tiny_model().eval()
    pairs = [(t.reference, image) for t in mixed[::-1] for image in (t.first, t.second)]
    data = ComparisonPictures(pairs)
    assert sorted(data.pairs) == sorted(set(pairs)), "each pair once"
    scores = predictor(model, batch_size=5)(data)
    for name in ("naturalness_dis_raw", "fidelity_raw", "afine"):
        for pair, row in data.rows.items():
            ref, dis = (torch.from_numpy(np.asarray(Image.open(p)).copy()).permute(2, 0, 1)[None] for p in pair)
            expected = AFineModel.forward(model, ref, dis)[name].item()
            assert scores[name][row] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_three_pictures_of_a_triplet_are_turned_alike(mixed):
    data = TripletPictures(mixed, seed=7)
    turns = {(epoch, i): (data.set_epoch(epoch), data.turn(i))[1] for epoch in range(30) for i in range(len(data))}
    assert len(set(turns.values())) == 8 and 90 < sum(a for a, _, _ in turns.values()) < 150
    for epoch in range(4):
        data.set_epoch(epoch)
        again = TripletPictures(mixed, seed=7)
        again.set_epoch(epoch)
        for i, triplet in enumerate(mixed):
            item, (mirrored, upside_down, transposed) = data[i], data.turn(i)
            for name, path in zip(("first", "second", "reference"), triplet.images, strict=True):
                pixels = np.asarray(Image.open(path))
                pixels = pixels[:, ::-1] if mirrored else pixels
                pixels = pixels[::-1] if upside_down else pixels
                pixels = pixels.swapaxes(0, 1) if transposed else pixels
                assert np.array_equal(item["pixels"][item[name]].permute(1, 2, 0).numpy(), pixels)
            assert torch.equal(again[i]["pixels"][item["first"]], item["pixels"][item["first"]])


def test_kept_pictures_are_the_same_and_stay_within_their_room(mixed, monkeypatch):
    plain, keeping = TripletPictures(mixed, seed=1), TripletPictures(mixed, seed=1, keep_mib=1)
    for _ in range(2):
        for i in range(len(mixed)):
            a, b = plain[i], keeping[i]
            assert all(torch.equal(a["pixels"][key], b["pixels"][key]) for key in a["pixels"])
    assert len(keeping._kept) == 12 and not plain._kept
    monkeypatch.setattr("thurl.iqa.afine.triplet_pictures.open_image", lambda path: 1 / 0)
    keeping[0]
    with pytest.raises(ZeroDivisionError):
        plain[0]


def test_pictures_that_do_not_fit_are_refused_all_at_once(mixed, tmp_path):
    odd = [Triplet(mixed[0].first, mixed[2].first, mixed[0].reference, 1, 1, 1)] * 2
    with pytest.raises(DataError, match="2 of 3 triplets have pictures of different sizes"):
        find_triplet_pictures([mixed[0], *odd])
    with pytest.raises(DataError, match="must have its reference's size"):
        TripletPictures(odd)[0]
    with pytest.raises(MissingRequirementError, match="1 of 3 pictures are missing"):
        find_triplet_pictures([Triplet(mixed[0].first, str(tmp_path / "no.png"), mixed[0].reference, 1)])
    with pytest.raises(UsageError, match="at least one triplet"):
        TripletPictures([])


# --- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_trained_parts_move_and_frozen_ones_do_not(tmp_path, triplets, stage):
    trainer = runs.trainer_for(tmp_path, triplets, stage, learning_rate=0.05)
    before = weights_of(trainer)
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    wanted = {
        name
        for name in before
        if name.split(".")[0] in TRAINED[stage] and not name.startswith("vision.post_layernorm")
    }
    assert moved == wanted  # the last bias, which no comparison sees, too: weight decay takes all parameters
    assert all(map(np.isfinite, losses(trainer)))
    terms = {key for entry in trainer.state.log_history for key in entry if key.startswith("terms/")}
    assert len(terms) == (3 if stage == "naturalness" else 1)


def test_stages_are_known_by_name():
    model = runs.tiny_model()
    with pytest.raises(UsageError, match="did you mean `fidelity`"):
        model.begin_stage("fidelty")
    with pytest.raises(UsageError, match="no training stage has begun"):
        model(groups=[], g12=torch.zeros(1))
    with pytest.raises(UsageError, match="begin_stage"):
        runs.AFineTrainer(model, None)


def test_the_schedule_reaches_the_optimizer(tmp_path, triplets):
    schedule = RestartSchedule(periods=(3, 3), restart_weights=(1.0, 0.5), eta_min=1e-4)
    trainer = runs.trainer_for(tmp_path, triplets, "fidelity", max_steps=6, schedule=schedule)
    trainer.train()
    used = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    expected = [cosine_with_restarts(step, 0.01, (3, 3), (1.0, 0.5), 1e-4) for step in range(7)]
    np.testing.assert_allclose(used, expected[1:] if used[0] != expected[0] else expected[:-1], rtol=1e-6)
    assert trainer.resume_settings()["schedule"]["periods"] == [3, 3]


def test_weight_decay_takes_all_parameters(tmp_path, triplets):
    trainer = runs.trainer_for(tmp_path, triplets, "naturalness")
    trainer.create_optimizer()
    groups = [group for group in trainer.optimizer.param_groups if group["params"]]
    assert [group["weight_decay"] for group in groups] == [1e-3]


def test_scores_computed_once_give_the_loss_of_the_pictures(triplets):
    model = runs.tiny_model().eval()
    model.begin_stage("adapter")
    chosen = triplets[:12]
    data = ComparisonPictures((t.reference, image) for t in chosen for image in (t.first, t.second))
    scored = ScoredTriplets(chosen, data.rows, predictor(model)(data))
    pictures = TripletPictures(chosen, augment=False)
    one = model(**collate_pictures([scored[i] for i in range(12)])).terms["first_second"]
    two = model(**collate_pictures([pictures[i] for i in range(12)])).terms["first_second"]
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad(loss, list(model.adapter.parameters())) for loss in (one, two)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
    with pytest.raises(UsageError, match="for stage adapter"):
        model.begin_stage("fidelity")
        model(**collate_pictures([scored[0]]))


def test_each_stage_ranks_its_own_quantity(triplets):
    """The loss of a stage is that of the scores the evaluation reads."""
    model = runs.tiny_model().eval()
    chosen = triplets[:10]
    data = ComparisonPictures((t.reference, image) for t in chosen for image in (*t.images,))
    scores = predictor(model)(data)
    batch = collate_pictures([TripletPictures(chosen, augment=False)[i] for i in range(10)])
    for stage in STAGES:
        model.begin_stage(stage)
        field = SCORES["afine" if stage == "adapter" else stage]
        u1, u2, ur = (
            torch.tensor([scores[field][data.rows[t.reference, getattr(t, side)]] for t in chosen])
            for side in ("first", "second", "reference")
        )
        labels = [torch.tensor([getattr(t, name) for t in chosen]) for name in ("g12", "g1r", "g2r")]
        rest = (ur, *labels) if stage == "naturalness" else (None, labels[0])
        expected, _ = stage_terms(u1, u2, *rest)
        found = model(**batch).terms
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_results_by_type_and_by_scene():
    from thurl.data.records import RatedImage

    types = ["PSY", "PNY", "PYY", "SNY", "NYY", "SSY"]
    found = [
        Triplet(f"a{i}", f"b{i}", f"r{i}", 0.5 if name == "SSY" else 1, type=name) for i, name in enumerate(types)
    ]
    records = [
        RatedImage(f"{side}{i}", mos, reference=f"r{i}") for i in range(6) for side, mos in (("a", 9.0), ("b", 1.0))
    ]
    tests = [TestSet("T", found, records)]
    dataset = ComparisonPictures(tests[0].pairs())
    right = {"a0", "a1", "a3", "a5", "b5"}  # lower: PSY, PNY and SNY right, PYY and NYY wrong, SSY a tie
    scores = np.array([0.0 if image in right else 1.0 if image[0] == "b" else 2.0 for _, image in dataset.pairs])
    table = evaluate_tests(tests, dataset.rows, dict.fromkeys(SCORES.values(), scores), intervals=50)["T"]
    entry = table["accuracy"]["afine"]
    assert (entry["PSY"], entry["PYY"], entry["SNY"], entry["NYY"], entry["SSY"]) == (1, 0, 1, 0, 1)
    assert entry["ref_below"] == pytest.approx(2 / 3) and entry["ref_above"] == 0.5
    assert (entry["all"], entry["correct"], table["pairs"], table["scenes"]) == (pytest.approx(4 / 6), 4, 6, 6)
    assert entry["interval"][0] < 4 / 6 < entry["interval"][1]
    correlation = table["correlation"]["afine"]
    # Two images per scene: +1 where the order is right, -1 where it is not, undefined on the tie.
    assert correlation["srcc"] == pytest.approx((3 - 2) / 5) and correlation["scenes_srcc"] == 5
    halves = joined([TestSet("T", found[:3], records[:6]), TestSet("U"), TestSet("T", found[3:], records[6:])])
    assert halves == [TestSet("T", found, records), TestSet("U", [], [])]
    with pytest.raises(UsageError, match="different names"):
        AFineEvaluator([tests[0], tests[0]], "afine")


def test_checkpoints_are_chosen_by_the_quantity_of_the_stage(tmp_path, triplets):
    trainer = runs.trainer_for(tmp_path, triplets, "fidelity", max_steps=2, eval_strategy="steps", eval_steps=1)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["eval_accuracy"] == entry["eval_some_fidelity"]
    results = trainer.evaluation_results["eval"]
    assert results.settings["tests"]["some"]["pairs"] == 20


# --- files, resume, processes ----------------------------------------------------------------------------------------


def test_the_folder_of_a_stage_is_an_afine_model(tmp_path, triplets):
    trainer = runs.trainer_for(tmp_path, triplets, "naturalness")
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["AFineModel"]
    plain = AFineModel.from_pretrained(tmp_path / "out")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
    again = AFineStageModel.from_pretrained(tmp_path / "out")
    assert again.stage is None and again.state_dict().keys() == plain.state_dict().keys()


class Die(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["naturalness", "adapter"])
def test_a_killed_stage_goes_on_bit_for_bit(tmp_path, triplets, stage):
    few = triplets[:20]  # an epoch has two steps, so that the turns of a later one must come back
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    whole = runs.trainer_for(tmp_path / "whole", few, stage, **options)
    whole.train()
    killed = runs.trainer_for(tmp_path / "run", few, stage, callbacks=[Die()], **options)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = runs.trainer_for(tmp_path / "run", few, stage, **options)
    resumed.train(True)
    assert losses(resumed) == losses(whole)
    for name, value in weights_of(whole).items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    other = runs.trainer_for(tmp_path / "run", triplets, stage, **options)
    with pytest.raises(UsageError, match="triplets"):
        other.train(True)


@pytest.mark.distributed
def test_two_processes_train_what_one_does(tmp_path, textures):
    file, images = textures / "imperfect.csv", textures / "images"
    one = runs.trainer_for(tmp_path / "one", read_triplets(file, images=images), "naturalness")
    one.train()
    accuracy = one.evaluate()["eval_accuracy"]
    output = tmp_path / "two.safetensors"
    done = subprocess.run(
        command(2, SCRIPT, output, file, images, "naturalness", "2"),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(Path(f"{output}.json").read_text())
    np.testing.assert_allclose(two["loss"], losses(one), rtol=1e-3)
    assert two["accuracy"] == accuracy
    others = load_file(output)
    for name, value in weights_of(one).items():
        # No comparison sees a shift of all scores: its gradient is rounding, which Adam blows up to whole steps.
        if name != "naturalness_head.score.bias":
            torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-3)
