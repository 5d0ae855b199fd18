"""The distillation recipe: validation, a whole run scaled down, the choice, resume, the page's own utility."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from thurl.distillation import ddr
from thurl.distillation.experts import ExpertConfig, train_experts
from thurl.distillation.joint_trainer import JointTrainer
from thurl.distillation.pictures import RealBatches
from thurl.errors import DataError, UsageError
from thurl.recipe.distill_choice import Candidate, choose
from thurl.recipe.distill_data import build_utility, evaluation_config, hold_out, load_study, network_config
from thurl.recipe.distill_report import montage
from thurl.recipe.distill_run import FILE, run
from thurl.recipe.distill_stages import Distillation
from thurl.recipe.launch import run_recipe
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe
from thurl.training.results import read_results

from .run_reports import check_run_report


TINY = str(find_recipe("tiny/distill_rate_utility"))
FULL = str(find_recipe("distill_rate_utility"))
SMALL = (
    *("model.samples_per_class=3", "model.widths=[4]", "data.train_per_class=20", "data.test_per_class=5"),
    *("warm_up.iterations=15", "warm_up.candidates=1", "fit.max_steps=30", "training.max_steps=12"),
    *("utility.batch_real=4", "utility.depth=1", "utility.width=4", "training.logging_steps=6"),
    *("evaluation.images=200", "evaluation.seeds=[0]", "choice.seeds=[1000]", "baselines.qualities=[5]"),
    *("baselines.pixel_steps=2", "report.results=null", "report.html=null", "rate.bits_per_class=900"),
)


def recipe(folder, *overrides):
    name = f"training.output_dir={json.dumps(str(folder))}"
    return load_recipe(TINY, [*SMALL, name, *overrides]).recipe


# --- validation ------------------------------------------------------------------------------------------------------


def test_all_mistakes_at_once_without_torch():
    overrides = [
        *("model.decoder=v66", "data.size=8", "utility.experts=y", "utility.kind=gm"),
        *("utility.syn_steps=3", "rate.lambdas=[{steps: 5, value: 1.0}]", "training.bf16=true", "choice.seeds=[0]"),
        *("warm_up.keep=9", "training.gradient_accumulation_steps=2", "data.mean=[0.5]", "rate.ramps=1"),
    ]
    script = (
        "import sys\nfrom thurl.errors import UsageError\nfrom thurl.recipe.validate import load_recipe\n"
        f"try:\n    load_recipe({TINY!r}, {overrides!r})\nexcept UsageError as error:\n"
        "    print(*error.problems, sep='\\n')\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        *("give either `decoder` or `widths`; the recipe has both", "`v66` is not one of", "belongs to `std`"),
        *("which are 8 x 8", "utility.experts: y does not exist", "is for `kind: tm`", "unknown key `ramps`"),
        *("bits need float32", "is 9, but there are 2 `candidates`", "must be 1; `utility` has the sizes of batches"),
        "must differ from `evaluation.seeds`",
    ):
        assert words in done.stdout, (words, done.stdout)


def test_combinations_that_make_no_sense():
    with pytest.raises(UsageError, match="give either `bits_per_class` or `lambdas`; the recipe has both"):
        load_recipe(TINY, ["rate.lambdas=[{steps: 200, value: 1.0}]"])
    with pytest.raises(UsageError, match="have 7 steps together, `training.max_steps` is 20000"):
        load_recipe(FULL, ["rate.lambdas=[{steps: 7, value: 1.0}]"])
    with pytest.raises(UsageError, match="`choice` chooses"):
        load_recipe(TINY, ["training.load_best_model_at_end=true"])
    with pytest.raises(UsageError, match="must say how long"):
        load_recipe(TINY, ["training.max_steps=-1"])
    with pytest.raises(UsageError, match="is not used by `format: digits`"):
        load_recipe(TINY, ["data.source.folder=."])
    with pytest.raises(UsageError, match="is needed by `format: imagenet`"):
        load_recipe(FULL, ["data.source.subset=null"])


def test_the_settings_of_the_page_are_valid(tmp_path):
    """Every override in the table of docs/distillation.md."""
    page = (Path(__file__).parents[2] / "docs" / "distillation.md").read_text(encoding="utf-8")
    table = page[page.index("| setting | overrides |") : page.index("Sizes in the paper's figures")]
    (tmp_path / "FOLDER").mkdir()
    base: list[str] = []
    checked = 0
    for line in table.splitlines()[2:]:
        if not line.startswith("|"):
            continue
        cells = line.strip("| ").split(" | ")
        words = re.findall(r"`([^`]*=[^`]*)`", cells[1])
        overrides = [word.replace("FOLDER", str(tmp_path / "FOLDER")) for text in words for word in _split(text)]
        if cells[1].startswith("the same"):
            overrides = [*base, *overrides]
        else:
            base = overrides
        load_recipe(FULL, overrides)
        checked += len(overrides)
    assert checked > 30


def _split(text):
    """Words at spaces outside of brackets."""
    return re.findall(r"(?:[^\s\[\]{}]|\[[^\]]*\]|\{[^}]*\})+", text)


def test_missing_data_ends_with_three_and_says_where_to_get_it(capsys):
    assert run_recipe(FULL) == 3
    assert "get it from https://image-net.org" in capsys.readouterr().err


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of everything, with its record and recipe."""
    folder = tmp_path_factory.mktemp("distilled")
    places = [f"report.results={folder / 'results.json'}", f"report.html={folder / 'page.html'}"]
    loaded = recipe(folder, *places)
    return loaded, run(loaded, recipe_path=TINY, overrides=places), folder


