from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import pearsonr, spearmanr

from thurl.data.records import RatedImage
from thurl.errors import DataError, UsageError
from thurl.rl.eval_callback import QualityEvalCallback
from thurl.rl.evaluation import evaluate_model, evaluate_scores, evaluation_table, jsonable
from thurl.rl.scorer import QualityScorer
from thurl.rl.tiny import build_tiny_qwen2_5_vl


def toy(n=60, seed=0):
    rng = np.random.default_rng(seed)
    mos = rng.uniform(1, 5, n)
    return mos + rng.normal(0, 0.7, n), mos


# Numbers


def test_two_datasets_on_different_scales_are_never_mixed():
    pred, mos = toy()
    scaled = np.where(np.arange(60) < 30, mos, mos * 20 - 10)
    names = ["a"] * 30 + ["b"] * 30
    result = evaluate_scores(pred, scaled, dataset=names, bootstrap=50)
    for name, rows in (("a", slice(0, 30)), ("b", slice(30, 60))):
        entry = result["datasets"][name]
        assert entry["srcc"] == pytest.approx(spearmanr(pred[rows], mos[rows]).statistic)
        assert entry["plcc"] == pytest.approx(pearsonr(pred[rows], scaled[rows]).statistic)
        assert entry["srcc_interval"][0] < entry["srcc"] < entry["srcc_interval"][1]
        assert entry["plcc_logistic"] >= entry["plcc"] - 1e-9 and entry["interval_unit"] == "image"
    both = [result["datasets"][name]["srcc"] for name in "ab"]
    assert result["mean"]["srcc"] == pytest.approx(np.mean(both)) and result["mean"]["datasets_used"] == 2


def test_grouping_says_what_the_headline_is():
    rng = np.random.default_rng(1)
    reference = np.repeat([f"r{i}" for i in range(6)], 10)
    offset = np.repeat(rng.normal(0, 5, 6), 10)
    mos = rng.uniform(0, 100, 60)
    pred = mos / 20 + offset  # right inside every reference, wrong across them
    call = {"dataset": ["SRIQA"] * 60, "reference": list(reference), "bootstrap": 50}
    inside = evaluate_scores(pred, mos, grouping="per_reference", **call)["datasets"]["SRIQA"]
    across = evaluate_scores(pred, mos, grouping="global", **call)["datasets"]["SRIQA"]
    both = evaluate_scores(pred, mos, grouping="both", **call)["datasets"]["SRIQA"]
    assert inside["grouping"] == "per_reference" and inside["srcc"] == pytest.approx(1.0)
    assert inside["references_used"] == 6 and inside["interval_unit"] == "reference"
    assert across["grouping"] == "global" and across["srcc"] < 0.7 and across["per_reference"] is None
    assert both["grouping"] == "global" and both["srcc"] == across["srcc"]
    assert both["per_reference"]["srcc"] == pytest.approx(1.0) and both["global"]["srcc"] == across["srcc"]


def test_a_dataset_without_references_stays_global():
    pred, mos = toy(20)
    result = evaluate_scores(pred, mos, dataset=["a"] * 20, reference=[None] * 20, grouping="per_reference")
    assert result["datasets"]["a"]["grouping"] == "global"


def test_failures_are_counted_left_out_and_cannot_help():
    pred, mos = toy(80)
    ok = np.ones(80, dtype=bool)
    wrong = np.abs(pred - mos) > 0.6
    ok[wrong] = False  # answers only where it is right
    full = evaluate_scores(pred, mos, dataset=["a"] * 80, bootstrap=0)["datasets"]["a"]
    picky = evaluate_scores(pred, mos, dataset=["a"] * 80, ok=ok, bootstrap=0)
    entry = picky["datasets"]["a"]
    assert entry["n_failed"] == wrong.sum() == picky["n_failed"] and entry["parse_rate"] == pytest.approx(ok.mean())
    assert entry["srcc"] > full["srcc"] > entry["srcc_all"]
    filled = np.where(ok, pred, pred[ok].mean())
    assert entry["srcc_all"] == pytest.approx(spearmanr(filled, mos).statistic)
    assert entry["plcc_all"] == pytest.approx(pearsonr(filled, mos).statistic)
    assert full["srcc_all"] == full["srcc"]
    nans = evaluate_scores(np.where(ok, pred, np.nan), mos, dataset=["a"] * 80, bootstrap=0)
    assert nans["datasets"]["a"]["srcc"] == entry["srcc"]


def test_all_failed_and_constant_are_undefined_not_zero():
    mos = [1.0, 2.0, 3.0]
    result = evaluate_scores([math.nan] * 3, mos, dataset=["a"] * 3)
    assert math.isnan(result["mean"]["srcc"]) and result["parse_rate"] == 0 and result["mean"]["datasets_used"] == 0
    result = evaluate_scores([3.0] * 3, mos, dataset=["a"] * 3)
    assert math.isnan(result["datasets"]["a"]["srcc"]) and result["datasets"]["a"]["score_std"] == 0
    one = evaluate_scores([3.0], [2.0], dataset=["a"])
    assert math.isnan(one["datasets"]["a"]["plcc"])


