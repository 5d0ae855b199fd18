"""The A-FINE recipe: what is refused, a whole short run with control, stages alone, and going on after an end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from thurl.errors import DataError, UsageError
from thurl.iqa.afine.model import AFineModel
from thurl.recipe.afine_data import load_study
from thurl.recipe.afine_run import run
from thurl.recipe.validate import load_recipe
from thurl.training.results import read_results

from .run_reports import check_run_report


ROOT = Path(__file__).parents[2]
PAPER = ROOT / "recipes" / "afine.yaml"
RECIPE = ROOT / "recipes" / "tiny" / "afine.yaml"
SHORT = (
    "model.tiny.hidden=16 model.tiny.image_size=32 model.tiny.projection=4 "
    "data.train.0.contents=4 data.train.0.triplets=24 data.train.0.size=32 "
    "data.train.1.contents=4 data.train.1.triplets=24 data.train.1.size=32 "
    "evaluation.sources.0.contents=3 evaluation.sources.0.triplets=10 evaluation.sources.0.size=32 "
    "evaluation.sources.1.contents=3 evaluation.sources.1.triplets=10 evaluation.sources.1.size=32 "
    "training.per_device_train_batch_size=6 training.logging_steps=1 evaluation.intervals=20 "
    "naturalness.training.max_steps=2 fidelity.training.max_steps=2 adapter.training.max_steps=2"
).split()
_SOURCE = "{format: textures, references: imperfect, contents: 3, triplets: 6, size: 32, split: validation}"
VALIDATION = f"data.validation=[{_SOURCE}]"


def loaded(folder, *overrides):
    files = [f"report.results={folder}/results.json", f"report.html={folder}/report.html"]
    return load_recipe(RECIPE, [*SHORT, f"training.output_dir={folder}", *files, *overrides]).recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[adapter, fidelity]", "each once, in this order"),
        ("stages=[]", "each once, in this order"),
        ("data.train.0.stages=[adapter]", "has no data set for stage `fidelity`"),
        ("data.train.0.format=texture", "did you mean `textures`"),
        ("data.train.0.kinds=[blocks]", "data.train.0.kinds"),
        ("data.train.0.photos=somewhere", "somewhere does not exist"),
        ("data.train=[]", "data.train: is empty"),
        ("model.name_or_path=x", "give either `name_or_path` or `tiny`"),
        ("model.tiny.image_size=40", "take a multiple of `patch_size` 16"),
        ("calibration.dataset=PIPAL", "which is no rated training set; there are perfect"),
        ("calibration.kind=moments", "calibration.dataset: is for `kind: opinions`"),
        ("schedule={}", "lr_scheduler_type: has no effect beside `schedule`"),
        ("training.learning_rat=1", "did you mean `learning_rate`"),
        ("adapter.training.learning_rat=1", "adapter.training.learning_rat: unknown key"),
        ("fidelity.training.max_steps=0", "fidelity.training.max_steps"),
        ("training.deepspeed=ds.json", "fits any GPU; use DDP"),
        ("training.eval_strategy=epoch", "add `data.validation`"),
        ("control.shuffle_mos=true", "did you mean `shuffle_labels`"),
    ],
)
def test_impossible_recipes(tmp_path, override, message):
    with pytest.raises(UsageError) as error:
        loaded(tmp_path, override)
    assert message in "\n".join(error.value.problems)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.periods=[10000, 10000]", "restart_weights: has 4 values for 2 periods"),
        ("naturalness.training.max_steps=50000", "end after 40000 steps"),
        ("training.max_steps=-1", "counts steps: set `max_steps`"),
        ("data.train.1.layout=diffiqa", "is for `format: triplets`"),
        ("data.train.0.split=train", "`triplets` has a published split"),
        ("data.train.1.options={x: 1}", "`by_reference` has no option `x`"),
        (["data.train.1.split=train", "data.train.1.reference_list=a.txt"], "a.txt does not exist"),
        ("calibration.dataset=null", "must name the rated training set"),
        ("evaluation.sources.8.part=GAN", "must be 'All', 'Reg' or 'Gen'"),
    ],
)
def test_impossible_recipes_of_the_papers_size(override, message):
    with pytest.raises(UsageError) as error:
        load_recipe(PAPER, override if isinstance(override, list) else [override])
    assert message in "\n".join(error.value.problems)


def test_the_recipe_is_the_released_run():
    recipe = load_recipe(PAPER).recipe
    assert recipe.stages == ("naturalness", "fidelity", "adapter")
    found = {stage: recipe.stage_training(stage) for stage in recipe.stages}
    assert [found[s]["learning_rate"] for s in recipe.stages] == [5e-6, 5e-4, 1e-3]
    assert [found[s]["per_device_train_batch_size"] for s in recipe.stages] == [32, 128, 128]
    assert [found[s]["eval_steps"] for s in recipe.stages] == [1000, 500, 500]
    for fields in found.values():
        assert (fields["max_steps"], fields["adam_beta2"], fields["weight_decay"]) == (40000, 0.99, 1e-3)
    assert (sum(recipe.schedule.periods), recipe.schedule.eta_min) == (40000, 1e-8)
    used = {stage: {s.dataset for s in recipe.data.train if stage in s.stages} for stage in recipe.stages}
    assert used["fidelity"] == {"KADID-10k", "PIPAL", "TID2013"}
    assert used["naturalness"] == used["adapter"] == used["fidelity"] | {"DiffIQA"}
    assert not recipe.adapter.cached, "the released code scores turned pictures in each step"


def test_missing_data_ends_with_where_it_comes_from(tmp_path):
    command = [sys.executable, str(PAPER), f"model.name_or_path={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 3
    for part in ("lacks config.json", "DiffIQA/train_triplets.csv is not here; get it from https://", "SRIQA-Bench"):
        assert part in done.stderr
    assert "tokenizer" not in done.stderr and "preprocessor" not in done.stderr


def test_the_first_stage_needs_all_three_labels(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("a.png,a.png,a.png,1\n")
    source = f"data.train=[{{format: triplets, labels: {tmp_path}/t.csv, images: {tmp_path}}}]"
    options = (source, "calibration={kind: moments}", "evaluation.sources=[]")
    with pytest.raises(DataError, match="t: triplets without the labels g1r and g2r"):
        load_study(loaded(tmp_path, *options), tmp_path)
    assert load_study(loaded(tmp_path, *options, "stages=[adapter]"), tmp_path).digest("adapter")


def test_the_map_may_start_at_the_moments_of_the_scores(tmp_path):
    options = ("calibration={kind: moments}", "stages=[naturalness]", "evaluation.sources=[]", "control=null")
    record = run(loaded(tmp_path, *options), recipe_path="tiny/afine")
    model = AFineModel.from_pretrained(tmp_path)
    assert model.naturalness_map.centre.item() == pytest.approx(record["calibration"]["eta3"], rel=1e-5)
    assert record["after_naturalness"] == {} and "control_naturalness" not in record


def parameters(folder):
    return AFineModel.from_pretrained(folder).state_dict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("afine")
    recipe = loaded(folder, VALIDATION, "training.eval_strategy=steps", "training.eval_steps=1")
    return folder, run(recipe, recipe_path="tiny/afine", overrides=["x=1"])


def test_a_run_trains_stage_after_stage(finished):
    folder, record = finished
    stages = [parameters(folder / stage) for stage in ("naturalness", "fidelity", "adapter")]

    def changed(old, new):
        return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}

    assert changed(stages[0], stages[1]) == {"fidelity_head"}
    assert changed(stages[1], stages[2]) == {"naturalness_map", "fidelity_map", "adapter"}
    assert not changed(stages[2], parameters(folder)), "the folder of the run holds the last stage"
    calibration = record["calibration"]
    assert stages[0]["naturalness_map.centre"].item() == pytest.approx(calibration["eta3"], rel=1e-5)
    assert stages[0]["naturalness_map.width"].item() == pytest.approx(calibration["eta4"], rel=1e-5)
    assert calibration["images"] == 4 * 2 * 6
    card = (folder / "adapter" / "README.md").read_text()
    assert "A-FINE, stage adapter" in card and "2503.11221" in card


def test_a_run_leaves_its_numbers(finished):
    folder, record = finished
    check_run_report(folder / "results.json", folder / "report.html")
    document = read_results(folder / "results.json")
    assert document["runs"] == [record] and document["overrides"] == ["x=1"]
    for moment in ("before", "after_naturalness", "after_fidelity", "after_adapter", "control_adapter"):
        assert set(record[moment]) == {"perfect", "imperfect"}
        assert set(record[moment]["imperfect"]) == {"naturalness", "fidelity", "afine"}
    assert record["after_naturalness"]["perfect"]["naturalness"] == record["after_adapter"]["perfect"]["naturalness"]
    assert document["tests"]["perfect"]["accuracy"]["afine"]["interval"]
    assert document["tests"]["perfect"]["correlation"]["afine"]["scenes_srcc"] == 3 * 2
    done = json.loads((folder / "naturalness" / "finished.json").read_text())
    assert [entry["step"] for entry in done["validation"]] == [1, 2]


def test_a_stage_alone_starts_from_the_folder_before(finished, tmp_path):
    folder, record = finished
    alone = ("stages=[adapter]", "model.tiny=null", f"model.name_or_path={folder}/fidelity")
    again = run(loaded(tmp_path, *alone, "control.shuffle_labels=false"), recipe_path="tiny/afine")
    assert again["after_adapter"] == record["after_adapter"], "the same stage on the same start"
    assert again["before"] == record["after_fidelity"]
    for name, value in parameters(folder).items():
        assert torch.equal(parameters(tmp_path)[name], value), name


def test_a_resumed_run_does_not_train_finished_stages_again(finished, tmp_path):
    import shutil

    folder, record = finished
    place = tmp_path / "run"
    shutil.copytree(folder, place)
    shutil.rmtree(place / "adapter")
    times = (place / "fidelity" / "model.safetensors").stat().st_mtime_ns
    options = (VALIDATION, "training.eval_strategy=steps", "training.eval_steps=1", "control.shuffle_labels=false")
    again = run(loaded(place, *options, "training.resume_from_checkpoint=auto"), recipe_path="tiny/afine")
    # The pictures have moved with the folder, so the stages know that they were trained on others.
    assert (place / "fidelity" / "model.safetensors").stat().st_mtime_ns != times
    times = (place / "fidelity" / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(place / "adapter")
    once_more = run(loaded(place, *options, "training.resume_from_checkpoint=auto"), recipe_path="tiny/afine")
    assert (place / "fidelity" / "model.safetensors").stat().st_mtime_ns == times
    assert once_more["after_adapter"] == again["after_adapter"] == record["after_adapter"]
    assert once_more["before"] == record["before"]


def test_a_clip_is_where_the_first_stage_starts_and_no_other(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=16
    )
    CLIPVisionModel(vision).save_pretrained(tmp_path / "clip")
    options = ("model.tiny=null", f"model.name_or_path={tmp_path / 'clip'}", "control.shuffle_labels=false")
    record = run(loaded(tmp_path / "run", *options, "stages=[naturalness]"), recipe_path="tiny/afine")
    assert set(record) >= {"before", "after_naturalness"} and "after_adapter" not in record
    with pytest.raises(UsageError, match="stage fidelity goes on from an A-FINE model"):
        run(loaded(tmp_path / "other", *options, "stages=[fidelity]"), recipe_path="tiny/afine")


@pytest.mark.slow
def test_the_tiny_recipe_learns_and_its_control_does_not(tmp_path):
    """Bars of the benchmark, on the recipe's own draw; about three minutes of one core."""
    folder = f"training.output_dir={tmp_path}"
    record = run(load_recipe(RECIPE, [folder, f"report.results={tmp_path}/r.json"]).recipe, recipe_path="tiny/afine")
    before, after, control = record["before"], record["after_adapter"], record["control_adapter"]
    assert before["imperfect"]["naturalness"] < 0.7
    for references in ("perfect", "imperfect"):
        assert after[references]["naturalness"] >= 0.93
        assert control[references]["naturalness"] <= 0.70
    assert after["imperfect"]["afine"] >= 0.87
    assert after["imperfect"]["afine"] - after["imperfect"]["fidelity"] >= 0.07
    assert after["perfect"]["afine"] >= 0.97
    assert control["imperfect"]["afine"] - control["imperfect"]["fidelity"] < 0.07
