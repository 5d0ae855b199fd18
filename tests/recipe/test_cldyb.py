"""The CLDyB recipe: validation, a whole run, a kill and the same sequence after it, on two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from thurl.continual.pool import read_pool
from thurl.continual.sequence_file import read_sequence
from thurl.errors import UsageError
from thurl.recipe.cldyb_run import run
from thurl.recipe.launch import run_recipe
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe
from thurl.training.results import read_results

from .run_reports import check_run_report


TINY = str(find_recipe("tiny/cldyb"))
FULL = str(find_recipe("cldyb"))
SMALL = (
    *("data.digits.domains=[orig, rot90]", "data.digits.sizes=[8, 6, 6]", "model.tiny.hidden_sizes=[12, 8]"),
    *("model.tiny.epochs=30", "learners=[simplecil, {name: er, epochs: 1}]", "search.tasks=2", "individual=true"),
    *("search.classes_per_task=3", "search.starts=4", "search.clusters=2", "search.simulations=3"),
    *("baselines.names=[random, myopic]", "replay.seeds=[1001, 1002]", "replay.held_out=[lda]"),
)


def overrides(folder):
    files = {"report.results": "results.json", "report.html": "report.html", "report.png": "report.png"}
    placed = [f"{key}={json.dumps(str(folder / name))}" for key, name in files.items()]
    return [*SMALL, f"training.output_dir={json.dumps(str(folder))}", *placed]


# --- validation ------------------------------------------------------------------------------------------------------


def test_all_mistakes_at_once_without_torch():
    wrong = [
        *("model.name_or_path=x/y", "model.prompt_template=photo", "data.manifest=none.jsonl", "data.cap=3"),
        *("data.digits.domains=[orig, upside]", "learners=[{name: ranpac, widht: 3}, ewk, {name: er, epochs: 1.5}]"),
        *("search.pick=best", "search.simulations=0", "search.reward.kind=hard", "baselines.names=[luck]"),
        *("replay.seeds=[3, 3]", "training.learning_rate=0.1", "training.seed=3", "report.pdf=x.pdf"),
    ]
    script = (
        "import sys\nfrom thurl.errors import UsageError\nfrom thurl.recipe.validate import load_recipe\n"
        f"try:\n    load_recipe({TINY!r}, {wrong!r})\nexcept UsageError as error:\n"
        "    print(*error.problems, sep='\\n')\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        *("give either `name_or_path` or `tiny`; the recipe has both", "none.jsonl does not exist"),
        *("did you mean `width`", "is not one of aper, er", "`epochs` is 1.5 (float), but must be a whole number"),
        *("is 'upside'", "search.pick: is 'best'", "search.simulations: is 0", "reward is 'hard'", "is 'luck'"),
        "give each seed once",
        *("has no effect here: how a learner trains is an option of it", "unknown key `pdf`"),
    ):
        assert words in done.stdout, (words, done.stdout)


@pytest.mark.parametrize(
    "changes, message",
    [
        (["learners=[simplecil]", "individual=true"], "compares learners; name two or more"),
        (["learners=[]"], "is empty: name one at least"),
        (["replay.held_out=[er]"], "replay.held_out.0.name: `er` is there already"),
        (["training.seed=1001"], "hold 1001, the seed of the search"),
        (["replay.seeds=[]", "individual=true", "replay.held_out=[]"], "give `replay.seeds`"),
        (["replay.seeds=[]"], "are trained by the replay; add `seeds`"),
        (["search.tasks=9"], "of 5 classes need 45; the digits have 40"),
        (["model.tiny.known=[blur]"], "`blur` is not in the pool"),
        (["search.reward.easiest=true", "search.target_quantile=0.5"], "search.target_quantile: wants"),
        (["data.digits=null"], "give one of `sources`, `manifest`, `digits`; the recipe has none"),
        (["data.digits=null", "data.sources=[{folder: ., hub: x}]"], "give one of `folder`, `arrays`, `hub`"),
        (["data.digits=null", "data.sources=[{folder: nowhere}]"], "sources.0.folder: nowhere does not exist"),
        (["data.names_differ=true"], "is for `sources`; remove it"),
        (["model.tiny=null", "model.name_or_path=a/b", "model.prompt_template='a {} of {}'"], "for the name once"),
    ],
)
def test_combinations_that_make_no_sense(changes, message):
    with pytest.raises(UsageError) as caught:
        load_recipe(TINY, changes)
    assert message in str(caught.value)


def test_missing_data_and_weights_end_with_three(capsys):
    assert run_recipe(FULL, ["model.name_or_path=timm:nowhere"]) == 3
    said = capsys.readouterr().err
    assert "get it from https://www.vision.caltech.edu" in said and "timm/nowhere is not on this machine" in said


def test_the_encoders_of_the_page_are_valid():
    for name in ("openai/clip-vit-base-patch16", "timm:vit_base_patch16_224.augreg_in21k"):
        recipe = load_recipe(FULL, [f"model.name_or_path={name}", "individual=true"]).recipe
        assert recipe.packages == (("sklearn", "timm") if name.startswith("timm") else ("sklearn",))


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cldyb") / "run"
    record = run(load_recipe(TINY, overrides(folder)).recipe, recipe_path="recipes/tiny/cldyb.yaml")
    return folder, record


def test_a_run_leaves_sequences_replays_and_reports(whole):
    folder, record = whole
    joint = read_sequence(folder / "sequence.json")
    assert joint["mode"] == "joint" and joint["tasks"] == record["tasks"] and len(joint["baselines"]) == 9
    assert set(joint["contamination"]) == {uid for task in joint["tasks"] for uid in task}
    for name in ("simplecil", "er"):
        alone = read_sequence(folder / f"sequence_{name}.json")
        assert alone["mode"] == "individual" and [learner["name"] for learner in alone["learners"]] == [name]
        replayed = json.loads((folder / f"replay_{name}.json").read_text())
        assert replayed["seeds"] == [1001, 1002] and set(replayed["learners"]) == {"simplecil", "er", "lda"}
        for learner, entry in replayed["learners"].items():
            assert record["transfer"][name][learner] == entry["mean"]["aa"]
    assert set(record["builders"]["search"]) >= {"aa", "afm", "held_out_aa"} <= set(record["builders"]["random"])
    assert -1 <= record["agreement"]["for simplecil / for er"] <= 1
    cost = record["cost"]
    assert cost["trained"] <= cost["trainings"] < cost["path_trainings"] and 0 < cost["saved_by_prefixes"] < 1
    assert 0.2 < record["encoder_fit"] <= 1
    check_run_report(folder / "results.json", folder / "report.html")
    stored = read_results(folder / "results.json")["runs"][0]
    assert stored["tasks"] == record["tasks"] and stored["transfer"] == record["transfer"]
    table = (folder / "transfer.csv").read_text().splitlines()
    assert table[0] == "sequence,simplecil,er,lda" and float(table[1].split(",")[1]) == pytest.approx(
        record["transfer"]["simplecil"]["simplecil"]
    )
    page = (folder / "report.html").read_text()
    for words in ("Transfer", "Beside random sequences, trained again", "instead of the", "myopic, equal budget"):
        assert words in page, words
    assert Image.open(folder / "report.png").size[0] > 1000


def test_the_pool_and_the_encoder_serve_the_commands(whole):
    from typer.testing import CliRunner

    from thurl.cli import app

    folder, record = whole
    assert read_pool(folder / "pool" / "pool.jsonl").hash == record["pool_hash"]
    options = ["--pool", folder / "pool" / "pool.jsonl", "--encoder", folder / "encoder", "--device", "cpu", "--json",
               "--seeds", "1001,1002", "--cache", folder / "cache" / "states"]  # fmt: skip
    sequences = [folder / "sequence_simplecil.json", folder / "sequence_er.json"]
    done = CliRunner().invoke(app, [str(word) for word in ("cldyb", "transfer", *sequences, *options)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["transfer"]
    assert found == {name: {other: row[other] for other in found} for name, row in record["transfer"].items()}


def test_again_nothing_is_trained(whole):
    folder, record = whole
    again = run(load_recipe(TINY, overrides(folder)).recipe, recipe_path="recipes/tiny/cldyb.yaml")
    assert again["cost"]["trained"] == 0 and _same(again) == _same(record)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_killed_it_goes_on_with_two_processes_to_the_same_sequence(whole, tmp_path):
    folder, record = whole
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([sys.executable, TINY, *overrides(tmp_path)], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "cache" / "states").rglob("*.safetensors"))) < 5 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "sequence.json").exists()
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [sys.executable, *launcher, TINY, *overrides(tmp_path)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    other = read_results(tmp_path / "results.json")["runs"][0]
    assert other["processes"] == 2 and 0 < other["cost"]["trained"] <= record["cost"]["trained"]
    assert _same(other) == _same(read_results(folder / "results.json")["runs"][0])
    for name in ("sequence", "sequence_er"):
        one, two = (read_sequence(place / f"{name}.json") for place in (folder, tmp_path))
        assert one["tasks"] == two["tasks"] and one["found"]["accuracies"] == two["found"]["accuracies"]


def _same(record):
    names = ("tasks", "pool_hash", "searched", "builders", "transfer", "agreement", "encoder_fit")
    return {name: record[name] for name in names} | {"trainings": record["cost"]["trainings"]}
