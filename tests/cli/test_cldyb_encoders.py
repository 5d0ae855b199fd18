"""`thurl cldyb` with encoders of pictures: searches killed and in several processes, CLIP's names of classes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel
from typer.testing import CliRunner

from thurl.cli import app
from thurl.continual.pool import read_pool
from thurl.continual.pool_sources import read_picture
from thurl.continual.vision_encoders import load_encoder

from ..continual.tiny_encoders import save_encoder


SEARCH = ["search", "-t", "2", "-k", "2", "--simulations", "3", "--starts", "4", "--clusters", "2", "--seed", "3"]
TRAINED = ["-l", "simplecil", "-l", "ranpac:width=20", "-l", "finetune:epochs=2"]


def invoke(*arguments):
    return CliRunner().invoke(app, ["cldyb", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures of six classes, their pool and encoders."""
    root = tmp_path_factory.mktemp("cldyb")
    generator = np.random.default_rng(0)
    for label in range(6):
        base = generator.integers(0, 256, (5, 5, 3))
        (root / "signs" / f"s{label}").mkdir(parents=True)
        for index in range(12):
            noisy = np.clip(base + generator.normal(0, 60, base.shape), 0, 255).astype(np.uint8)
            picture = Image.fromarray(noisy).resize((20, 20), Image.Resampling.NEAREST)
            picture.save(root / "signs" / f"s{label}" / f"{index}.png")
    done = invoke("pool", root / "signs", "-o", root / "pool.jsonl", "--json")
    assert done.exit_code == 0, done.output
    for kind in ("vit", "clip", "timm"):
        save_encoder(kind, root / kind)
    return root


def searched(place, encoder, output, *more):
    done = invoke(*SEARCH, "--pool", place / "pool.jsonl", "--encoder", place / encoder, "-o", output, *more)
    assert done.exit_code == 0, done.output
    return json.loads(output.read_text())


def without_times(document):
    timed = ("training_seconds", "wall_seconds")
    records = [document["found"], *document["baselines"]]
    found, *others = [{key: value for key, value in record.items() if key not in timed} for record in records]
    return {**document, "found": found, "baselines": others}


@pytest.fixture(scope="module")
def once(place):
    """A search in one process."""
    return searched(place, "timm", place / "once.json", *TRAINED, "--cache", place / "cache")


def test_two_processes_find_what_one_finds(place, once, tmp_path):
    two = searched(place, "timm", tmp_path / "two.json", *TRAINED, "--no-baselines", "--workers", 2, "--memory", 0)
    one = without_times({**once, "baselines": []})
    assert without_times(two) == one


@pytest.mark.slow
def test_a_killed_search_goes_on(place, once, tmp_path):
    options = ["--pool", str(place / "pool.jsonl"), "--encoder", str(place / "timm"), "--cache", str(tmp_path),
               "-o", str(tmp_path / "killed.json")]  # fmt: skip
    command = [sys.executable, "-m", "thurl.cli", "cldyb", *SEARCH, *TRAINED, *options]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(list(tmp_path.glob("??/*.safetensors"))) < 5 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(tmp_path.glob("??/*.safetensors")))
    assert not (tmp_path / "killed.json").exists()
    done = invoke(*SEARCH, *TRAINED, *options)
    assert done.exit_code == 0, done.output
    assert without_times(json.loads((tmp_path / "killed.json").read_text())) == without_times(once)
    assert 5 <= kept < len(list(tmp_path.glob("??/*.safetensors")))