def test_the_file_is_what_the_record_says(whole):
    _, record, folder = whole
    size = 8 * (folder / FILE).stat().st_size
    assert record["bits"]["total_bits"] == size and record["bits_per_class"] == pytest.approx(size / 10)
    assert record["bits_per_class"] <= 900 and record["within_target"] is True
    assert record["paper_bits_per_class"] < record["bits_per_class"]
    assert record["pixels"] == {"fp32": 3 * 64 * 32, "fp16": 3 * 64 * 16, "uint8": 3 * 64 * 8}
    set_ = ddr.load(folder / FILE)
    assert len(set_) == 30 and sorted(set_.labels.tolist()) == sorted(list(range(10)) * 3)
    assert set_.hints["augmentation"] == "dsa" and set_.hints["network"]["filters"] == 4


def test_accuracy_is_that_of_the_pictures_in_the_file(whole):
    from thurl.distillation.evaluation import evaluate

    loaded, record, folder = whole
    set_, study = ddr.load(folder / FILE), load_study(loaded)
    found = evaluate(set_.images, set_.labels, study.test, evaluation_config(loaded, study.train), [0])
    assert record["accuracy"]["each"] == {"0": found.accuracies[0]}
    assert record["sets"][record["shipped"]]["test"] == record["accuracy"]
    held_out = {name: entry["held_out"]["mean"] for name, entry in record["sets"].items()}
    assert held_out[record["shipped"]] == max(held_out.values()) and set(held_out) == {"joint", "warm_up"}


def test_every_baseline_is_at_these_bits_and_says_what_was_counted(whole):
    _, record, _ = whole
    assert set(record["baselines"]) >= {"real_pixels", "dm_pixels", "jpeg"}
    for name, entry in record["baselines"].items():
        assert 0 <= entry["accuracy"]["mean"] <= 1 and entry["accounting"] and entry["decode_seconds"] >= 0
        assert entry["bits_per_class"] <= record["bits_per_class"] or "pixels" in name


def test_results_and_page_are_written(whole):
    _, record, folder = whole
    assert read_results(folder / "results.json")["runs"][0]["bits_per_class"] == record["bits_per_class"]
    check_run_report(folder / "results.json", folder / "page.html")
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "Distilled data set" in page and "JPEG" in page and page.count("data:image/png") >= 4
    assert "Trained with thurl" in (folder / "joint" / "README.md").read_text(encoding="utf-8")