def test_per_kind():
    pred, mos = toy(40)
    kind = ["blur", "noise"] * 20
    result = evaluate_scores(pred, mos, dataset=["a"] * 20 + ["b"] * 20, kind=kind, bootstrap=0)
    expected = [spearmanr(pred[s][::2], mos[s][::2]).statistic for s in (slice(0, 20), slice(20, 40))]
    assert result["kinds"]["blur"] == {
        "n": 20,
        "n_ok": 20,
        "srcc": pytest.approx(np.mean(expected)),
        "plcc": result["kinds"]["blur"]["plcc"],
    }


def test_bad_input():
    with pytest.raises(ValueError, match="`dataset`"):
        evaluate_scores([1.0], [1.0], dataset=[])
    with pytest.raises(DataError, match="no pictures"):
        evaluate_scores([], [], dataset=[])
    with pytest.raises(DataError, match="not finite"):
        evaluate_scores([1.0], [math.nan], dataset=["a"])
    with pytest.raises(UsageError, match="per_reference"):
        evaluate_scores([1.0], [1.0], dataset=["a"], grouping="refs")


def test_result_is_strict_json_and_has_a_table():
    pred, mos = toy(20)
    call = {"dataset": ["a"] * 20, "reference": list("abcd") * 5, "grouping": "both", "bootstrap": 20}
    result = evaluate_scores(np.where(np.arange(20) < 1, np.nan, pred), mos, **call)
    text = json.dumps(jsonable(result), allow_nan=False)
    assert json.loads(text)["datasets"]["a"]["per_reference"]["plcc_logistic"] is None
    headings, rows = evaluation_table(result)
    assert all(len(row) == len(headings) for row in rows)
    assert rows[0][0] == "a" and rows[0][-1] == "global" and rows[1][-1] == "per_reference (4)"
    assert rows[-1][0] == "mean"


def test_importing_it_needs_no_torch():
    code = "import sys, thurl.rl.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# A model


@pytest.fixture
def tiny():
    return build_tiny_qwen2_5_vl(0)


@pytest.fixture
def records(tmp_path):
    rng = np.random.default_rng(0)
    result = []
    for i in range(7):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 40 * (i + 1), (56, 56, 3)).astype(np.uint8)).save(path)
        extra = {"kind": "blur" if i % 2 else "noise"}
        result.append(RatedImage(image=str(path), mos=float(i), dataset="a" if i < 4 else "b", extra=extra))
    return result


def test_evaluate_model(tiny, records):
    scorer = QualityScorer(*tiny)
    Path(records[2].image).write_bytes(b"broken")
    seen = []
    result = evaluate_model(
        scorer, records, mode="expected", batch_size=1, progress=lambda *a: seen.append(a), bootstrap=0
    )
    assert seen[-1] == (7, 7) and result["n_unreadable"] == 1 and result["n_failed"] == 1
    assert result["settings"]["mode"] == "expected" and result["settings"]["prompt"]["vision_id"] is False
    scores = [entry["score"] for entry in result["predictions"]]
    used = [0, 1, 3]
    assert result["datasets"]["a"]["srcc"] == pytest.approx(
        spearmanr([scores[i] for i in used], [records[i].mos for i in used]).statistic
    )
    assert [entry["image"] for entry in result["predictions"]] == [record.image for record in records]
    assert "2.png" in result["predictions"][2]["error"] and result["predictions"][0]["kind"] == "noise"
    json.dumps(jsonable(result), allow_nan=False)


# During training


def train(model, processor, callbacks, folder, steps=4):
    from transformers import Trainer, TrainingArguments, set_seed

    image = Image.new("RGB", (56, 56), (90, 10, 10))
    prompt = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>ok<|im_end|>\n"
    rows = [
        {key: value for key, value in processor(text=[prompt + text], images=[image], return_tensors="pt").items()}
        for text in "1234"
    ]

    def collate(batch):
        joined = {key: torch.cat([row[key] for row in batch]) for key in batch[0]}
        return {**joined, "labels": joined["input_ids"]}

    set_seed(0)
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.3  # makes the trajectory depend on torch's random state
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=callbacks)
    trainer.train()
    return trainer


def test_callback_logs_and_does_not_influence_training(tiny, records, tmp_path, monkeypatch):
    model, processor = tiny
    plain = build_tiny_qwen2_5_vl(0)[0]
    without = train(plain, processor, [], tmp_path)

    score = QualityScorer.score

    def noisy_score(self, *args, **kwargs):
        torch.rand(7), np.random.rand(3), random.random()
        return score(self, *args, **kwargs)

    monkeypatch.setattr(QualityScorer, "score", noisy_score)
    path = tmp_path / "log" / "eval.jsonl"
    callback = QualityEvalCallback(processor, records, every=2, n_samples=2, max_new_tokens=3, path=path)
    trainer = train(model, processor, [callback], tmp_path)

    assert model.training
    for (name, a), (_, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (without, trainer)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert [entry["step"] for entry in callback.history] == [0, 2, 4]
    logged = [entry for entry in trainer.state.log_history if "eval_srcc" in entry]
    assert [entry["step"] for entry in logged] == [0, 2, 4]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4] and lines[0]["eval_parse_rate"] == 0
    assert lines[0]["eval_srcc"] is None and math.isnan(callback.history[0]["eval_srcc"])
    assert {"eval_plcc", "eval_score_std", "eval_sample_std", "eval_srcc_a", "eval_srcc_b"} <= set(lines[0])
    assert len(callback.last["predictions"]) == 7


