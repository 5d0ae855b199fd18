from __future__ import annotations

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr
from typer.testing import CliRunner

from thurl.cli import app
from thurl.rl.score_files import read_scores


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from thurl.rl.tiny import build_tiny_qwen2_5_vl

    folder = tmp_path_factory.mktemp("model") / "tiny"
    built, processor = build_tiny_qwen2_5_vl(0)
    built.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 40 + 40 * i, (56, 56, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def labels(pictures, tmp_path):
    path = tmp_path / "labels.csv"
    rows = [f"{i}.png,{i + 1},set,r{i % 2},{'blur' if i < 3 else 'noise'}" for i in range(6)]
    path.write_text("image,mos,dataset,reference,kind\n" + "\n".join(rows) + "\n")
    return path


def thurl(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


QUICK = ("--mode", "expected", "--device", "cpu")


def test_score_writes_csv_and_json_and_resumes(model, pictures, tmp_path):
    (pictures / "bad.png").write_bytes(b"no picture")
    target = tmp_path / "scores.csv"
    result = thurl("score", pictures, "--model", model, *QUICK, "--csv", target, "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 7 and sum(row["ok"] for row in rows) == 6 and rows[-1]["score"] is None
    assert "warning" in result.stderr and "bad.png" in result.stderr and "1 without a score" in result.stderr
    assert [row.score for row in read_scores(target)][:6] == [row["score"] for row in rows[:6]]
    before = target.read_bytes()
    target.write_bytes(before[:-30])
    again = thurl("score", pictures, "--model", model, *QUICK, "--csv", target)
    assert "6 of them already in" in again.stderr and target.read_bytes() == before
    changed = thurl("score", pictures, "--model", model, *QUICK, "--csv", target, "--preset", "official", code=2)
    assert "another question" in changed.output and target.read_bytes() == before


def test_score_prints_one_line_per_picture(model, pictures):
    result = thurl("score", pictures / "0.png", pictures / "1.png", "--model", model, *QUICK)
    assert [line.split("  ")[1][-5:] for line in result.stdout.splitlines()] == ["0.png", "1.png"]
    assert all(1 <= float(line.split(" ")[0]) <= 5 for line in result.stdout.splitlines())


def test_score_when_nothing_gets_a_score(model, pictures, tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "bad.png").write_bytes(b"no picture")
    result = thurl("score", tmp_path / "only", "--model", model, *QUICK, code=1)
    assert "none of the 1 pictures" in result.output
    # an untrained model does not answer in tags
    arguments = ("--device", "cpu", "--max-new-tokens", "3", "--csv", tmp_path / "s.csv")
    thurl("score", pictures, "--model", model, *arguments, code=1)
    rows = read_scores(tmp_path / "s.csv")
    assert len(rows) == 6 and all(row.text and "within 3 tokens" in row.error for row in rows)


def test_exit_codes_of_wrong_calls(model, pictures, tmp_path, labels):
    (tmp_path / "empty").mkdir()
    assert "no pictures" in thurl("score", tmp_path / "empty", "--model", model, code=1).output
    assert "no such file" in thurl("score", tmp_path / "nowhere", "--model", model, code=1).output
    assert "save_pretrained" in thurl("score", pictures, "--model", tmp_path / "nowhere", code=3).output
    assert "no config.json" in thurl("score", pictures, "--model", tmp_path / "empty", code=3).output
    assert "--preset" in thurl("score", pictures, "--model", model, "--preset", "mine", code=2).output
    assert "n_samples" in thurl("score", pictures, "--model", model, *QUICK, "-n", "3", code=2).output
    assert "device" in thurl("score", pictures, "--model", model, "--device", "quantum", code=3).output
    thurl("score", pictures, code=2)
    assert "--predictions" in thurl("eval", "--labels", labels, code=2).output
    assert "colour" in thurl("eval", "--labels", labels, "--format", "colour", "--model", model, code=2).output
    thurl("eval", "--labels", tmp_path / "no.csv", "--model", model, code=3)


def test_compare(model, pictures):
    a, b = pictures / "0.png", pictures / "5.png"
    result = json.loads(thurl("compare", a, b, "--model", model, *QUICK, "--json").stdout)
    assert 0 < result["prefers_a"] < 1
    assert (result["prefers_a"] > 0.5) == (result["a"]["score"] > result["b"]["score"])
    assert "probability that" in thurl("compare", a, b, "--model", model, *QUICK).stdout
    assert "nowhere.png" in thurl("compare", a, "nowhere.png", "--model", model, code=1).output
    thurl("compare", a, b, "--model", model, "--device", "cpu", "--max-new-tokens", "2", code=1)


def test_describe(model, pictures):
    arguments = ("--model", model, "--device", "cpu", "--max-new-tokens", "4")
    text = thurl("describe", pictures / "0.png", *arguments).stdout.strip("\n")
    row = json.loads(thurl("describe", pictures / "0.png", *arguments, "--json").stdout)
    assert row["text"].strip("\n") == text and row["image"].endswith("0.png")


def test_eval_of_a_model_and_of_its_scores_agree(model, pictures, labels, tmp_path):
    (pictures / "3.png").write_bytes(b"no picture")
    source = ("--labels", labels, "--format", "csv", "--images", pictures)
    output = tmp_path / "results" / "eval.json"
    printed = thurl("eval", *source, "--model", model, *QUICK, "--group", "both", "--output", output).stdout
    result = json.loads(output.read_text())
    entry = result["datasets"]["set"]
    assert entry["n"] == 6 and entry["n_failed"] == 1 and result["n_unreadable"] == 1
    assert result["settings"]["mode"] == "expected" and result["settings"]["prompt"]["name"] == "thurl"
    assert result["source"]["format"] == "csv" and "versions" in result["environment"]
    used = [row for row in result["predictions"] if row["ok"]]
    expected = spearmanr([row["score"] for row in used], [row["mos"] for row in used]).statistic
    assert entry["srcc"] == pytest.approx(expected)
    assert f"{expected:.3f}" in printed and "global" in printed and "per_reference" in printed and "blur" in printed

    scores = tmp_path / "scores.csv"
    thurl("score", pictures, "--model", model, *QUICK, "--csv", scores)
    again = json.loads(thurl("eval", *source, "--predictions", scores, "--group", "both", "--json").stdout)
    assert again["datasets"] == result["datasets"] and "predictions" not in again
    assert again["settings"]["mode"] == "expected" and again["settings"]["predictions"] == str(scores)


def test_eval_by_reference_is_the_headline(pictures, labels, tmp_path):
    scores = tmp_path / "scores.csv"
    with scores.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "score"], *[[f"{i}.png", i + 10 * (i % 2)] for i in range(6)]])
    source = ("--labels", labels, "--images", pictures, "--predictions", scores, "--json")
    whole = json.loads(thurl("eval", *source).stdout)["datasets"]["set"]
    inside = json.loads(thurl("eval", *source, "--group", "reference").stdout)["datasets"]["set"]
    assert whole["grouping"] == "global" and whole["srcc"] < 0.9
    assert inside["grouping"] == "per_reference" and inside["srcc"] == pytest.approx(1.0)


