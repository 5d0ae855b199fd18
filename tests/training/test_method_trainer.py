"""`MethodTrainer` on a tiny method: the loss, the log, evaluation, resume, the card."""

import inspect
import itertools
import json
import math
import os
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from thurl.errors import DataError, UsageError
from thurl.training.bilevel import BilevelConfig
from thurl.training.evaluation import EvaluationResults
from thurl.training.gather import gather_with_gradient
from thurl.training.grouped_sampler import GroupedSampler
from thurl.training.method_output import MethodOutput
from thurl.training.method_trainer import MethodTrainer
from thurl.training.model_card import MethodCard
from thurl.training.results import write_results

from ..rl.forked_worlds import command
from .method_training import SCRIPT, Spy, logged, runs, trained, weights_of


# --- loss and log ----------------------------------------------------------------------------------------------------


def test_terms_are_weighted_and_logged(tmp_path):
    trainer = trained(tmp_path, "weights", logging_steps=1)
    loss, rank, kind = (logged(trainer, name) for name in ("loss", "terms/rank", "terms/kind"))
    assert len(loss) == 6
    np.testing.assert_allclose(loss, 2 * np.array(rank) + 0.5 * np.array(kind), rtol=1e-5)
    assert rank[-1] < rank[0]
    window = trained(tmp_path, "weights", logging_steps=3)
    np.testing.assert_allclose(logged(window, "terms/rank"), [np.mean(rank[:3]), np.mean(rank[3:])], rtol=1e-6)


def test_without_weights_the_terms_are_added_unless_the_model_has_a_loss(tmp_path):
    trainer = trained(tmp_path, logging_steps=1)
    total = np.array(logged(trainer, "terms/rank")) + np.array(logged(trainer, "terms/kind"))
    np.testing.assert_allclose(logged(trainer, "loss"), total, rtol=1e-5)
    terms = {"a": torch.tensor(3.0)}
    assert trainer._weighted(MethodOutput(loss=torch.tensor(7.0), terms=terms)) == 7
    assert trainer._weighted(MethodOutput(terms=terms)) == 3
    with pytest.raises(UsageError, match="Judge returned neither `loss` nor `terms`"):
        trainer._weighted(MethodOutput())


def test_accumulated_micro_batches_have_the_mean_loss(tmp_path):
    """With the class loss alone, which is a mean over rows, two halves train what one batch does."""
    only = {"weights": {"rank": 0.0, "kind": 1.0}}
    whole = trained(tmp_path, options=only)
    halves = trained(tmp_path, options=only, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    np.testing.assert_allclose(logged(halves, "loss"), logged(whole, "loss"), rtol=1e-5)
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(halves.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_absent_terms_are_left_out_of_the_logged_mean(tmp_path):
    # Three batches of eight, in order; only the first has labels.
    options = {"logging_steps": 3, "max_steps": 3, "train_sampling_strategy": "sequential"}
    some = trained(tmp_path, missing=range(8, 24), **options)
    first = trained(tmp_path, missing=range(8, 24), **{**options, "logging_steps": 1})
    assert len(logged(first, "terms/rank")) == 1, "a term without labels has no value to log"
    assert logged(some, "terms/rank") == logged(first, "terms/rank") and logged(first, "loss")[1:] == [0.0, 0.0]


def test_a_last_batch_of_one_row_has_no_pair_and_harms_nothing(tmp_path):
    one = {"dataloader_drop_last": False, "max_steps": 4, "logging_steps": 1}
    trainer = trained(tmp_path, data=runs.rows(9), **one)
    assert len(logged(trainer, "loss")) == 4 and all(map(math.isfinite, logged(trainer, "loss")))
    assert all(bool(value.isfinite().all()) for value in weights_of(trainer).values())
    assert len(logged(trainer, "terms/rank")) == 2 and len(logged(trainer, "terms/kind")) == 4


def test_names_that_do_not_fit_the_model_are_refused(tmp_path):
    with pytest.raises(UsageError, match="`weights` has rank; the model's loss terms are kind, rank"):
        trained(tmp_path, options={"weights": {"rank": 1.0}})
    with pytest.raises(UsageError, match="`bilevel.tasks` has iso; the model's"):
        trained(tmp_path, options={"bilevel": BilevelConfig(("iso",), ("iso",))})
    with pytest.raises(UsageError, match="give one of the two"):
        trained(tmp_path, options={"weights": {}, "bilevel": BilevelConfig(("iso",), ("iso",))})
    with pytest.raises(UsageError, match="only for the bi-level step"):
        trained(tmp_path, options={"outer_dataset": runs.rows()})


# --- exact resume ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "steps"), [("plain", 2), ("official", 2), ("official", 3), ("delayed", 2), ("every 3", 3), ("grouped", 4)]
)  # an epoch has 3
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, kind, steps):
    options = {"config": {"dropout": 0.3, "batch_norm": True}, "save_strategy": "steps", "save_steps": 1}
    whole = trained(tmp_path / "whole", kind, **options, logging_steps=4)

    def die(step):
        if step == steps + 1:
            raise KeyboardInterrupt

    killed = runs.trainer_for(tmp_path / "run", kind, **options, logging_steps=4, callbacks=[Spy(die)])
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = runs.trainer_for(tmp_path / "run", kind, **options, logging_steps=4)
    resumed.train(True)
    assert runs.timeless(resumed.state.log_history) == runs.timeless(whole.state.log_history)
    assert resumed.term_weights == whole.term_weights
    for name, value in weights_of(whole).items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_run_with_other_weights_is_not_resumed(tmp_path):
    trained(tmp_path, "official", save_strategy="steps", save_steps=3)
    with pytest.raises(UsageError, match="bilevel"):
        runs.trainer_for(tmp_path, "delayed").train(True)