def test_a_finished_run_trains_nothing_again_and_gives_the_same_file(whole, monkeypatch):
    loaded, _, folder = whole
    content = (folder / FILE).read_bytes()
    (folder / FILE).unlink()
    monkeypatch.setattr(JointTrainer, "train", lambda self, *a, **k: pytest.fail("trained again"))
    again = recipe(folder, "training.resume_from_checkpoint=auto", "baselines.names=[]")
    record = run(again, recipe_path=TINY)
    assert (folder / FILE).read_bytes() == content and record["baselines"] == {}


def test_a_killed_run_gives_the_file_of_the_uninterrupted_one(whole, tmp_path, monkeypatch):
    _, _, folder = whole
    fields = ("training.save_strategy=steps", "training.save_steps=3", "baselines.names=[]")
    step = JointTrainer.training_step

    def dying(self, *args, **kwargs):
        if "joint" in str(self.args.output_dir) and self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(JointTrainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path, *fields), recipe_path=TINY)
    monkeypatch.setattr(JointTrainer, "training_step", step)
    run(recipe(tmp_path, *fields, "training.resume_from_checkpoint=auto"), recipe_path=TINY)
    assert (tmp_path / FILE).read_bytes() == (folder / FILE).read_bytes()


def test_trajectory_matching_learns_a_step_size_that_the_file_tells(tmp_path):
    loaded = recipe(tmp_path)
    pictures = load_study(loaded).train
    experts = train_experts(pictures, ExpertConfig(network_config(loaded, pictures), 1, 3), tmp_path / "experts")
    changes = ["utility.kind=tm", f"utility.experts={experts}", "utility.syn_steps=2", "utility.expert_epochs=1"]
    changes += ["utility.max_start_epoch=2", "utility.teacher_lr=0.02", "utility.teacher_lr_lr=1.0"]
    changes += ["utility.batch_real=256", "baselines.names=[]"]
    record = run(recipe(tmp_path / "run", *changes), recipe_path=TINY)
    finished = json.loads((tmp_path / "run" / "joint" / "finished.json").read_text(encoding="utf-8"))
    assert finished["learned_rate"] != pytest.approx(0.02, rel=1e-4) and finished["learned_rate"] >= 1e-3
    assert ddr.load(tmp_path / "run" / FILE).hints["lr"] == finished["learned_rate"]
    assert record["sets"]["joint"]["held_out"] is not None


def test_lambda_by_hand_compares_at_the_bits_of_the_joint_run(tmp_path):
    lambdas = ["rate.bits_per_class=null", "rate.lambdas=[{steps: 12, value: 0.01}]"]
    more = ["baselines.names=[]", "model.shared=false", "model.slice_size=2", "choice.checkpoints=1"]
    more += ["training.save_strategy=steps", "training.save_steps=10"]
    record = run(recipe(tmp_path, *lambdas, *more), recipe_path=TINY)
    bits = {name: entry["bits_per_class"] for name, entry in record["sets"].items()}
    assert record["target"] is None and record["within_target"]
    assert bits["warm_up"] <= bits["joint"] or record["sets"]["warm_up"]["held_out"] is None


def test_a_size_below_the_networks_is_refused(tmp_path):
    with pytest.raises(UsageError, match="networks and header alone"):
        run(recipe(tmp_path, "rate.bits_per_class=20"), recipe_path=TINY)


def test_a_size_that_cannot_be_kept_is_reported(tmp_path, caplog):
    """Two steps do not bring the warm-up down; the smallest set is shipped, and the record says so."""
    short = ["fit.max_steps=2", "training.max_steps=2", "rate.bits_per_class=320", "baselines.names=[]"]
    with caplog.at_level("WARNING"):
        record = run(recipe(tmp_path, *short, "warm_up.rate_weight=1e-5"), recipe_path=TINY)
    assert record["bits_per_class"] > 320 and record["within_target"] is False
    assert "above the 320 asked for" in caplog.text


# --- the choice ------------------------------------------------------------------------------------------------------


def candidates(**bits):
    return [Candidate(name, SimpleNamespace(bits_per_class=value)) for name, value in bits.items()]


