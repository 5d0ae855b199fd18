"""`thurl cldyb`: from pictures to a page, and what it says when something is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from thurl.cli import app
from thurl.continual.encoders import MLPEncoder, MLPEncoderConfig
from thurl.training.fingerprint import fingerprint


def invoke(*arguments):
    return CliRunner().invoke(app, ["cldyb", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures of six classes, a pool, an encoder and a sequence."""
    root = tmp_path_factory.mktemp("cldyb")
    generator = np.random.default_rng(0)
    for label in range(6):
        base = generator.integers(0, 256, (6, 6))
        (root / "signs" / f"s{label}").mkdir(parents=True)
        for index in range(15):
            noisy = np.clip(base + generator.normal(0, 60, (6, 6)), 0, 255).astype(np.uint8)
            picture = Image.fromarray(noisy).resize((24, 24), Image.Resampling.NEAREST)
            picture.save(root / "signs" / f"s{label}" / f"{index}.png")
    done = invoke("pool", root / "signs", "-o", root / "pool.jsonl", "--json")
    assert done.exit_code == 0, done.output
    torch.manual_seed(0)
    MLPEncoder(MLPEncoderConfig(side=6, hidden_sizes=[24, 12])).save_pretrained(root / "encoder")
    done = invoke(*SEARCH, "--pool", root / "pool.jsonl", "--encoder", root / "encoder", "-o", root / "s.json",
                  "--cache", root / "cache")  # fmt: skip
    assert done.exit_code == 0, done.output
    (root / "search.log").write_text(done.output)
    return root


SEARCH = ["search", "-l", "simplecil", "-l", "finetune:epochs=2", "-t", 2, "-k", 2, "--simulations", 3, "--starts", 4,
          "--clusters", 2, "--seed", 3]  # fmt: skip


def test_a_search_says_its_cost_before_and_after(place):
    log = (place / "search.log").read_text()
    assert "at most 22 trainings, each about" in log and "in one process" in log
    assert "trainings (" in log and "s of training" in log and "selected: check with `thurl cldyb replay`" in log
    for builder in ("search", "random, mean of 8", "best of random", "best of candidates", "myopic, equal budget",
                    "proxy hardest"):  # fmt: skip
        assert builder in log
    document = json.loads((place / "s.json").read_text())
    assert len(document["tasks"]) == 2 and set(document["contamination"]) == {u for t in document["tasks"] for u in t}


def test_the_same_command_goes_on_from_its_cache(place):
    again = place / "again.json"
    options = ["--pool", place / "pool.jsonl", "--encoder", place / "encoder", "--cache", place / "cache"]
    done = invoke(*SEARCH, *options, "-o", again, "--json", "--no-baselines")
    assert done.exit_code == 0, done.output
    assert "(0 new)" in done.stderr
    assert json.loads(done.stdout)["tasks"] == json.loads((place / "s.json").read_text())["tasks"]


def test_a_replay_and_a_report(place):
    options = ["--pool", place / "pool.jsonl", "--encoder", place / "encoder", "--seeds", "11,12"]
    done = invoke("replay", place / "s.json", *options, "-o", place / "again_tested.json", "--overwrite")
    assert done.exit_code == 0, done.output
    assert "finetune" in done.stdout and "AA was" in done.stderr
    held_out = invoke("replay", place / "s.json", *options, "-l", "lda", "--json")
    assert list(json.loads(held_out.stdout)["learners"]) == ["lda"]
    done = invoke("report", place / "s.json", "-o", place / "r.html", "--replay", place / "again_tested.json")
    assert done.exit_code == 0, done.output
    assert "mean of 2 seeds" in (place / "r.html").read_text()


def test_a_picture_shows_the_search(place):
    done = invoke("report", place / "s.json", "-o", place / "r.png")
    assert done.exit_code == 0, done.output
    first = np.asarray(Image.open(place / "r.png").convert("RGB"))
    assert first.shape[0] > 500 and first.shape[1] > 1000 and 5 < len(np.unique(first.reshape(-1, 3), axis=0))
    # Another document is another picture: here its bars are lower.
    document = json.loads((place / "s.json").read_text())
    for metrics in document["found"]["metrics"].values():
        metrics["aa"] = 0.05
    (place / "low.json").write_text(json.dumps(document))
    assert invoke("report", place / "low.json", "-o", place / "low.png").exit_code == 0
    second = np.asarray(Image.open(place / "low.png").convert("RGB"))
    bar = np.array([0xD5, 0x5E, 0])
    orange = [int((np.abs(picture.astype(int) - bar).sum(axis=2) < 30).sum()) for picture in (first, second)]
    assert orange[0] > 2 * orange[1]