# --- rows that belong together ---------------------------------------------------------------------------------------


def test_rows_of_a_group_share_a_batch(tmp_path):
    trainer = runs.trainer_for(tmp_path, "grouped")
    row_of = {float(row["quality"]): place for place, row in enumerate(runs.rows())}
    seen = []
    loader = trainer.get_train_dataloader()
    for _ in range(2):
        seen.append([[row_of[float(value)] for value in batch["quality"]] for batch in loader])
    for batches in seen:
        assert sorted(sum(batches, [])) == list(range(24))
        for batch in batches:  # of 8, and the groups of 4
            assert sorted(Counter(row % 6 for row in batch).values()) == [4, 4]
    assert seen[0] != seen[1]


def test_groups_of_several_sizes_stay_together_and_no_row_is_lost():
    groups = ["a", "b", "a", "c", "a", "b"]
    sampler = GroupedSampler(groups, seed=3)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(len(sampler)))
        assert len(list(itertools.groupby(orders[-1], key=lambda row: groups[row]))) == 3
    assert len(set(map(tuple, orders))) > 1
    again = GroupedSampler(groups, seed=3)
    again.set_epoch(2)
    assert list(again) == orders[2]
    with pytest.raises(UsageError, match="the group of each row"):
        GroupedSampler([])


def test_groups_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UsageError) as error:
        runs.trainer_for(tmp_path, options={"train_groups": [1, 2]}, train_sampling_strategy="sequential")
    assert len(error.value.problems) == 2 and "2 entries and the training set 24 rows" in error.value.problems[0]


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_rows_come_once_and_in_order(tmp_path):
    trainer = runs.trainer_for(tmp_path)
    data = runs.rows(11, seed=3)
    predicted = trainer.predict_rows(data)
    assert set(predicted) == {"scores", "features"} and predicted["features"].shape == (11, 16)
    with torch.no_grad():
        expected = trainer.model.eval()(torch.stack([row["x"] for row in data])).scores
    np.testing.assert_allclose(predicted["scores"], expected.numpy(), rtol=1e-6)