def judge(**accuracy):
    def of(coded):
        return {"mean": accuracy[f"b{coded.bits_per_class}"]}

    return of


def test_the_warm_up_is_shipped_where_the_joint_run_is_worse():
    found = choose(candidates(joint=90, warm_up=80), 100, judge(b90=0.5, b80=0.6))
    assert found.chosen.name == "warm_up" and found.within_target
    assert choose(candidates(joint=90, warm_up=80), 100, judge(b90=0.7, b80=0.6)).chosen.name == "joint"


def test_of_equals_the_smaller_one_is_shipped():
    assert choose(candidates(joint=90, warm_up=80), 100, judge(b90=0.5, b80=0.5)).chosen.name == "warm_up"


def test_what_is_above_the_size_cannot_be_chosen_however_good():
    found = choose(candidates(joint=110, warm_up=80), 100, judge(b80=0.1))
    assert found.chosen.name == "warm_up" and set(found.held_out) == {"warm_up"}
    none = choose(candidates(joint=120, warm_up=110), 100, judge(b110=0.9))
    assert none.chosen.name == "warm_up" and not none.within_target


def test_without_a_size_nothing_may_have_more_bits_than_the_joint_run():
    assert choose(candidates(joint=90, warm_up=95), None, judge(b90=0.1)).chosen.name == "joint"


def test_diverged_networks_choose_nothing():
    assert choose(candidates(joint=90, warm_up=80), 100, judge(b90=float("nan"), b80=0.1)).chosen.name == "warm_up"
    with pytest.raises(DataError, match="diverged"):
        choose(candidates(joint=90), 100, judge(b90=float("nan")))


# --- parts -----------------------------------------------------------------------------------------------------------


def test_held_out_pictures_are_apart_and_of_every_class(tmp_path):
    study = load_study(recipe(tmp_path))
    first, second = study.train, study.held_out
    assert min(first.counts) == 15 and min(second.counts) == 5
    rows = {tuple(image.flatten().tolist()) for image in first.images}
    assert all(tuple(image.flatten().tolist()) not in rows for image in second.images)
    again = hold_out(load_study(recipe(tmp_path)).train, 0.01, 0)[1]
    assert set(again.counts) == {1}


def test_too_few_pictures_for_the_warm_up_are_named(tmp_path):
    with pytest.raises(DataError, match="0 has 15"):
        load_study(recipe(tmp_path, "model.samples_per_class=16"))


def test_slices_by_class_and_shared_hold_the_same_pictures(tmp_path):
    targets = []
    for shared in ("true", "false"):
        work = recipe(tmp_path / shared, f"model.shared={shared}", "warm_up.iterations=1")
        start, _ = Distillation(work, load_study(work), tmp_path / shared).start()
        targets.append(start)
    assert [table.shape for table in targets[0].labels] == [(1, 30)]
    assert [table.shape for table in targets[1].labels] == [(10, 3)]
    assert torch.equal(targets[0].targets, targets[1].targets)


def test_montage_has_a_row_per_class():
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 2, 2) * 60
    picture = np.array(montage(images, torch.tensor([1, 0, 1, 0]), 2, 2))
    assert picture.shape == (6, 6) and picture[0, 0] == 60 and picture[3, 0] == 0 and picture[0, 3] == 180


def test_the_utility_of_the_page_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "distillation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = [block for block in blocks if "MomentMatching(Utility)" in block]
    assert len(code.splitlines()) <= 30
    names: dict = {}
    exec(code, names)
    loaded = recipe(tmp_path)
    study = load_study(loaded)
    utility = names["MomentMatching"](build_utility(loaded, study.train).network, 8)
    drawn = study.train.draw(3, torch.Generator().manual_seed(0))
    images = drawn.normalised().requires_grad_()
    real, generator = RealBatches(study.train), torch.Generator().manual_seed(1)
    first = utility.loss(images, drawn.labels, real, generator)
    first.backward()
    assert images.grad.abs().sum() > 0
    noise = utility.loss(torch.randn(images.shape), drawn.labels, real, generator)
    assert first < noise