def test_transfer_between_sequences_of_single_learners(place):
    options = ["--pool", place / "pool.jsonl", "--encoder", place / "encoder", "--cache", place / "cache"]
    for name in ("simplecil", "finetune:epochs=2"):
        file = place / f"{name.partition(':')[0]}.json"
        done = invoke(*SEARCH[:1], *SEARCH[5:], "-l", name, *options, "-o", file, "--no-baselines")
        assert done.exit_code == 0, done.output
    files = [place / "simplecil.json", place / "finetune.json"]
    outputs = ["-o", place / "t.csv", "-o", place / "t.json"]
    done = invoke("transfer", *files, *options, "--seeds", "11,12", "-l", "lda", *outputs)
    assert done.exit_code == 0, done.output
    assert "Kendall's tau, for simplecil / for finetune:" in done.stdout
    document = json.loads((place / "t.json").read_text())
    assert list(document["transfer"]) == ["simplecil", "finetune"] and document["seeds"] == [11, 12]
    assert list(document["transfer"]["finetune"]) == ["simplecil", "finetune", "lda"]
    rows = [line.split(",") for line in (place / "t.csv").read_text().splitlines()]
    assert rows[0] == ["sequence", "simplecil", "finetune", "lda"]
    assert [float(cell) for cell in rows[2][1:]] == list(document["transfer"]["finetune"].values())
    # What a replay of one of the sequences says.
    again = invoke("replay", files[1], *options, "--seeds", "11,12", "-l", "simplecil", "--json")
    mean = json.loads(again.stdout)["learners"]["simplecil"]["mean"]["aa"]
    assert mean == document["transfer"]["finetune"]["simplecil"]
    for wrong, code, message in (
        ([files[0]], 1, "there is one sequence"),
        ([files[0], files[0], place / "s.json"], 1, "found for 2 learners"),
        ([*files, "-o", place / "t.txt"], 2, "must end in .csv or .json"),
        ([*files, "--seeds", "3"], 2, "take fresh ones"),
    ):
        done = invoke("transfer", *wrong, *options)
        assert done.exit_code == code and message in done.output, done.output


def test_features_of_any_encoder(place):
    encoder = MLPEncoder.from_pretrained(place / "encoder")
    file = place / "cache" / "features" / f"{fingerprint(encoder)}.safetensors"
    done = invoke("search", "--pool", place / "pool.jsonl", "--features", file, "-o", place / "f.json", "-t", 2, "-k",
                  2, "-l", "simplecil", "-l", "lda", "--simulations", 2, "--no-baselines", "--easiest")  # fmt: skip
    assert done.exit_code == 0, done.output
    done = invoke("replay", place / "f.json", "--pool", place / "pool.jsonl", "--encoder", place / "encoder")
    assert done.exit_code == 0 and "another encoder" not in done.stderr


def test_a_changed_pool_is_refused(place, tmp_path):
    lines = (place / "pool.jsonl").read_text().splitlines()
    (place / "less.jsonl").write_text("\n".join(lines[1:]))
    done = invoke("replay", place / "s.json", "--pool", place / "less.jsonl", "--encoder", place / "encoder")
    assert done.exit_code == 1 and "splits, aliases or prompts differ" in done.output
    picture = place / json.loads(lines[0])["image"]
    kept = picture.read_bytes()
    Image.new("RGB", (24, 24)).save(picture)
    done = invoke("replay", place / "s.json", "--pool", place / "pool.jsonl", "--encoder", place / "encoder")
    picture.write_bytes(kept)
    assert done.exit_code == 1 and "another picture than when the pool was made" in done.output


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["search", "--pool", "pool.jsonl", "-o", "x.json"], 2, "give either --encoder"),
        (["search", "--pool", "pool.jsonl", "-o", "s.json", "--encoder", "encoder"], 2, "there is such a file"),
        (["search", "--pool", "pool.jsonl", "-o", "x.json", "--encoder", "none"], 3, "no model there"),
        (["search", "--pool", "none.jsonl", "-o", "x.json", "--encoder", "encoder"], 1, "cannot be read as a pool"),
        (["search", "--pool", "pool.jsonl", "-o", "x.json", "--encoder", "encoder", "-l", "nobody"], 2, "choose from"),
        (["search", "--pool", "pool.jsonl", "-o", "x.json", "--encoder", "encoder"], 2, "need 200; the pool has 6"),
        (["search", "--pool", "pool.jsonl", "-o", "x.json", "--encoder", "encoder", "--pick", "best"], 2, "'best'"),
        (["replay", "s.json", "--pool", "pool.jsonl", "--encoder", "encoder", "--seeds", "a"], 2, "whole numbers"),
        (["replay", "s.json", "--pool", "pool.jsonl", "--encoder", "encoder", "--seeds", "3"], 2, "take fresh ones"),
        (["report", "s.json", "-o", "x.html", "--replay", "s.json"], 1, "not a replay"),
        (["report", "pool.jsonl", "-o", "x.html"], 1, "not a sequence file"),
        (["pool", "nowhere", "-o", "x.jsonl"], 1, "no such folder"),
    ],
)
def test_what_is_wrong_is_said(place, monkeypatch, arguments, code, message):
    monkeypatch.chdir(place)
    done = invoke(*arguments)
    assert done.exit_code == code, done.output
    assert message in done.output
    assert "Traceback" not in done.output
