"""The EXIF recipes: what is refused, what a run needs, whole short runs with their control, exact resume."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.exif import FaceDetector, Rule
from thurl.forensics.exif.camera import write_photographs
from thurl.forensics.exif.detector import load_detector
from thurl.forensics.exif.encoder import ExifEncoder
from thurl.recipe.exif_data import FaceStudy, load_study, shuffled
from thurl.recipe.exif_detection import CALIBRATED, FITTED
from thurl.recipe.exif_run import build_model, build_trainer, run, train, training_arguments
from thurl.recipe.launch import run_recipe
from thurl.recipe.preflight import missing_requirements
from thurl.recipe.validate import load_recipe

from .run_reports import check_run_report


ROOT = Path(__file__).parents[2]
TINY = {name: ROOT / "recipes" / "tiny" / f"{name}.yaml" for name in ("exif_ordinal", "blades")}
PAPER = {name: ROOT / "recipes" / f"{name}.yaml" for name in TINY}
SHORT = (
    "model.tiny.depths=[1,1] model.tiny.hidden_sizes=[8,12] model.tiny.stem_channels=8 model.tiny.feature_size=6 "
    "data.source.count=80 data.source.size=24 transform.size=24 "
    "evaluation.photographs.count=24 evaluation.photographs.size=24 evaluation.rate=0.1 "
    "evaluation.generated.reborn.count=8 evaluation.generated.reborn.size=24 "
    "evaluation.generated.smooth.count=8 evaluation.generated.smooth.size=24 "
    "evaluation.generated.grid.count=8 evaluation.generated.grid.size=24 "
    "training.max_steps=4 training.eval_steps=2 training.save_steps=2 training.logging_steps=1 "
    "training.per_device_train_batch_size=8 detector.components=2 detector.pca=null detector.rates=[0.1]"
).split()


def loaded(name, folder, *overrides):
    return load_recipe(TINY[name], [*SHORT, f"training.output_dir={folder}", *overrides]).recipe


def problems_of(name, *overrides, path=None):
    with pytest.raises(UsageError) as error:
        load_recipe(path or TINY[name], overrides)
    return "\n".join(error.value.problems)


# --- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("exif_ordinal", "bilevel={}", "unknown section"),
        ("exif_ordinal", "model.text_path=x", "unknown key `text_path`"),
        ("exif_ordinal", "data.parts={train: 0.5, outer: 0.1, validation: 0.1, calibration: 0.3}", "data.parts.outer"),
        ("exif_ordinal", "data.parts={train: 0.5, validation: 0.1}", "lacks calibration"),
        ("exif_ordinal", "data.parts={train: 0.5, validation: 0.1, calibration: 0.3}", "adds up to 0.9"),
        ("exif_ordinal", "data.parts={trian: 0.5, validation: 0.1, calibration: 0.4}", "did you mean `train`"),
        ("exif_ordinal", "data.manipulations={mouth_rotate: 1}", "did you mean `mouth_rotated`"),
        ("exif_ordinal", "data.manipulations={photograph: 0}", "no weight above 0"),
        ("exif_ordinal", "data.source.format=folder", "data.source"),
        ("exif_ordinal", "data.source.count=0", "data.source.count"),
        ("exif_ordinal", "detector.rates=[0.0001]", "needs 9999 calibration photographs; there are 600"),
        ("exif_ordinal", "detector.rates=[1.5]", "detector.rates"),
        ("exif_ordinal", "detector.calibration_share=0.5", "is for `photographs`"),
        ("exif_ordinal", "training.metric_for_best_model=srcc_make", "is not measured"),
        ("exif_ordinal", "training.metric_for_best_model=null", "is loss, which is not measured"),
        ("exif_ordinal", "training.deepspeed=deepspeed_configs/zero2.json", "train with DDP"),
        ("exif_ordinal", "training.num_generations=4", "unknown key `num_generations`"),
        ("exif_ordinal", "model.start=folder", "model.path: is needed"),
        ("exif_ordinal", "model.start=imagenet", "are those of a ResNet-50"),
        ("exif_ordinal", "model.path=x", "is not used by `start: random`"),
        ("exif_ordinal", "model.tiny.depths=[1]", "has 4 stages, `depths` has 1"),
        ("exif_ordinal", "optimizer={kind: adam}; training.optim=sgd", "training.optim: is not used"),
        ("exif_ordinal", "transform.image_std=[0.5, 0.5, 0]", "must be above 0"),
        ("exif_ordinal", "control.shuffle_mos=true", "did you mean `shuffle_settings`"),
        (
            "exif_ordinal",
            "evaluation.generated.odd={format: simulated_fake}",
            "evaluation.generated.odd.format: `simulated_fake` is not one of folder, simulated_fakes; did you mean",
        ),
        (
            "exif_ordinal",
            "data.source={count: 3}",
            "data.source.format: required key `format` is missing; the formats",
        ),
        ("blades", "data.parts={train: 0.6, validation: 0.1, calibration: 0.3}", "lacks `outer`"),
        ("blades", "bilevel.primary=[coarse]", "did you mean `coarse_face`"),
        ("blades", "bilevel.init={coarse_face: -1}", "cannot hold"),
        ("blades", "bilevel.outer=validation", "bilevel.outer"),
        ("blades", "model.tiny=null", "belongs to `tiny`"),
        ("blades", "model.tiny_text.heads=3", "take a multiple"),
        ("blades", "model.text_path=x", "does not fit a tiny text tower"),
        ("blades", "training.deepspeed=deepspeed_configs/zero2.json", "train with DDP"),
        ("blades", "bilevel=null", "data.parts.outer"),
    ],
)
def test_impossible_recipes(name, override, message):
    assert message in problems_of(name, *override.split("; "))


def test_all_problems_come_at_once():
    text = problems_of("blades", "bilevel.lr=0", "model.tiny.norm=layer", "detector.components=0", "training.lr=1")
    for where in ("bilevel.lr", "model.tiny.norm", "detector.components", "unknown key `lr`"):
        assert where in text
    assert "data.parts.outer" not in text  # nothing is known of a section that is wrong itself


def test_paper_recipes_are_the_papers_runs():
    one, blades = (load_recipe(PAPER[name]).recipe for name in ("exif_ordinal", "blades"))
    assert one.columns is None and one.detector.components == 12 and one.detector.unit_length is False
    assert (one.training["learning_rate"], one.training["adam_beta2"], one.training["weight_decay"]) == (
        1e-5,
        0.98,
        1e-4,
    )
    assert one.optimizer.kind == "adam"
    assert sum(blades.columns.values()) == 50 and blades.detector.components == 10
    assert blades.bilevel.config().primary == ("coarse_face",) and blades.bilevel.lr == 3e-4
    assert blades.training["num_train_epochs"] == 20 and blades.optimizer.kind == "adamw"


# --- what a run needs ------------------------------------------------------------------------------------------------


def test_missing_weights_and_data_end_a_run_with_exit_code_3(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert run_recipe(str(PAPER["blades"])) == 3
    text = capsys.readouterr().err
    assert "weights/exif_as_language is no folder of an encoder" in text and "exif-as-language" in text
    assert "open_clip_model.safetensors is not there" in text and "hf download timm/resnet50_clip.openai" in text
    assert "data/fdf/manifest.jsonl is not here; get it from https://github.com/hukkelas/FDF" in text
    assert "data/celeba/test is not here" in text and "data/generated/stylegan2 is not here" in text
    assert run_recipe(str(PAPER["exif_ordinal"]), ["model.start=imagenet", "model.path=null"]) == 3
    text = capsys.readouterr().err
    place = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    assert f"{place} is not there; download https://download.pytorch.org/models/resnet50-0676ba61.pth" in text


def test_absent_pictures_of_a_manifest_are_counted(tmp_path):
    recipe = loaded("exif_ordinal", tmp_path / "run")
    study = load_study(recipe, tmp_path / "run")
    manifest = tmp_path / "run" / "data" / "photographs" / "manifest.jsonl"
    Path(study.parts["train"][0].image).unlink()
    source = f"data.source={{format: manifest, manifest: '{manifest}'}}"
    whole = load_recipe(TINY["exif_ordinal"], [source, "detector.rates=[0.1]"])
    (problem,) = missing_requirements(whole)
    assert "data.source: 1 of 80 pictures are not there" in problem


def test_tiny_recipes_lack_nothing():
    assert [missing_requirements(load_recipe(path)) for path in TINY.values()] == [[], []]


# --- data ------------------------------------------------------------------------------------------------------------


def test_parts_are_disjoint_and_the_control_moves_settings_only(tmp_path):
    study = load_study(loaded("blades", tmp_path, "data.parts=null", "data.source.count=200"), tmp_path)
    assert set(study.parts) == {"train", "outer", "validation", "calibration"}
    names = [record.image for records in study.parts.values() for record in records]
    assert len(names) == len(set(names)) == 200
    control = shuffled(study, 3)
    for name, records in study.parts.items():
        others = control.parts[name]
        assert [record.image for record in others] == [record.image for record in records]
        assert any(a.settings != b.settings for a, b in zip(records, others, strict=True))
        key = [sorted(str(r.settings.values) for r in side) for side in (records, others)]
        assert key[0] == key[1]
    assert control.test == study.test and control.fit == study.fit


def test_held_out_photographs_must_not_be_trained_on(tmp_path):
    recipe = loaded("exif_ordinal", tmp_path, "evaluation.photographs.first=0")
    with pytest.raises(DataError, match="24 of 24 are in the part|are in the part"):
        load_study(recipe, tmp_path)


def test_the_commands_find_the_photographs_of_a_detector():
    from thurl.cli.exif import detectors

    assert (detectors.FITTED, detectors.CALIBRATED) == (FITTED, CALIBRATED)


def test_too_few_calibration_photographs_are_found_before_training(tmp_path):
    with pytest.raises(DataError, match="evaluation.rate: 0.05 on two sides needs 39 calibration photographs"):
        load_study(loaded("exif_ordinal", tmp_path, "evaluation.rate=0.05"), tmp_path)


def test_the_detector_may_have_photographs_of_its_own(tmp_path):
    write_photographs(tmp_path / "faces", 40, seed=9, size=24)
    (tmp_path / "faces" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    source = f"detector.photographs={{format: folder, folder: '{tmp_path / 'faces'}'}}"
    alone = ["control.shuffle_settings=false", "evaluation.before=false", "evaluation.generated={}"]
    options = [source, "detector.calibration_share=0.5", "training.max_steps=2", *alone]
    recipe = loaded("exif_ordinal", tmp_path / "run", *options)
    record = run(recipe, recipe_path="x")
    detector = load_detector(tmp_path / "run" / "detector.safetensors")
    left_out = detector.training["fit_left_out"], detector.training["calibration_left_out"]
    assert sum(left_out) == 1
    # `thurl exif calibrate` and `evaluate` refuse these photographs.
    assert len(detector.training[FITTED]) + len(detector.training[CALIBRATED][""]) == 41
    assert detector.training["photographs"] + len(detector.calibration().scores) == 40
    assert record["false_alarms"]["0.1"]["realised"] >= 0


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exif_ordinal", "blades"])
def test_a_whole_run_with_its_control(tmp_path, name):
    overrides = [f"report.results={tmp_path / 'results.json'}", f"report.html={tmp_path / 'report.html'}"]
    recipe = loaded(name, tmp_path / "run", *overrides)
    record = run(recipe, recipe_path=str(TINY[name]), overrides=overrides)
    results = json.loads((tmp_path / "results.json").read_text())
    check_run_report(tmp_path / "results.json", tmp_path / "report.html")
    assert results["runs"] == [record]
    assert set(record["after"]) == {"test", "test_edits", "validation"} and set(record["before"]) == {
        "test",
        "test_edits",
    }
    assert record["after"]["test"]["srcc_iso"] != record["before"]["test"]["srcc_iso"]
    assert record["control"]["test"]["srcc_iso"] != record["after"]["test"]["srcc_iso"]
    assert record["after"]["test"]["auc_manipulated"] is None  # no edits there
    assert 0 <= record["after"]["test_edits"]["auc_manipulated"] <= 1
    alarms = record["false_alarms"]["0.1"]
    assert 0 <= alarms["realised"] <= 1 and alarms["standard_error"] > 0 and alarms["official"] is None
    assert set(record["generated"]) == {"reborn", "smooth", "grid"}
    assert {"auc", "auc_two_sided", "auc_before", "auc_control", "too_high"} <= set(record["generated"]["reborn"])
    assert [entry["step"] for entry in results["trajectory"] if "eval_proxy_loss" in entry] == [2, 4]
    if name == "blades":
        assert all(0.9 < weight < 1.1 for weight in record["weights"].values())
        assert any(weight != 1 for weight in record["weights"].values())
    page = (tmp_path / "report.html").read_text()
    for heading in ("Pretext tasks on held-out photographs", "False alarms", "Generated faces", "Learning curves"):
        assert heading in page
    assert ("Learned task weights" in page) == (name == "blades")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "detection AUC reborn" in card and "knows no real photograph" in card and "arxiv.org" in card
    # What it leaves is what a person needs to judge pictures: model, image processor and detector fit together.
    judge = FaceDetector.from_pretrained(tmp_path / "run", tmp_path / "run" / "detector.safetensors")
    pictures = sorted((tmp_path / "run" / "data" / "test").glob("*.jpg"))
    share = np.mean([v.decision == "generated" for v in judge.score(pictures, Rule(rate=0.1))])
    assert share == pytest.approx(alarms["realised"])


def test_the_best_checkpoint_is_kept(tmp_path):
    recipe = loaded("exif_ordinal", tmp_path, "training.save_total_limit=null", "evaluation=null")
    trained = train(recipe, training_arguments(recipe), load_study(recipe, tmp_path))
    losses = {entry["step"]: entry["eval_proxy_loss"] for entry in trained.log if "eval_proxy_loss" in entry}
    best = min(losses, key=losses.get)
    for name, tensor in load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors").items():
        assert torch.equal(trained.trainer.model.state_dict()[name].cpu(), tensor), name


@pytest.mark.parametrize(("shuffle", "expected"), [(True, [("", False)]), (False, [("", True), ("control", False)])])
def test_the_control_is_judged_after_its_last_step(tmp_path, monkeypatch, shuffle, expected):
    """Its validation part cannot tell a good checkpoint from a bad one: the settings there mean nothing."""
    seen = []

    class EnoughSeen(Exception):
        pass

    def train(recipe, args, study, name=""):
        seen.append((name, args.load_best_model_at_end))
        if len(seen) == len(expected):
            raise EnoughSeen

    monkeypatch.setattr("thurl.recipe.exif_run.train", train)
    monkeypatch.setattr("thurl.recipe.exif_run.load_study", lambda *_: FaceStudy({}, [], []))
    recipe = loaded("exif_ordinal", tmp_path, f"control.shuffle_settings={not shuffle}".lower())
    with pytest.raises(EnoughSeen):
        run(recipe, recipe_path="r.yaml", shuffle=shuffle)
    assert seen == expected


@pytest.mark.parametrize("kind", ["training", "adam", "adamw"])
def test_optimizers(tmp_path, kind):
    recipe = loaded("exif_ordinal", tmp_path, f"optimizer.kind={kind}", "training.adam_beta2=0.98", "evaluation=null")
    trainer = build_trainer(recipe, training_arguments(recipe), load_study(recipe, tmp_path))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert not torch.equal(value, before[name]), name
    optimizer = trainer.optimizer.optimizer
    groups = optimizer.param_groups
    assert type(optimizer).__name__ == ("Adam" if kind == "adam" else "AdamW")
    assert len(groups) == (2 if kind == "training" else 1) and groups[0]["betas"] == (0.9, 0.98)


def test_starts(tmp_path):
    recipe = loaded("blades", tmp_path)
    torch.manual_seed(0)
    model = build_model(recipe)
    model.save_pretrained(tmp_path / "whole")
    again = loaded("blades", tmp_path, "model.start=folder", f"model.path={tmp_path / 'whole'}")
    torch.manual_seed(1)
    other = build_model(again)
    for name, tensor in model.visual.state_dict().items():
        assert torch.equal(other.visual.state_dict()[name], tensor), name
    assert not torch.equal(other.text_fc.weight, model.text_fc.weight)
    smaller = loaded("blades", tmp_path, *(f"model.{x}" for x in ("start=folder", "tiny.feature_size=4")),
                     f"model.path={tmp_path / 'whole'}")  # fmt: skip
    with pytest.raises(DataError, match="fc.weight has the shape"):
        build_model(smaller)
    nowhere = loaded("blades", tmp_path, "model.start=folder", f"model.path={tmp_path / 'nowhere'}")
    with pytest.raises(MissingRequirementError, match="no folder of a model"):
        build_model(nowhere)


def test_an_imagenet_file_fills_all_but_the_last_layer(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs = resnet50()
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "r.safetensors")
    recipe = loaded("exif_ordinal", tmp_path, "model.tiny=null", "model.start=imagenet",
                    f"model.path={tmp_path / 'r.safetensors'}")  # fmt: skip
    encoder = build_model(recipe).visual
    assert isinstance(encoder, ExifEncoder) and encoder.fc.weight.shape == (768, 2048)
    for name, tensor in theirs.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(encoder.state_dict()[name], tensor), name


# --- resume ----------------------------------------------------------------------------------------------------------


class Killed(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def timeless(log):
    return [
        {name: value for name, value in entry.items() if not name.startswith(("timing/", "train_", "eval_runtime"))
         and "per_second" not in name}
        for entry in log
    ]  # fmt: skip


@pytest.mark.parametrize("delayed", ["true", "false"])
def test_a_killed_blades_run_goes_on_bit_for_bit(tmp_path, delayed):
    """The second epoch begins inside: edits, outer batches and task weights must all go on."""
    options = ["evaluation=null", "training.max_steps=9", f"bilevel.delayed={delayed}", "training.save_steps=2",
               "training.load_best_model_at_end=false", "training.eval_steps=4"]  # fmt: skip

    def trainer_in(folder):
        recipe = loaded("blades", folder, *options)
        return build_trainer(recipe, training_arguments(recipe), load_study(recipe, tmp_path))

    whole = trainer_in(tmp_path / "whole")
    whole.train()
    assert whole.state.epoch > 1
    killed = trainer_in(tmp_path / "run")
    killed.add_callback(Killed(7))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer_in(tmp_path / "run")
    resumed.train("auto")
    logs = [
        json.dumps(timeless(trainer.state.log_history), sort_keys=True) for trainer in (resumed, whole)
    ]  # NaN is not equal to NaN
    assert logs[0] == logs[1]
    assert resumed.term_weights == whole.term_weights
    assert any(weight != 1 for weight in whole.term_weights.values())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
