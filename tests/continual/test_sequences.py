"""Sequence files, replay, agreement of rankings, the report, learners by name."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from thurl.continual.baselines import build_baselines
from thurl.continual.closed_form import LDA, RanPAC, SimpleCIL
from thurl.continual.evaluator import Evaluator
from thurl.continual.learners import learners_of, make_learner, parse_learner
from thurl.continual.mdp import SearchSettings
from thurl.continual.replay import ranking_agreement, replay, transfer_matrix
from thurl.continual.report import builder_rows, write_report
from thurl.continual.search import search_sequence
from thurl.continual.sequence_file import benchmark_tasks, read_sequence, sequence_document, write_sequence
from thurl.errors import DataError, UsageError

from .conftest import blobs


SETTINGS = SearchSettings(tasks=3, classes_per_task=2, starts=5, clusters=2, simulations=4, depth=2, seed=5)


@pytest.fixture(scope="module")
def document():
    with Evaluator(blobs(), [SimpleCIL(), LDA()], seed=2) as evaluator:
        found = search_sequence(evaluator, SETTINGS)
        return sequence_document(evaluator, SETTINGS, found, build_baselines(evaluator, SETTINGS, 12))


def test_a_sequence_file_comes_back(document, tmp_path):
    write_sequence(tmp_path / "s.json", document)
    again = read_sequence(tmp_path / "s.json")
    assert again == json.loads(json.dumps(document))
    assert again["mode"] == "joint" and again["learners"] == [{"name": "simplecil"}, {"name": "lda", "ridge": 0.01}]
    tasks = benchmark_tasks(again, blobs())
    assert [[blobs().classes[i] for i in task] for task in tasks] == document["tasks"]


def test_another_pool_is_refused(document):
    with pytest.raises(DataError, match="found in a pool with hash blobs-0.* blobs-1"):
        benchmark_tasks(document, blobs(seed=1))
    changed = copy.deepcopy(document)
    changed["tasks"][0][0] = "blobs/99"
    with pytest.raises(DataError, match="blobs/99.* not in the pool"):
        benchmark_tasks(changed, blobs())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 99}, "update thurl"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": [["a"], [5]]}, "must be texts"),
        ({"tasks": [["a", "b"], ["b"]]}, "class b is in several tasks"),
        ({"found": {}}, "record lacks `rewards`"),
        ({"pool_hash": 5, "seed": "x"}, "`pool_hash` must be a str(.|\n)*`seed` must be a int"),
    ],
)
def test_bad_files_are_named(document, tmp_path, change, message):
    (tmp_path / "s.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(DataError, match=message):
        read_sequence(tmp_path / "s.json")


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(DataError, match="not a sequence file"):
        read_sequence(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="one JSON object"):
        read_sequence(tmp_path / "list.json")


def test_a_replay_trains_again_and_tests(document):
    data = blobs()
    tasks = benchmark_tasks(document, data)
    found = replay(data, [SimpleCIL(), RanPAC(30, 1.0)], tasks, seeds=[7, 8, 9], search_seed=2)
    assert set(found["learners"]) == {"simplecil", "ranpac"}
    # RanPAC's projection is drawn anew with each seed; SimpleCIL has nothing to draw.
    assert found["learners"]["simplecil"]["std"]["aa"] == 0 < found["learners"]["ranpac"]["std"]["aa"]
    runs = found["learners"]["ranpac"]["runs"]
    assert [run["seed"] for run in runs] == [7, 8, 9]
    assert found["learners"]["ranpac"]["mean"]["aa"] == pytest.approx(np.mean([run["metrics"]["aa"] for run in runs]))
    # All tasks have as many test pictures, so both averages agree.
    assert runs[0]["metrics"]["sample_weighted"] == pytest.approx(runs[0]["metrics"]["aa"])
    with Evaluator(data, [SimpleCIL()], seed=7, split="test") as evaluator:
        assert found["learners"]["simplecil"]["runs"][0]["accuracies"] == [
            list(row) for row in evaluator.accuracies(tasks, 0)
        ]
    assert document["found"]["accuracies"]["simplecil"] != found["learners"]["simplecil"]["runs"][0]["accuracies"]


def test_seeds_of_a_replay_must_be_fresh(document):
    tasks = benchmark_tasks(document, blobs())
    for seeds in ([2, 3], [3, 3], []):
        with pytest.raises(UsageError):
            replay(blobs(), [SimpleCIL()], tasks, seeds=seeds, search_seed=2)


def test_transfer_and_agreement():
    one = {"learners": {"a": {"mean": {"aa": 0.3}}, "b": {"mean": {"aa": 0.6}}}}
    two = {"learners": {"a": {"mean": {"aa": 0.5}}, "b": {"mean": {"aa": 0.2}}}}
    assert transfer_matrix({"a": one, "b": two}) == {"a": {"a": 0.3, "b": 0.6}, "b": {"a": 0.5, "b": 0.2}}
    first = {"a": 0.1, "b": 0.2, "c": 0.3}
    assert ranking_agreement(first, {"a": 5, "b": 6, "c": 7, "d": 1}) == pytest.approx(1)
    assert ranking_agreement(first, {"a": 7, "b": 6, "c": 5}) == pytest.approx(-1)
    assert ranking_agreement(first, {"a": 1, "b": 3, "c": 2}) == pytest.approx(1 / 3)
    assert math.isnan(ranking_agreement(first, {"a": 1}))


def test_the_report_shows_trees_matrices_and_baselines(document, tmp_path):
    hostile = copy.deepcopy(document)
    hostile["tasks"][0][0] = "<script>alert(1)</script>"
    hostile["contamination"] = {hostile["tasks"][1][0]: 0.875}
    data = blobs()
    replayed = replay(data, [SimpleCIL(), LDA()], benchmark_tasks(document, data), seeds=[7, 8])
    write_report(tmp_path / "r.html", hostile, replayed)
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    for words in ("random, mean of 8", "best of candidates", "myopic, equal budget", "proxy hardest", "0.875",
                  "not measured", "mean of 2 seeds", "visits of the children", "AA trained again"):  # fmt: skip
        assert words in page, words
    assert page.count("data:image/png") == 4
    write_report(tmp_path / "bare.html", {**document, "baselines": []})
    assert "left out of this search" in (tmp_path / "bare.html").read_text()
    rows = builder_rows(document)
    assert rows[1][0] == "search" and len(rows) == 1 + 1 + 5


def test_an_undefined_number_is_called_so(document, tmp_path):
    broken = copy.deepcopy(document)
    broken["found"]["metrics"]["lda"]["aa"] = None
    assert builder_rows(broken)[1][1] == "undefined"


def test_learners_by_name(document):
    assert parse_learner("ranpac:width=200,ridge=10") == {"name": "ranpac", "width": 200, "ridge": 10}
    assert parse_learner("er:learning_rate=2e-2")["learning_rate"] == 0.02
    encoder = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    for text in ("simplecil", "ranpac:width=50", "lda", "finetune:epochs=3", "er:per_class=2", "slca:alignment=0"):
        learner = make_learner(parse_learner(text), encoder)
        # What a sequence file keeps of a learner makes the same one again.
        assert make_learner(json.loads(json.dumps(learner.config())), encoder).config() == learner.config()
    for text, message in {
        "ranpac:widht=3": "did you mean `width`",
        "ranpac:width=x": "width is 'x'; it must be a whole number",
        "simplecil:a=1": "it has none",
        "nobody": "choose from",
    }.items():
        with pytest.raises(UsageError, match=message):
            parse_learner(text)
    with pytest.raises(UsageError) as caught:
        learners_of([{"name": "er"}, {"name": "lda"}, {"name": "slca"}])
    assert len(caught.value.problems) == 2 and "give --encoder" in caught.value.problems[0]


def test_individual_mode_is_a_search_for_one():
    with Evaluator(blobs(), [LDA()], seed=2) as evaluator:
        found = search_sequence(evaluator, replace(SETTINGS, tasks=2))
        assert sequence_document(evaluator, SETTINGS, found)["mode"] == "individual"
    assert torch.get_num_threads() >= 1