def test_callback_of_a_resumed_run_takes_up_what_was_evaluated(tiny, records, tmp_path):
    model, processor = tiny
    path = tmp_path / "eval.jsonl"
    callback = QualityEvalCallback(processor, records, every=2, mode="expected", path=path)
    trainer = train(model, processor, [callback], tmp_path)
    trainer.state.global_step = 3  # the checkpoint; the evaluation after step 4 was lost with the process
    trainer.state.log_history = [entry for entry in trainer.state.log_history if entry["step"] < 4]
    resumed = QualityEvalCallback(processor, records, every=2, mode="expected", path=path)
    resumed.on_train_begin(trainer.args, trainer.state, trainer.control, model=model)
    assert resumed.history == callback.history[:2] and [entry["step"] for entry in resumed.history] == [0, 2]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 2]


def test_callback_follows_the_weights_and_takes_a_logger(tiny, records, tmp_path):
    model, processor = tiny
    seen = []
    callback = QualityEvalCallback(processor, records, mode="expected", log=seen.append)
    train(model, processor, [callback], tmp_path)
    assert [entry["step"] for entry in callback.history] == [0, 4]
    assert len(seen) == 2 and seen[0]["eval_parse_rate"] == 1.0
    assert callback.history[0]["eval_score_std"] != callback.history[1]["eval_score_std"]


def test_callback_refuses_what_cannot_work(tiny, records):
    model, processor = tiny
    with pytest.raises(DataError, match="no pictures"):
        QualityEvalCallback(processor, [])
    with pytest.raises(UsageError, match="every"):
        QualityEvalCallback(processor, records, every=0)
    with pytest.raises(UsageError, match="n_samples"):
        QualityEvalCallback(processor, records, n_samples=0)
    next(model.parameters()).ds_id = 0
    callback = QualityEvalCallback(processor, records, mode="expected")
    with pytest.raises(UsageError, match="ZeRO-3"):
        callback.evaluate(model)
    entered = []

    @contextmanager
    def gather(given):
        entered.append(given is model)
        yield

    callback.gather = gather
    assert callback.evaluate(model)["parse_rate"] == 1.0 and entered == [True]


WORKER = """
import json, sys
import torch, torch.distributed as dist
from thurl.data.records import RatedImage
from thurl.rl.eval_callback import QualityEvalCallback
from thurl.rl.evaluation import jsonable
from thurl.rl.tiny import build_tiny_qwen2_5_vl

torch.set_num_threads(1)
folder = sys.argv[1]
dist.init_process_group("gloo")
assert dist.get_world_size() == 2
model, processor = build_tiny_qwen2_5_vl(0)
ddp = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
records = [RatedImage(**row) for row in json.load(open(f"{folder}/records.json"))]
callback = QualityEvalCallback(processor, records, mode="expected", batch_size=2)
for mode in ("work", "fail"):
    if mode == "fail" and dist.get_rank() == 1:
        processor.apply_chat_template = None
    try:
        result = callback.evaluate(ddp)
    except Exception as error:
        result = {"error": str(error)}
    json.dump(jsonable(result), open(f"{folder}/{mode}{dist.get_rank()}.json", "w"))
dist.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_processes_share_the_pictures_and_agree_with_one(tiny, records, tmp_path):
    model, processor = tiny
    alone = QualityEvalCallback(processor, records, mode="expected", batch_size=2).evaluate(model)
    rows = [{"image": r.image, "mos": r.mos, "dataset": r.dataset, "extra": r.extra} for r in records]
    (tmp_path / "records.json").write_text(json.dumps(rows))
    (tmp_path / "worker.py").write_text(WORKER)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(tmp_path / "worker.py"), str(tmp_path)], check=True, env=env, timeout=200)
    results = [json.loads((tmp_path / f"work{rank}.json").read_text()) for rank in range(2)]
    assert results[0] == results[1]
    for a, b in zip(alone["predictions"], results[0]["predictions"], strict=True):
        assert a["image"] == b["image"] and a["score"] == pytest.approx(b["score"], abs=1e-6)
    assert results[0]["mean"]["srcc"] == pytest.approx(alone["mean"]["srcc"])
    errors = [json.loads((tmp_path / f"fail{rank}.json").read_text())["error"] for rank in range(2)]
    assert "process 1" in errors[0] and errors[1]