def test_eval_without_any_score_fails(pictures, labels, tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text("image,score\n0.png,\n")
    source = ("--labels", labels, "--images", pictures, "--predictions", scores)
    assert "no score for 5 of 6" in thurl("eval", *source, code=1).output
    result = thurl("eval", *source, "--allow-missing", code=1)
    assert "nothing to correlate" in result.output


def test_sampled_scores_through_the_command(model, pictures, monkeypatch):
    """A model that answers: its scores are means of the drawn ones, the same in every batch size."""
    from thurl.rl import scorer

    load = scorer.QualityScorer.from_pretrained.__func__

    def load_answering(cls, *args, **kwargs):
        loaded = load(cls, *args, **kwargs)
        token = loaded.tokenizer.convert_tokens_to_ids
        newline = loaded.tokenizer.encode("\n", add_special_tokens=False)[0]
        digits = [token(digit) for digit in "12345"]
        allowed = {newline: [token("<answer>")], token("<answer>"): digits, token("</answer>"): [token("<|im_end|>")]}
        allowed |= {digit: [token("</answer>")] for digit in digits}

        def hook(module, args, kwargs, output):
            for row, last in enumerate(kwargs["input_ids"][:, -1].tolist()):
                keep = output.logits[row, -1, allowed[last]].clone()
                output.logits[row, -1] = -1e4
                output.logits[row, -1, allowed[last]] = keep
            return output

        loaded.model.register_forward_hook(hook, with_kwargs=True)
        return loaded

    monkeypatch.setattr(scorer.QualityScorer, "from_pretrained", classmethod(load_answering))
    arguments = ("score", pictures, "--model", model, "--device", "cpu", "-n", "4", "--seed", "3", "--json")
    rows = [json.loads(line) for line in thurl(*arguments, "-b", "8").stdout.splitlines()]
    assert all(row["ok"] and row["n_ok"] == 4 and math.isfinite(row["std"]) for row in rows)
    assert all(float(row["score"] * 4).is_integer() for row in rows)
    assert rows == [json.loads(line) for line in thurl(*arguments, "-b", "1").stdout.splitlines()]
    shown = thurl("compare", pictures / "0.png", pictures / "1.png", "--model", model, "--device", "cpu").stdout
    assert "+-" in shown and "probability" in shown


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom thurl.cli import app\n"
        "assert CliRunner().invoke(app, ['score', '--help']).exit_code == 0\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
