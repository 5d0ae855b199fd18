"""Hub data sets: pictures inside Arrow files, opened one at a time."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from thurl.data.hub_pictures import HUB_PREFIX
from thurl.data.images import ImageError, open_image
from thurl.data.labels import read_labels
from thurl.data.sources import load_source
from thurl.errors import DataError, MissingRequirementError, UsageError


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _table(count=4, **columns):
    pictures = [{"bytes": _png(10 * i), "path": None} for i in range(count)]
    table = datasets.Dataset.from_dict({"image": pictures, "mos": [float(i) for i in range(count)], **columns})
    return table.cast_column("image", datasets.Image())


@pytest.fixture
def saved(tmp_path):
    _table(std=[0.1] * 4, kind=["blur", "noise", "blur", "noise"]).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def test_pictures_are_decoded_only_when_opened(saved, monkeypatch):
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *a, **k: pytest.fail("decoded while reading labels"))
    records = read_labels(saved, format="hub")
    assert [record.mos for record in records] == [0.0, 1.0, 2.0, 3.0]
    assert (records[1].std, records[1].extra, records[1].row, records[1].dataset) == (0.1, {"kind": "noise"}, 2, "set")
    assert [tuple(np.asarray(open_image(record.image))[0, 0]) for record in records] == [
        (10 * i, 0, 0) for i in range(4)
    ]


def test_other_column_names_splits_and_data_set_column(tmp_path):
    table = _table(where=["A", "B", "A", "B"]).rename_columns({"image": "picture", "mos": "score"})
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "set")
    columns = {"image": "picture", "mos": "score", "dataset": "where"}
    records = read_labels(tmp_path / "set", format="hub", columns=columns, split="test")
    assert [record.dataset for record in records] == ["A", "B", "A", "B"]
    with pytest.raises(UsageError, match="no split 'train'; it has test"):
        read_labels(tmp_path / "set", format="hub", columns=columns)
    with pytest.raises(DataError, match="no column 'image'"):
        read_labels(tmp_path / "set", format="hub", split="test")


def test_a_corrupt_picture_is_named_by_row_or_skipped(tmp_path):
    pictures = [
        {"bytes": _png(1), "path": None},
        {"bytes": _png(2)[:50], "path": None},
        {"bytes": _png(3), "path": None},
    ]
    table = datasets.Dataset.from_dict({"image": pictures, "mos": [1.0, 2.0, 3.0]}, features=datasets.Features(
        {"image": datasets.Image(), "mos": datasets.Value("float64")}
    ))  # fmt: skip
    table.save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"1 of 3 pictures(.|\n)*set \(train\) row 2: the picture is truncated"):
        load_source("hub", tmp_path / "set")
    assert [record.mos for record in load_source("hub", tmp_path / "set", on_corrupt="skip")] == [1.0, 3.0]


def test_bad_values_are_reported_by_row(tmp_path):
    _table().remove_columns("mos").add_column("mos", [1.0, None, float("nan"), 2.0]).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="2 rows(.|\n)*row 2: mos is empty(.|\n)*row 3: mos is nan"):
        read_labels(tmp_path / "set", format="hub")


def test_a_column_of_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(_png(7))
    datasets.Dataset.from_dict({"image": ["a.png"], "mos": [1]}).save_to_disk(tmp_path / "set")
    (record,) = load_source("hub", tmp_path / "set", images=tmp_path)
    assert record.image == str(tmp_path / "a.png")
    datasets.Dataset.from_dict({"image": [3], "mos": [1]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(DataError, match="'image' holds"):
        read_labels(tmp_path / "numbers", format="hub")


def test_a_set_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no network")))
    with pytest.raises(MissingRequirementError, match="'user/name' .*no network.*download it first"):
        read_labels("user/name", format="hub")


def test_references_to_nothing(saved):
    key = json.loads(read_labels(saved, format="hub")[0].image.removeprefix(HUB_PREFIX))[0]
    for reference in (
        "x",
        json.dumps([key, "image", 99]),
        json.dumps([key, "nothing", 0]),
        json.dumps(["{}", "a", 0]),
    ):
        with pytest.raises(ImageError):
            open_image(HUB_PREFIX + reference)


def test_a_label_file_cannot_name_a_hub_picture(tmp_path, saved):
    reference = read_labels(saved, format="hub")[0].image.replace('"', '""')
    (tmp_path / "a.csv").write_text(f'image,mos\n"{reference}",1\n')
    with pytest.raises(MissingRequirementError, match="missing"):
        load_source("csv", tmp_path / "a.csv")
