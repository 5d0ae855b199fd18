from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from thurl.data.degradations import KINDS, LEVELS, quality
from thurl.data.labels import read_labels
from thurl.errors import DataError, UsageError
from thurl.rl import degraded_photos as module


def textured(side: int = 300, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(40, 216, (side, side, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC, box=(0, 0, side // 8, side // 8)
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The four sets of the tiny recipe, small."""
    folder = tmp_path_factory.mktemp("study")

    def write(name, repeats, **options):
        return module.write_degraded_photos(folder / name, repeats=repeats, size=56, **options)

    return {
        "train_five": write("train_five", 2, split="train", group="five", scale="five", vary=True),
        "train_hundred": write("train_hundred", 2, split="train", group="hundred", scale="hundred", vary=True),
        "validation": write("validation", 3, split="validation"),
        "held_out": write("held_out", 3, split="held_out"),
    }


def test_four_sets_read_back_as_ordinary_labels(study):
    records = {name: read_labels(path, format="csv") for name, path in study.items()}
    assert {name: len(rows) for name, rows in records.items()} == {
        **{"train_five": 40, "train_hundred": 40, "validation": 60, "held_out": 60}
    }
    photographs = {name: {row.reference for row in rows} for name, rows in records.items()}
    for name, rows in records.items():
        assert {row.dataset for row in rows} == {name}
        cells = Counter((row.extra["kind"], int(row.extra["level"])) for row in rows)
        assert set(cells) == {(kind, level) for kind in KINDS for level in LEVELS} and len(set(cells.values())) == 1
        for other in records:
            assert other == name or not photographs[name] & photographs[other]
        with Image.open(rows[0].image) as picture:
            assert picture.size == (56, 56) and picture.mode == "RGB"


def test_scales_differ_but_the_order_is_the_quality(study):
    for name, low, high in (("train_five", 1, 5), ("train_hundred", 0, 100)):
        rows = read_labels(study[name], format="csv")
        truth = [quality(row.extra["kind"], int(row.extra["level"])) for row in rows]
        mos = [row.mos for row in rows]
        assert spearmanr(truth, mos)[0] == pytest.approx(1.0)
        assert low <= min(mos) and max(mos) == high
    half = quality("noise", 2)
    five, hundred = module.rating(half, "five"), module.rating(half, "hundred")
    assert abs((five - 1) / 4 - hundred / 100) > 0.1  # not a linear map of one another


def test_same_seed_same_files_other_seed_other_crops(tmp_path):
    photos = {"a": textured(seed=1), "b": textured(seed=2)}
    one, two, other = (
        module.write_degraded_photos(tmp_path / name / "set", photos=photos, repeats=1, seed=seed)
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert one.read_bytes() == two.read_bytes()

    def files(labels):
        return [p.read_bytes() for p in sorted((labels.parent / "images").iterdir())]

    assert files(one) == files(two) != files(other)
    with one.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == module.COLUMNS
    assert Counter(row["reference"] for row in rows) == {"a": 10, "b": 10}


def test_flat_and_dark_photographs_are_refused(tmp_path):
    with pytest.raises(DataError, match="'wall'.*no usable crop"):
        module.write_degraded_photos(tmp_path, photos={"wall": Image.new("RGB", (300, 300), (90, 90, 90))}, repeats=1)
    photos = {"wall": Image.new("RGB", (300, 300), (90, 90, 90)), "field": textured()}
    labels = module.write_degraded_photos(tmp_path / "skip", photos=photos, repeats=1, skip_unusable=True)
    assert {row.reference for row in read_labels(labels, format="csv")} == {"field"}
    assert not module.usable_crop(textured().point(lambda v: v // 8))
    assert module.usable_crop(textured())


def test_small_photographs_are_cropped_as_far_as_they_go(tmp_path):
    labels = module.write_degraded_photos(tmp_path, photos={"a": textured(60)}, repeats=1, size=28)
    with Image.open(tmp_path / read_labels(labels, format="csv")[0].image) as picture:
        assert picture.size == (28, 28)


def test_all_wrong_settings_are_named_together(tmp_path):
    with pytest.raises(UsageError) as caught:
        module.write_degraded_photos(tmp_path, repeats=0, size=4, crop=(20, 10))
    assert len(caught.value.problems) == 3
    with pytest.raises(UsageError, match="five, hundred"):
        module.write_degraded_photos(tmp_path, repeats=1, scale="ten")


def test_varied_crops_stay_natural_and_are_for_training_only(tmp_path, study):
    rng = np.random.default_rng(0)
    crop = textured(56)
    variants = [module.vary_crop(crop, rng) for _ in range(20)]
    assert len({picture.tobytes() for picture in variants}) == 20
    assert all(picture.size == (56, 56) and picture.mode == "RGB" for picture in variants)
    plain = module.write_degraded_photos(tmp_path / "validation", split="validation", repeats=3)
    for one, two in zip(
        sorted(plain.parent.glob("images/*")), sorted(study["validation"].parent.glob("images/*")), strict=True
    ):
        assert one.read_bytes() == two.read_bytes()