def test_results_are_typed_and_reach_log_and_best_model(tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = runs.trainer_for(
        tmp_path, "weights", options={"evaluator": runs.count_agreement}, config={"dropout": 0.5}, **fields,
        load_best_model_at_end=True, metric_for_best_model="agreement", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    assert len(logged(trainer, "eval_agreement")) == 3
    results = trainer.evaluation_results["eval"]
    assert isinstance(results, EvaluationResults) and len(results.items) == 11 and results.settings == {"rows": 11}
    assert trainer.state.best_metric == max(logged(trainer, "eval_agreement"))
    results.write_items(tmp_path / "items.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(11)) and lines[3]["score"] == results.items[3]["score"]


def test_evaluating_disturbs_nothing(tmp_path):
    often = trained(
        tmp_path, "official", config={"dropout": 0.4}, eval_strategy="steps", eval_steps=1, logging_steps=1
    )
    never = trained(tmp_path, "official", config={"dropout": 0.4}, logging_steps=1)
    assert logged(often, "eval_loss") and logged(often, "loss")[0] == logged(never, "loss")[0]
    assert often.term_weights.keys() == never.term_weights.keys()
    assert not often.model.training or often.model.training == never.model.training


def test_several_data_sets_and_no_evaluator(tmp_path):
    trainer = runs.trainer_for(tmp_path, "weights")
    metrics = trainer.evaluate({"near": runs.rows(8, seed=4), "far": runs.rows(6, seed=5)})
    assert set(trainer.evaluation_results) == {"eval_near", "eval_far"}
    expected = 2 * metrics["eval_near_rank"] + 0.5 * metrics["eval_near_kind"]
    assert metrics["eval_near_loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DataError, match="'curve': \\[1\\] are no numbers"):
        EvaluationResults({"curve": [1]})


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_record_and_results_file(tmp_path):
    trainer = trained(tmp_path, "official")
    trainer.evaluate()
    document = write_results(tmp_path / "r.json", recipe="x", runs=[trainer.run_record(note="n")])
    (record,) = document["runs"]
    assert record["seed"] == 1 and record["steps"] == 6 and record["note"] == "n"
    assert record["eval"]["loss"] > 0 and set(record["weights"]) == {"rank", "kind"}
    assert record["seconds_per_step"]["outer"] > 0 and record["seconds_per_step"]["update"] > 0
    assert "weights.kind" in document["summary"]


def test_model_card_says_what_was_done(tmp_path):
    card = MethodCard(
        "tiny method", "A Paper: with | marks", "2507.22824", license="apache-2.0", tags=["image"], datasets=["a/b"],
        limits=["Trained on random numbers."],
    )  # fmt: skip
    trainer = trained(tmp_path / "my-model", "official", options={"card": card}, save_strategy="steps", save_steps=6)
    assert "This run was not evaluated." in (tmp_path / "my-model" / "README.md").read_text()
    trainer.evaluate()
    trainer.create_model_card(model_name="judge", tags=["extra"])
    text = (tmp_path / "my-model" / "README.md").read_text()
    head = text.split("---")[1]
    assert "license: apache-2.0" in head and "- extra" in head and "- thurl" in head and "- a/b" in head
    for part in ("# judge", "arxiv.org/abs/2507.22824", "A Paper: with \\| marks", "eval loss", "| rank |",
                 "bilevel.primary", "Trained on random numbers.", "torch 2"):  # fmt: skip
        assert part in text, part


def test_a_saved_model_loads_again(tmp_path):
    trainer = trained(tmp_path)
    trainer.save_model(str(tmp_path / "saved"))
    again = runs.Judge.from_pretrained(tmp_path / "saved")
    for name, value in weights_of(trainer).items():
        assert torch.equal(again.state_dict()[name], value)


def test_pushing_writes_the_card_first(tmp_path, monkeypatch):
    trainer = trained(tmp_path)
    pushed = {}

    class Api:
        def upload_folder(self, **kwargs):
            pushed.update(kwargs, card=(tmp_path / "README.md").read_text(), files=os.listdir(tmp_path))

    monkeypatch.setattr("transformers.trainer.hf_api", lambda: Api())
    monkeypatch.setattr(trainer, "init_hf_repo", lambda token=None: setattr(trainer, "hub_model_id", "me/judge"))
    trainer.hub_model_id = None
    trainer.push_to_hub(license="mit")
    assert pushed["repo_id"] == "me/judge" and "license: mit" in pushed["card"]
    assert "model.safetensors" in pushed["files"]


def test_private_methods_that_are_used_still_have_their_signatures():
    wanted = ["self", "dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"]
    assert list(inspect.signature(Trainer._get_dataloader).parameters) == wanted
    assert list(inspect.signature(Trainer._save_checkpoint).parameters) == ["self", "model", "trial"]
    assert list(inspect.signature(Trainer.get_batch_samples).parameters)[1:] == [
        "epoch_iterator",
        "num_batches",
        "device",
    ]
    loop = inspect.getsource(Trainer._run_epoch)
    assert loop.index("self.get_batch_samples(") < loop.index("self.training_step(model, inputs, num_items_in_batch)")
    assert "_save_checkpoint" in vars(MethodTrainer)
    assert list(inspect.signature(Trainer._get_train_sampler).parameters) == ["self", "train_dataset"]


# --- two processes ---------------------------------------------------------------------------------------------------


KINDS_OF_RUNS = ("weights", "official", "delayed", "grouped")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The records of both processes, and their weights by kind of run; one launch for all."""
    output = tmp_path_factory.mktemp("two") / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command(2, SCRIPT, output, *KINDS_OF_RUNS),
        capture_output=True,
        text=True,
        env=environment,
        timeout=290,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    records = [json.loads(Path(f"{output}.{rank}.json").read_text()) for rank in range(2)]
    weights = {kind: [load_file(f"{output}_{kind}.{rank}.safetensors") for rank in range(2)] for kind in KINDS_OF_RUNS}
    return records, weights


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS_OF_RUNS)
def test_two_processes_train_what_one_does(two_processes, tmp_path, kind):
    one, weights_one = runs.run(tmp_path / "one", kind, 1)
    two, weights_two = [record[kind] for record in two_processes[0]], two_processes[1][kind]
    for name, value in weights_one.items():
        assert torch.equal(weights_two[0][name], weights_two[1][name]), name
        torch.testing.assert_close(weights_two[0][name], value, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(two[0]["log"], one["log"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for record in two:
        assert record["log"] == two[0]["log"] and record["losses"] == two[0]["losses"]
        assert record["weights"] == two[0]["weights"] == pytest.approx(one["weights"], rel=1e-4)
        assert [item["row"] for item in record["items"]] == list(range(11))
        scores = [[item["score"] for item in found["items"]] for found in (record, one)]
        np.testing.assert_allclose(*scores, rtol=1e-3, atol=1e-5)
        assert record["before"] == one["before"]


@pytest.mark.distributed
def test_gathered_rows_and_their_gradients(two_processes):
    """Each process's loss has another weight, 2 and 3: the sum of both reaches every row."""
    found = [record["gathering"] for record in two_processes[0]]
    for part in found:
        assert part["sizes"] == [3, 1] and part["gathered"] == [[1, 2], [3, 4], [5, 6], [7, 8]]
        assert part["flags"] == [False, False, True, True] and part["flag_kind"] == "torch.bool"
        rows = np.array(part["rows"])
        np.testing.assert_allclose(part["first"], 5 * 3 * rows**2, rtol=1e-12)
        np.testing.assert_allclose(part["second"], 5 * 6 * rows, rtol=1e-12)
        assert part["empty"] == [[9, 9]] * 2


def test_gathering_alone_changes_nothing_and_refuses_what_has_no_rows():
    rows = torch.ones(3, 2)
    assert gather_with_gradient(rows) is rows and gather_with_gradient(rows, rows)[1] is rows
    with pytest.raises(ValueError, match=r"shapes \(3, 2\), \(2,\): all tensors need the same number of rows"):
        gather_with_gradient(rows, torch.ones(2))
    with pytest.raises(ValueError, match="at least one dimension"):
        gather_with_gradient(torch.tensor(1.0))