def test_a_replay_with_a_frozen_learner_that_was_not_searched_with(place, once):
    done = invoke("replay", place / "once.json", "--pool", place / "pool.jsonl", "--encoder", place / "timm", "-l",
                  "lda", "--json", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["encoder"] == once["encoder"] and "another encoder" not in done.stderr


def test_an_encoder_of_transformers(place, tmp_path):
    document = searched(place, "vit", tmp_path / "t.json", "-l", "finetune:epochs=1", "--no-baselines")
    assert all(set(values) == {"knn"} for values in document["contamination"].values())


def test_clip_says_how_well_it_knows_the_names(place, tmp_path):
    template = "the drawing of {}"
    document = searched(place, "clip", tmp_path / "c.json", "-l", "simplecil", "--no-baselines", "--prompt-template",
                        template)  # fmt: skip
    # The same by hand, with CLIP's own logits.
    model, tokenizer = CLIPModel.from_pretrained(place / "clip").eval(), AutoTokenizer.from_pretrained(place / "clip")
    pool, prepare = read_pool(place / "pool.jsonl"), load_encoder(str(place / "clip")).preprocess
    names = [template.format(uid.split("/")[1]) for uid in pool.classes]
    held = [item for item in pool.images if item.split == "val"]
    pictures = [prepare(read_picture(item.image, pool.root, item.sha256)) for item in held]
    words = tokenizer(names, padding=True, return_tensors="pt")
    with torch.no_grad():
        said = model(**words, pixel_values=prepare.scaled(torch.stack(pictures))).logits_per_image.argmax(dim=1)
    for task in document["tasks"]:
        for uid in task:
            hits = [
                pool.classes[int(one)] == uid for one, item in zip(said, held, strict=True) if item.class_uid == uid
            ]
            assert document["contamination"][uid]["zero_shot"] == pytest.approx(np.mean(hits))
    assert {uid for task in document["tasks"] for uid in task} == set(document["contamination"])
    done = invoke("report", tmp_path / "c.json", "-o", tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert done.exit_code == 0 and "known by its name" in page and "names of all classes of the pool" in page


def test_a_sequence_file_of_the_first_format_is_still_read(place, once, tmp_path):
    uid = once["tasks"][0][0]
    old = {**json.loads((place / "once.json").read_text()), "format": 1, "contamination": {uid: 0.8125}}
    (tmp_path / "old.json").write_text(json.dumps(old))
    done = invoke("report", tmp_path / "old.json", "-o", tmp_path / "old.html")
    page = (tmp_path / "old.html").read_text()
    assert done.exit_code == 0 and "0.812" in page and "known by its name" not in page and "not measured" in page


def test_a_picture_that_changes_is_found_when_a_learner_trains_on_it(place, once, tmp_path):
    """The features are in the cache: only training opens the pictures."""
    pool = read_pool(place / "pool.jsonl")
    path = place / next(item.image for item in pool.images if item.split == "train")
    kept = path.read_bytes()
    options = [*SEARCH, *TRAINED, "--no-baselines", "--pool", place / "pool.jsonl", "--encoder", place / "timm",
               "--tasks", 3, "--seed", 4, "--cache", place / "cache", "-o", tmp_path / "x.json"]  # fmt: skip
    try:
        for content, words in ((kept[:50], "another picture"), (None, "cannot be read")):
            path.unlink() if content is None else path.write_bytes(content)
            done = invoke(*options)
            assert done.exit_code == 1 and words in done.output and path.name in done.output, done.output
            assert "Traceback" not in done.output and not (tmp_path / "x.json").exists()
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--encoder", "vit", "--prompt-template", "a {}"], 2, "needs a CLIP model"),
        (["--encoder", "clip", "--prompt-template", "a photo"], 2, "one {} for the name"),
        (["--features", "f.safetensors", "--prompt-template", "a {}"], 2, "--prompt-template needs --encoder"),
        (["--encoder", "signs"], 3, "no model"),
        (["--encoder", "bare"], 3, "no model.safetensors; save"),
        (["--encoder", "pickled"], 3, "a pickle"),
        (["--encoder", "bert"], 2, "kind 'bert'"),
        (["--encoder", "nowhere/encoder"], 3, "the Hub does not give"),
        (["--encoder", "vit", "--device", "cuda:7"], 3, "--device cuda:7 cannot be used"),
    ],
)
def test_what_is_wrong_is_said(place, monkeypatch, arguments, code, message):
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, config in (
        ("bare", {"model_type": "vit"}),
        ("pickled", {"model_type": "vit"}),
        ("bert", {"model_type": "bert"}),
    ):
        (place / name).mkdir(exist_ok=True)
        (place / name / "config.json").write_text(json.dumps(config))
    (place / "pickled" / "pytorch_model.bin").write_bytes(b"\x80")
    if "f.safetensors" in arguments:
        searched(
            place, "timm", place / "t.json", "-l", "simplecil", "--no-baselines", "--cache", "kept", "--overwrite"
        )
        (file,) = (place / "kept" / "features").glob("*.safetensors")
        file.rename(place / "f.safetensors")
    done = invoke(*SEARCH, "-l", "simplecil", "--pool", "pool.jsonl", "-o", "x.json", *arguments)
    assert done.exit_code == code and message in done.output, done.output
    assert "Traceback" not in done.output
