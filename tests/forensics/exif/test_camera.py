"""The simulated camera: files with EXIF that mean what they say, traces where they should be, fakes that differ."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.stats import spearmanr

from thurl.errors import UsageError
from thurl.forensics.exif.camera import FAKES, fakes, photographs, write_fakes, write_photographs
from thurl.forensics.exif.reader import read_exif
from thurl.forensics.exif.scan import scan_folder
from thurl.forensics.exif.settings import settings_from_raw
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, class_names


@pytest.fixture(scope="module")
def shots():
    return photographs(400, seed=5)


def values(raw, tag):
    return np.array([float(item[tag]) for item in raw])


def test_picture_number_i_is_always_the_same(shots):
    pixels, raw = shots
    some, some_raw = photographs(3, seed=5, start=300)
    assert np.array_equal(some, pixels[300:303]) and some_raw == raw[300:303]
    other, _ = photographs(3, seed=6, start=300)
    assert not np.array_equal(some, other)
    assert len({image.tobytes() for image in pixels}) == 400


def test_settings_cover_their_ranges_and_classes(shots):
    _, raw = shots
    for tag, low, high in (
        ("ISO", 100, 1000),
        ("FNumber", 1.4, 16),
        ("ExposureTime", 1 / 2000, 1 / 8),
        ("FocalLength", 18, 200),
    ):
        found = values(raw, tag)
        assert low <= found.min() < low * 1.3 and high / 1.3 < found.max() <= high
    labels = [settings_from_raw(item) for item in raw]
    assert all(not item.absent for item in labels)
    seen = {name: {item.values[name] for item in labels} for name in CATEGORICAL_TASKS}
    assert seen["make"] == set(class_names("make")) and seen["white_balance"] == {"auto", "manual"}
    assert seen["exposure_program"] == set(class_names("exposure_program"))
    assert len(seen["metering_mode"]) == 7 and len(seen["exposure_mode"]) == 3
    # Drawn independently: no setting tells another.
    ordinal = np.array([item.ordinal() for item in labels])
    correlations = spearmanr(ordinal).statistic
    assert np.abs(correlations - np.eye(4)).max() < 0.15


def test_every_setting_leaves_its_trace(shots):
    pixels, raw = shots
    image = pixels.astype(np.float64) / 255
    fine = np.abs(image - ndimage.gaussian_filter(image, (0, 1, 1, 0))).mean((1, 2, 3))
    assert spearmanr(fine, values(raw, "ISO")).statistic > 0.6
    place = (np.arange(40) + 0.5) / 20 - 1
    radius = np.hypot(place[:, None], place[None, :])
    brightness = image.mean(-1)
    fall = brightness[:, radius > 1.1].mean(1) / brightness[:, (radius < 0.8) & (radius > 0.5)].mean(1)
    assert spearmanr(fall, values(raw, "FocalLength")).statistic > 0.5
    warm = image[..., 0].mean((1, 2)) / image[..., 2].mean((1, 2))
    manual = values(raw, "WhiteBalance") == 1
    assert np.median(warm[manual]) > np.median(warm[~manual]) * 1.15
    # Blur hides below the noise, so it is looked for where there is little.
    clean = values(raw, "ISO") < 400
    smooth = ndimage.gaussian_filter(image, (0, 0.8, 0.8, 0)).mean(-1)[clean]
    across, down = np.abs(np.diff(smooth, axis=2)).mean((1, 2)), np.abs(np.diff(smooth, axis=1)).mean((1, 2))
    assert spearmanr(down / across, values(raw, "ExposureTime")[clean]).statistic > 0.5
    assert spearmanr(down / smooth.std((1, 2)), values(raw, "FNumber")[clean]).statistic > 0.2
    # And the one that leaves none.
    mode = values(raw, "ExposureMode")
    assert abs(spearmanr(fine, mode).statistic) < 0.15 and abs(spearmanr(fall, mode).statistic) < 0.15


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_files_carry_their_exif(tmp_path, format):
    paths = write_photographs(tmp_path, 20, seed=1, start=7, format=format, missing=0.0)
    assert [path.name for path in paths[:2]] == [
        f"photo_00000{n}.{'jpg' if format == 'JPEG' else 'png'}" for n in (7, 8)
    ]
    pixels, raw = photographs(20, seed=1, start=7)
    for path, truth, image in zip(paths, raw, pixels, strict=True):
        reading = read_exif(path)
        assert reading.format == format and reading.raw["Make"] == truth["Make"]
        for tag, value in truth.items():
            if tag != "Make":
                assert reading.raw[tag] == pytest.approx(value, rel=4e-3)
        assert reading.settings().classes() == settings_from_raw(truth).classes()
        with Image.open(path) as picture:
            stored = np.asarray(picture).astype(int)
        assert np.abs(stored - image).mean() < (4 if format == "JPEG" else 1e-9)


def test_some_tags_are_left_out_and_the_scan_takes_the_rest(tmp_path):
    write_photographs(tmp_path, 100, seed=2, missing=0.3)
    records = scan_folder(tmp_path, group_by="file").records
    assert len(records) == 100
    present = np.mean([len(record.settings.values) for record in records]) / 9
    assert 0.64 < present < 0.76
    assert {reason for record in records for reason in record.settings.absent.values()} == {"not written"}


@pytest.mark.parametrize("kind", FAKES)
def test_fakes_differ_from_photographs(kind, tmp_path):
    made = fakes(kind, 40, seed=9)
    assert made.shape == (40, 40, 40, 3) and made.dtype == np.uint8
    assert np.array_equal(fakes(kind, 2, seed=9, start=38), made[38:])
    real, _ = photographs(40, seed=9)
    fine = [np.abs(np.diff(x.astype(int), axis=2)).mean() for x in (made, real)]
    if kind == "smooth":
        assert fine[0] < 0.5 * fine[1]
    elif kind == "reborn":
        assert np.array_equal(made[:, ::2, ::2], made[:, 1::2, 1::2])
    else:
        sign = 1 - 2 * (np.add.outer(np.arange(40), np.arange(40)) % 2)
        strength = (made.astype(float) * sign[None, :, :, None]).mean((1, 2, 3)) / 255
        assert np.abs(strength - 0.08).max() < 0.03
    paths = write_fakes(tmp_path, kind, 2, seed=9)
    assert paths[0].name == f"{kind}_000000.jpg" and read_exif(paths[0]).problem == "no EXIF in the file"


def test_odd_sizes_and_wrong_arguments(tmp_path):
    for kind in FAKES:
        assert fakes(kind, 1, size=21).shape == (1, 21, 21, 3)
    for call in (
        lambda: photographs(0),
        lambda: photographs(1, size=4),
        lambda: fakes("gan", 1),
        lambda: write_photographs(tmp_path, 1, missing=2),
        lambda: write_photographs(tmp_path, 1, format="BMP"),
    ):
        with pytest.raises(UsageError):
            call()
