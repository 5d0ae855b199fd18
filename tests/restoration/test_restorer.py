"""Restoring pictures and files: sizes, tiles, and files that cannot be read."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from thurl.cli import app
from thurl.errors import MissingRequirementError, UsageError
from thurl.restoration.config import RestorationConfig
from thurl.restoration.model import RestorationModel
from thurl.restoration.processing import RestorationImageProcessor
from thurl.restoration.restorer import Restorer, plan_outputs, restore_files


def picture(width=40, height=28, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def network(trained=False):
    torch.manual_seed(0)
    model = RestorationModel(RestorationConfig(hidden_sizes=[6, 8], depths=[1, 1], patch_size=1))
    if trained:
        nn.init.normal_(model.head.weight, std=0.05)
    return model


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    network().save_pretrained(place)
    RestorationImageProcessor().save_pretrained(place)
    return place


def test_an_untrained_network_returns_the_picture(folder):
    restorer = Restorer.from_pretrained(folder, "cpu")
    given = picture()
    for options in ({}, {"tile": 16, "overlap": 6, "batch_size": 2}):
        (restored,) = restorer.restore(given, **options)
        assert restored.size == given.size and np.array_equal(np.asarray(restored), np.asarray(given))
    one, two = restorer.restore([given, picture(9, 11)])
    assert (one.size, two.size) == ((40, 28), (9, 11))


def test_size_and_scale(folder):
    restorer = Restorer.from_pretrained(folder, "cpu")
    assert restorer.restore(picture(), scale=2.5)[0].size == (100, 70)
    assert restorer.restore(picture(), size=24)[0].size == (24, 24)
    faces = Restorer(network(), RestorationImageProcessor(size=32), "cpu")
    assert faces.restore(picture())[0].size == (32, 32) and faces.restore(picture(), size=0)[0].size == (40, 28)
    with pytest.raises(UsageError) as caught:
        restorer.restore(picture(), size=-1, scale=0, tile=8, overlap=8, batch_size=0)
    assert len(caught.value.problems) == 4


def test_a_trained_network_changes_the_picture_the_same_way_each_time():
    restorer = Restorer(network(trained=True).train(), RestorationImageProcessor(), "cpu")
    first, second = (np.asarray(restorer.restore(picture())[0]) for _ in range(2))
    assert np.array_equal(first, second) and not np.array_equal(first, np.asarray(picture()))


def test_the_processor_is_saved_with_its_size(tmp_path):
    RestorationImageProcessor(size=48).save_pretrained(tmp_path)
    processor = RestorationImageProcessor.from_pretrained(tmp_path)
    assert processor.size == 48 and processor([picture()])["pixel_values"].shape == (1, 3, 48, 48)
    with pytest.raises(ValueError, match="2 sizes"):
        RestorationImageProcessor()([picture(), picture(9, 9)])
    with pytest.raises(ValueError, match="unknown arguments colour"):
        RestorationImageProcessor()([picture()], colour=1)
    with pytest.raises(ValueError, match="size is 0"):
        RestorationImageProcessor(size=0)


def test_outputs_never_collide_nor_overwrite_what_is_read(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    paths = [root / "a.jpg", root / "a.png", root / "sub" / "a.png", root / "b.webp"]
    planned = plan_outputs(paths, root, out)
    assert [path.relative_to(out).as_posix() for path in planned.values()] == [
        "a.jpg.png", "a.png.png", "sub/a.png", "b.png",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="would overwrite what is read"):
        plan_outputs([root / "b.png"], root, root)


def test_broken_weights_give_an_error_and_no_picture(tmp_path):
    model = network()
    nn.init.constant_(model.stem.weight, float("nan"))
    nn.init.ones_(model.head.weight)
    picture().save(tmp_path / "a.png")
    planned = plan_outputs([tmp_path / "a.png"], tmp_path, tmp_path / "out")
    (line,) = restore_files(Restorer(model, RestorationImageProcessor(), "cpu"), planned)
    assert not line.ok and "are no numbers" in line.error and not list((tmp_path / "out").glob("*"))


# --- command ---------------------------------------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(app, ["restore", *map(str, words), "--device", "cpu"])


@pytest.fixture
def pictures(tmp_path):
    place = tmp_path / "in"
    (place / "sub").mkdir(parents=True)
    picture().save(place / "good.jpg")
    picture(16, 16).convert("LA").save(place / "sub" / "grey.png")
    (place / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n then nothing")
    (place / "empty.jpg").write_bytes(b"")
    (place / "notes.txt").write_text("no picture")
    return place


def test_bad_files_are_named_and_stop_nothing(pictures, folder, tmp_path):
    out = tmp_path / "out"
    done = run(pictures, out, "--model", folder, "--recursive", "--json")
    assert done.exit_code == 1 and "2 of 4 pictures could not be restored" in done.stderr
    lines = {line["image"].rpartition("/")[2]: line for line in map(json.loads, done.stdout.splitlines())}
    assert {name for name, line in lines.items() if not line["ok"]} == {"corrupt.png", "empty.jpg"}
    assert "0 bytes" in lines["empty.jpg"]["error"] and lines["empty.jpg"]["output"] is None
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == ["good.png", "sub/grey.png"]
    assert np.array_equal(
        np.asarray(Image.open(out / "good.png")), np.asarray(Image.open(pictures / "good.jpg").convert("RGB"))
    )


def test_finished_pictures_are_kept_until_told_otherwise(pictures, folder, tmp_path):
    out = tmp_path / "out"
    assert run(pictures / "good.jpg", out, "-m", folder).exit_code == 0
    (out / "good.png").write_bytes(b"mine")
    again = run(pictures / "good.jpg", out, "-m", folder)
    assert again.exit_code == 0 and "1 were there already" in again.stderr
    assert (out / "good.png").read_bytes() == b"mine"
    assert run(pictures / "good.jpg", out, "-m", folder, "--overwrite").exit_code == 0
    assert Image.open(out / "good.png").size == (40, 28)


def test_what_cannot_run_says_why(pictures, folder, tmp_path):
    out = tmp_path / "out"
    assert run(pictures, out, "-m", tmp_path / "nowhere").exit_code == 3
    assert "lacks config.json" in run(pictures, out, "-m", tmp_path).stderr
    assert run(tmp_path / "absent", out, "-m", folder).exit_code == 1
    wrong = run(pictures, out, "-m", folder, "--tile", 8)
    assert wrong.exit_code == 2 and "tile is 8 and overlap 64" in wrong.stderr
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "clip"}
    (folder / "config.json").write_text(json.dumps(config))
    other = run(pictures, out, "-m", folder)
    assert other.exit_code == 2 and "type 'clip'" in other.stderr
    assert not out.exists()


def test_a_missing_model_is_an_error_of_its_own(tmp_path):
    with pytest.raises(MissingRequirementError, match="preprocessor_config.json"):
        Restorer.from_pretrained(tmp_path)
