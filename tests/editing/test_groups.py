"""The benchmark builder on generated folders: what becomes a group, what is left out and said, and the manifest."""

from __future__ import annotations

import hashlib
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.editing.evaluate import Evaluator
from thurl.editing.groups import (
    Labelled,
    failure_groups,
    labelled_folder,
    official_folder,
    predict,
    relabelled,
    sensitive,
)
from thurl.editing.manifest import Manifest, load_groups, load_pictures, read_manifest, write_manifest
from thurl.errors import DataError, UsageError


class Brightness(torch.nn.Module):
    """Class 0, 1 or 2 by brightness: dark, medium, light; less sure near the borders."""

    classes = 3

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(1, 1)

    def logits(self, pixel_values):
        bright = pixel_values.mean(dim=(1, 2, 3))
        return -10 * (bright[:, None] - torch.tensor([0.1, 0.5, 0.9])).abs()


def read(image):
    return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255)


def save(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level,) * 3).save(path)


@pytest.fixture
def folder(tmp_path):
    """`dark` holds 9 light pictures and 2 medium ones, which are wrong, and right ones; `light` holds right ones."""
    for index in range(9):
        save(tmp_path / "dark" / f"light{8 - index}.png", 230 + index)
    for index in range(2):
        save(tmp_path / "dark" / f"medium{index}.png", 128)
    for index in range(4):
        save(tmp_path / "dark" / f"right{index}.png", 20)
    # Brightness 0.3 is the border of dark and medium, 0.7 that of medium and light.
    for index, level in enumerate([75, 76, 179]):
        save(tmp_path / ("dark" if index < 2 else "light") / f"unsure{index}.png", level)
    save(tmp_path / "light" / "sure.png", 230)
    return tmp_path


CLASSES = {"dark": 0, "medium": 1, "light": 2}


def predictions(folder):
    return predict(Brightness(), labelled_folder(folder, CLASSES), folder, read, batch_size=4)


def test_groups_are_wrong_sorted_and_large_enough(folder, caplog):
    with caplog.at_level(logging.WARNING):
        (group,) = failure_groups(predictions(folder))
    assert (group.true, group.predicted, group.name) == (0, 2, "0 as 2")
    assert [one.picture.file for one in group.pictures] == [f"dark/light{index}.png" for index in range(9)]
    content = (folder / "dark" / "light0.png").read_bytes()
    assert group.pictures[0].sha256 == hashlib.sha256(content).hexdigest()
    assert "fewer than 8" in caplog.text and "0 as 1 (2)" in caplog.text
    assert [found.name for found in failure_groups(predictions(folder), smallest=2)] == ["0 as 1", "0 as 2"]
    with pytest.raises(DataError, match="no group of 10 failures; the largest has 9"):
        failure_groups(predictions(folder), smallest=10)


def test_tags_keep_failures_apart(folder):
    pictures = labelled_folder(folder, CLASSES)
    tagged = [Labelled(one.file, one.true, "a" if index % 2 else "b") for index, one in enumerate(pictures)]
    found = failure_groups(predict(Brightness(), tagged, folder, read), smallest=4)
    assert [(group.name, len(group.pictures)) for group in found] == [("a: 0 as 2", 4), ("b: 0 as 2", 5)]


def test_sensitive_pictures_are_right_and_unsure(folder):
    found = sensitive(predictions(folder))
    assert [one.picture.file for one in found] == ["dark/unsure1.png", "light/unsure2.png"]
    assert all(one.predicted == one.picture.true and one.margin < 0.05 for one in found)
    wide = sensitive(predictions(folder), threshold=1.0)
    assert len(wide) == 8
    drawn = [sensitive(predictions(folder), threshold=1.0, largest=3, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and all(len(one) == 3 for one in drawn)
    with pytest.raises(DataError, match="margin below"):
        sensitive(predictions(folder), threshold=1e-6)
    with pytest.raises(UsageError, match="threshold"):
        sensitive(predictions(folder), threshold=0.0)


def test_a_stronger_model_gives_labels(folder):
    labelled = relabelled(predictions(folder))
    assert {one.true for one in labelled if "light" in one.file and one.file.startswith("dark")} == {2}
    with pytest.raises(DataError, match="largest has 0"):
        failure_groups(predict(Brightness(), labelled, folder, read))


def test_corrupt_pictures_are_named(folder, caplog):
    (folder / "dark" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        predictions(folder)
    with caplog.at_level(logging.WARNING):
        found = predict(Brightness(), labelled_folder(folder, CLASSES), folder, read, on_corrupt="skip")
    assert len(found) == 19 and "1 of 20" in caplog.text and "broken.png" in caplog.text
    with pytest.raises(UsageError, match="on_corrupt"):
        predict(Brightness(), [], folder, read, on_corrupt="ignore")


def test_folder_names(folder, tmp_path):
    with pytest.raises(DataError, match="called light"):
        labelled_folder(folder, {"dark": 0})
    with pytest.raises(DataError, match="no such folder"):
        labelled_folder(folder / "none", CLASSES)
    natural = tmp_path / "natural"
    save(natural / "2_ball" / "x.png", 9)
    save(natural / "0_ball_basket" / "y.png", 9)
    assert official_folder(natural, 3) == [
        Labelled("0_ball_basket/y.png", 0, "0_ball_basket"),
        Labelled("2_ball/x.png", 2, "2_ball"),
    ]
    with pytest.raises(DataError, match="2_ball must begin with a class number from 0 to 1"):
        official_folder(natural, 2)


def test_manifest(folder, tmp_path):
    found = predictions(folder)
    manifest = Manifest("abc", tuple(failure_groups(found)), tuple(sensitive(found)), {"threshold": 0.05})
    path = tmp_path / "out" / "manifest.json"
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest
    (group,) = load_groups(manifest, folder, read)
    assert group.name == "0 as 2" and group.label == 0 and tuple(group.pixel_values.shape) == (9, 3, 4, 4)
    assert tuple(load_pictures(manifest.locality, folder, read).shape) == (2, 3, 4, 4)
    save(folder / "dark" / "light3.png", 10)
    with pytest.raises(DataError, match="another picture"):
        load_groups(manifest, folder, read)

    for change, message in (
        ({"format": 2}, "format 2"),
        ({"groups": [{}]}, "not the manifest"),
        ({"locality": [{**json.loads(path.read_text())["locality"][0], "file": "../x.png"}]}, "no path below"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(DataError, match=message):
            read_manifest(tmp_path / "bad.json")
    with pytest.raises(DataError, match="no such file"):
        read_manifest(tmp_path / "none.json")


def test_evaluator_refuses_pictures_that_are_right():
    from thurl.editing.classifier import as_classifier
    from thurl.editing.evaluate import EditGroup

    from .editing_models import pictures, small_model

    classifier = as_classifier(small_model("timm"))
    batch = pictures(4)
    with torch.no_grad():
        label = int(classifier.logits(batch)[0].argmax())
    with pytest.raises(UsageError, match="picture 0"):
        Evaluator(classifier, [EditGroup("group", label, batch[:1])])
