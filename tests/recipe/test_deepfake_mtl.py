"""The DeepFake recipe: what is refused, what a run needs, a whole short run, encodings per step, exact resume."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, TrainerCallback

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.manifest import write_manifest
from thurl.forensics.deepfake.validation import MEASURED
from thurl.recipe.deepfake_data import load_study
from thurl.recipe.deepfake_model import build_model
from thurl.recipe.deepfake_mtl import _MEASURED
from thurl.recipe.deepfake_run import build_trainer, run, training_arguments
from thurl.recipe.launch import run_recipe
from thurl.recipe.preflight import missing_requirements
from thurl.recipe.validate import load_recipe

from .run_reports import check_run_report


ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny" / "deepfake_mtl.yaml"
PAPER = ROOT / "recipes" / "deepfake_mtl.yaml"
GRAPH = load_graph("ffpp")
SHORT = [
    "model.tiny={patch_size: 16, hidden: 8, layers: 1, heads: 2}",
    "data.sources=[{format: drawn, people: {train: 4, outer: 2, val: 2}, frames: 2}]",
    "evaluation.sources=[{format: drawn, dataset: other, people: {test: 3}, frames: 2, seed: 9}]",
    "bilevel.every=1",
    "evaluation.resamples=20",
    *(f"training.{name}" for name in ("max_steps=4", "eval_steps=2", "save_steps=2", "logging_steps=1")),
    "training.per_device_train_batch_size=4",
]


def loaded(folder, *overrides):
    folder = Path(folder)
    files = [f"report.results={folder}/results.json", f"report.html={folder}/report.html"]
    return load_recipe(TINY, [*SHORT, f"training.output_dir={folder}", *files, *overrides]).recipe


# --- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.tiny=null; model.start=clip", "model.path: is needed by `start: clip`"),
        ("model.path=x", "is not used by `start: random`"),
        ("model.start=folder; model.path=x", "builds a model of its own"),
        ("model.tiny=null; model.start=folder; model.path=x; model.scale=0.2", "is the model's own"),
        ("model.tiny.heads=3", "take a multiple"),
        ("losses.likelihood=0.5", "they are shares of 1"),
        ("transform.size=50", "do not divide"),
        ("transform.image_std=[0.5, 0.5, 0]", "must be above 0"),
        ("data.parts={train: 0.8}", "lacks val"),
        ("data.parts={train: 0.8, val: 0.1}", "adds up to 0.9"),
        ("data.parts={trian: 0.8, val: 0.2}", "did you mean `train`"),
        ("data.sources=[]", "data.sources"),
        ("data.sources=[{format: drawn, people: {train: 2}, regions: [ear]}]", "is none of"),
        ("data.augmentation=2", "data.augmentation"),
        ("bilevel.primary=[binry]", "did you mean `binary`"),
        ("bilevel.init={binary: -1}", "cannot hold"),
        ("evaluation.perturbations=[jpeg_76]", "did you mean `jpeg_75`"),
        ("training.metric_for_best_model=video_acu", "did you mean `video_auc`"),
        ("training.deepspeed=deepspeed_configs/zero2.json", "train with DDP"),
        ("optimizer={kind: adam}; training.optim=sgd", "training.optim: is not used"),
        ("detector={}", "unknown section"),
        ("data.sources=[]", "data.sources: is [] (list), but must have at least 1 item"),
    ],
)
def test_impossible_recipes(override, message):
    with pytest.raises(UsageError) as error:
        load_recipe(TINY, override.split("; "))
    assert message in "\n".join(error.value.problems)


def test_a_wrong_source_does_not_make_its_list_too_short():
    with pytest.raises(UsageError) as error:
        load_recipe(TINY, ["data.sources=[{format: drwn}]"])
    (problem,) = error.value.problems
    assert "data.sources.0.format: `drwn` is not one of manifest, drawn; did you mean `drawn`?" in problem


def test_the_paper_recipe_is_the_documented_command():
    recipe = load_recipe(PAPER).recipe
    wanted = {"learning_rate": 6e-7, "weight_decay": 1e-3, "num_train_epochs": 20, "per_device_train_batch_size": 32}
    assert {name: recipe.training[name] for name in wanted} == wanted
    assert recipe.bilevel.config().primary == ("binary",) and recipe.bilevel.lr == 1e-3
    assert (recipe.model.scale, recipe.model.normalize, recipe.transform.size) == (0.1, False, 224)
    assert recipe.data.augmentation == 0.3 and recipe.evaluation.frames == 64


def test_names_of_what_is_measured_are_those_of_the_evaluator():
    assert _MEASURED == (*MEASURED, "loss", *(f"loss_{task}" for task in GRAPH.tasks))


def test_missing_weights_and_data_end_a_run_with_exit_code_3(capsys):
    assert run_recipe(str(PAPER)) == 3
    text = capsys.readouterr().err
    assert "weights/clip-vit-base-patch32 is no folder of a model" in text and "hf download openai/clip" in text
    assert "data/ffpp/manifest.jsonl is not here; get it from https://github.com/ondyari/FaceForensics" in text
    assert missing_requirements(load_recipe(TINY)) == []


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    recipe = loaded(tmp_path_factory.mktemp("run"))
    return load_study(recipe, Path(recipe.training["output_dir"]), GRAPH)


def of(source):
    return f"data.sources=[{{format: manifest, manifest: '{source}'}}]"


def written(folder, items):
    folder.mkdir(exist_ok=True)
    write_manifest(folder / "faces.jsonl", items, GRAPH)
    path = folder / "faces.jsonl"
    return f"data.sources=[{{format: manifest, manifest: '{path}', allow_outside: true}}]"


def test_no_person_is_in_two_parts(study):
    assert set(study.parts) == {"train", "val", "outer"}
    people = {name: {person for item in items for person in item.identities} for name, items in study.parts.items()}
    assert not people["train"] & people["outer"] and not people["train"] & people["val"]
    assert {item.fake for item in study.parts["train"]} == {0, 1}
    assert {item.dataset for item in study.test} == {"other"}


def test_without_an_outer_split_people_are_set_aside(study, tmp_path):
    items = [item for name in ("train", "val", "outer") for item in study.parts[name]]
    real = [item for item in items if not item.fake]
    # Alone, real faces and those forged of themselves: every person is a group of their own.
    own = [item for item in items if item.fake and len(item.identities) == 2]
    alone = real + [type(item)(**{**vars(item), "identities": item.identities[:1]}) for item in own]
    alone = [type(item)(**{**vars(item), "split": item.split.replace("outer", "train")}) for item in alone]
    recipe = loaded(tmp_path, written(tmp_path / "m", alone), "data.outer_share=0.4")
    parts = load_study(recipe, tmp_path, GRAPH).parts
    people = {name: {item.identities[0] for item in part} for name, part in parts.items()}
    assert people["outer"] and not people["outer"] & people["train"]
    trained = load_study(loaded(tmp_path, written(tmp_path / "m", alone), "bilevel.outer=train"), tmp_path, GRAPH)
    assert "outer" not in trained.parts and len(trained.parts["train"]) == len(parts["train"]) + len(parts["outer"])


def test_a_batch_holds_a_real_face_and_its_forgeries(tmp_path, study):
    def groups(matched):
        recipe = loaded(tmp_path, f"data.matched={matched}", "training.per_device_train_batch_size=6")
        trainer = build_trainer(recipe, training_arguments(recipe), study, GRAPH)
        rows = list(trainer._get_train_sampler())
        assert sorted(rows) == list(range(len(trainer.train_dataset)))
        return [[(study.parts["train"][row].video_key, study.parts["train"][row].frame) for row in rows[at : at + 2]]
                for at in range(0, len(rows), 2)]  # fmt: skip

    together = groups("true")  # one forgery of each
    assert len(together) == 8 and together != groups("false")
    for pair in together:
        (real,) = [(key, frame) for key, frame in pair if not key[1]]
        (forged,) = [(key, frame) for key, frame in pair if key[1]]
        assert forged[1] == real[1] and forged[0][3].startswith(real[0][3])


def test_parts_that_cannot_serve_are_named(study, tmp_path):
    train, val = study.parts["train"], study.parts["val"]

    def refused(items, *overrides):
        recipe = loaded(tmp_path, written(tmp_path / "m", items), "bilevel.outer=train", *overrides)
        with pytest.raises(DataError) as error:
            load_study(recipe, tmp_path, GRAPH)
        return str(error.value)

    assert "has no real face" in refused([item for item in train if item.fake] + list(val))
    assert "has no forged face" in refused(list(train) + [item for item in val if not item.fake])
    assert "no face has the split val" in refused(train)
    assert "split 'development'" in refused([type(item)(**{**vars(item), "split": "development"}) for item in val])
    place = written(tmp_path / "m", list(train) + list(val)).replace("data.sources", "evaluation.sources")
    text = refused(list(train) + list(val), place)
    assert "or of people in it" in text and "faces.jsonl row 1" in text


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_whole_run(tmp_path, study):
    folder = tmp_path / "run"
    record = run(loaded(folder, "evaluation.before=true"), recipe_path="tiny")
    assert record["steps"] == 4 and set(record["weights"]) == {"binary", "global", "local"}
    assert 0 <= record["test"]["video_auc"] <= 1 and record["unusable"] == 0
    assert set(record["perturbed"]) == {"jpeg_75"} and "video_auc" in record["before"]
    assert record["regions"]["nose"] is not None and record["regions"]["skin"] is None
    check_run_report(folder / "results.json", folder / "report.html")
    results = json.loads((folder / "results.json").read_text())
    assert [entry["step"] for entry in results["trajectory"] if "eval_loss" in entry] == [2, 4]
    assert set(results["test"]["datasets"]) == {"other"} and results["test"]["thresholds"]["video"] is not None
    # The checkpoint is chosen by the video AUC of the validation faces.
    (kept,) = folder.glob("checkpoint-*/trainer_state.json")
    state = json.loads(kept.read_text())
    assert state["best_metric"] == record["validation"]["video_auc"]
    card = (folder / "README.md").read_text()
    assert "2408.16305" in card and "drawn faces" in card
    page = (folder / "report.html").read_text()
    assert "Learned task weights" in page and "Attributes and regions" in page
    assert (folder / "preprocessor_config.json").is_file()


def test_a_test_set_of_one_class_and_a_broken_picture_stop_nothing(tmp_path, study, caplog):
    items = [item for item in study.test if item.fake]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    items[0] = type(items[0])(**{**vars(items[0]), "path": str(tmp_path / "broken.png")})
    place = written(tmp_path / "m", items).replace("data.sources", "evaluation.sources")
    record = run(loaded(tmp_path / "run", place, "training.max_steps=1", "evaluation.perturbations=[]",
                        "training.load_best_model_at_end=false"), recipe_path="tiny")  # fmt: skip
    assert record["unusable"] == 1 and record["test"] == {}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "no real face" in results["test"]["not_scored"]["other"] and "broken.png" in results["unusable"][0]
    assert "is not scored" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "encodings"),
    [(["bilevel=null"], 1), (["bilevel.delayed=false"], 4), (["bilevel.delayed=false", "bilevel.method=autograd"], 4)],
)
def test_faces_are_encoded_once_per_forward(tmp_path, study, overrides, encodings):
    """The official code encodes them once per task: 15 times in a step with learned weights."""
    recipe = loaded(tmp_path, "training.max_steps=2", "training.eval_strategy=no", "training.save_strategy=no",
                    "training.load_best_model_at_end=false", *overrides)  # fmt: skip
    parts = {name: part for name, part in study.parts.items() if recipe.bilevel or name != "outer"}
    trainer = build_trainer(recipe, training_arguments(recipe), replace(study, parts=parts), GRAPH)
    calls = []
    trainer.model.vision_model.register_forward_pre_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert len(calls) == 2 * encodings <= 2 * 5
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert {"visual_projection.weight", "text_projection.weight"} <= moved and len(moved) > 0.8 * len(before)


class _Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, study):
    options = ["training.load_best_model_at_end=false", "data.augmentation=0.5"]

    def trained(folder, stop=False, resume=None):
        recipe = loaded(folder, *options)
        trainer = build_trainer(recipe, training_arguments(recipe), study, GRAPH)
        if stop:
            trainer.add_callback(_Stop())
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        return trainer

    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", stop=True)
    again = trained(tmp_path / "parts", resume=str(tmp_path / "parts" / "checkpoint-2"))
    assert again.term_weights == whole.term_weights
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- pictures and CLIP -----------------------------------------------------------------------------------------------


def test_unusable_training_pictures_are_named_before_training(tmp_path):
    parts = load_study(loaded(tmp_path / "drawn"), tmp_path / "drawn", GRAPH).parts
    items = [item for own in parts.values() for item in own]
    manifest = tmp_path / "all.jsonl"
    write_manifest(manifest, items, GRAPH, images=tmp_path)
    recipe = loaded(tmp_path / "run", f"data.sources=[{{format: manifest, manifest: {manifest}, images: {tmp_path}}}]")
    load_study(recipe, tmp_path / "run", GRAPH)
    Path(items[1].path).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"row 2"):
        load_study(recipe, tmp_path / "run", GRAPH)


def test_a_run_starts_from_a_folder_of_clip(tmp_path):
    torch.manual_seed(0)
    tower = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=tower, projection_dim=8))
    clip.save_pretrained(tmp_path)
    recipe = loaded(tmp_path / "run", "model.tiny=null", "model.start=clip", f"model.path={tmp_path}")
    weights = build_model(recipe, GRAPH).state_dict()
    for name, value in clip.state_dict().items():
        if name != "logit_scale":
            assert torch.equal(weights[name], value), name
    with pytest.raises(MissingRequirementError, match="no folder of a CLIP model"):
        other = loaded(tmp_path / "run", "model.tiny=null", "model.start=clip", f"model.path={tmp_path / 'none'}")
        build_model(other, GRAPH)
