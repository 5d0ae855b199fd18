"""Local edits against the official ones, and what a seed promises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from thurl.forensics.exif.manipulations import (
    MANIPULATIONS,
    OFFICIAL_WEIGHTS,
    PHOTOGRAPH,
    RATIOS,
    draw_manipulation,
    labels_of,
    manipulate,
    region_box,
    region_mask,
    resample,
    warp,
)
from thurl.forensics.pixels import bilinear_resize, blend_weights, diamond_around_line, sample_bilinear


GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "exif_manipulations.npz")
FACE, POINTS = GOLDEN["face224"], GOLDEN["landmarks68"]
NAMES = {
    "mouth_rotated": ("mouth_rot180", "mouth"),
    "mouth_mirrored": ("mouth_hflip", "mouth"),
    "eye_mirrored": ("eye_hflip", "eye"),
    "nose_rotated": ("nose_rot180", "nose"),
}


def gap(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


# --- golden ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [1.0, 0.75])
def test_edits_match_the_official_ones(name, ratio):
    golden = GOLDEN[f"{NAMES[name][0]}.out_ratio{ratio}"]
    edited, made = manipulate(FACE, name, np.random.default_rng(0), landmarks=POINTS, ratio=ratio)
    assert made == name and gap(edited, golden) <= 1
    # The edit is larger than the tolerance, and the two strengths are not the same.
    assert gap(FACE, golden) > 20
    other, _ = manipulate(FACE, name, np.random.default_rng(0), landmarks=POINTS, ratio=1.75 - ratio)
    assert gap(other, golden) > 3


@pytest.mark.parametrize("name", NAMES)
def test_boxes_and_regions_are_exact(name):
    golden, region = NAMES[name]
    assert region_box(POINTS, region, 224, 224) == tuple(GOLDEN[f"{golden}.box_ltrb"])
    mask = np.unpackbits(GOLDEN[f"{golden}.region"])[: 224 * 224].reshape(224, 224).astype(bool)
    assert np.array_equal(region_mask(POINTS, region, 224, 224), mask)


@pytest.mark.parametrize("name", NAMES)
def test_blend_weights(name):
    golden = NAMES[name][0]
    kernel, sigma = (15, 2.0) if name == "nose_rotated" else (91, 7.0)
    box = tuple(int(n) for n in GOLDEN[f"{golden}.box_ltrb"])
    weights = blend_weights(box, 224, 224, kernel=kernel, sigma=sigma)
    # The golden file holds float16.
    assert np.abs(weights - GOLDEN[f"{golden}.alpha"].astype(float)).max() < 5e-4
    assert weights.max() == 1 and weights.min() >= 0


def test_the_face_is_enlarged_as_officially():
    assert gap(resample(GOLDEN["face128"], 224, 224), FACE) <= 1


# --- the parts -------------------------------------------------------------------------------------------------------


def test_regions_at_the_border_are_cut_and_outside_are_none():
    moved = POINTS - POINTS[48] + (2, 2)
    left, top, right, bottom = region_box(moved, "mouth", 224, 224)
    assert (left, top) == (0, 0) and right > 60 and bottom > 20
    mask = region_mask(moved, "mouth", 224, 224)
    rows, columns = np.nonzero(mask)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (left, top, right, bottom)
    for shift in ((1e4, 0), (-1e4, -1e4), (np.nan, 0), (np.inf, 0), (1e12, 1e12)):
        assert region_box(POINTS + shift, "mouth", 224, 224) is None
    with pytest.raises(ValueError, match="mouth, eye, nose"):
        region_box(POINTS, "ear", 224, 224)


def test_a_region_around_a_point_is_a_diamond():
    mask = diamond_around_line((5, 5), (5, 5), 2, 11, 11)
    rows, columns = np.indices((11, 11))
    assert np.array_equal(mask, np.abs(rows - 5) + np.abs(columns - 5) <= 2)


def test_without_landmarks_or_region_every_edit_is_the_warp():
    for points in (None, POINTS + 1e4):
        for name in MANIPULATIONS:
            edited, made = manipulate(FACE, name, np.random.default_rng(7), landmarks=points)
            assert made == "warp"
            expected, _ = manipulate(FACE, "warp", np.random.default_rng(7))
            assert np.array_equal(edited, expected)


def test_edits_stay_near_their_region_and_leave_the_input_alone():
    before = FACE.copy()
    for name, (_, region) in NAMES.items():
        edited, _ = manipulate(FACE, name, np.random.default_rng(1), landmarks=POINTS, ratio=1.0)
        left, top, right, bottom = region_box(POINTS, region, 224, 224)
        changed = np.argwhere((edited != FACE).any(-1))
        assert len(changed) > 50
        assert changed[:, 0].min() >= top - 5 and changed[:, 0].max() < bottom + 5
        assert changed[:, 1].min() >= left - 5 and changed[:, 1].max() < right + 5
    assert np.array_equal(FACE, before)


def test_mirroring_flips_the_middle_of_the_region():
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    left, top, right, bottom = region_box(POINTS, "mouth", 224, 224)
    row, middle = (top + bottom) // 2, slice((left + right) // 2 - 4, (left + right) // 2 + 4)
    mirrored, _ = manipulate(noise, "mouth_mirrored", np.random.default_rng(0), landmarks=POINTS, ratio=1.0)
    rotated, _ = manipulate(noise, "mouth_rotated", np.random.default_rng(0), landmarks=POINTS, ratio=1.0)
    assert gap(mirrored[row, middle], noise[row, middle][::-1]) <= 12  # the weight there is 0.95 or more
    assert gap(rotated[row, middle], noise[top + bottom - 1 - row, middle][::-1]) <= 12
    assert gap(mirrored[row, middle], noise[row, middle]) > 40


def test_warp_of_nothing_is_the_picture_and_of_something_is_smooth():
    still = np.zeros((4, 4, 2))
    assert np.array_equal(warp(FACE, still), FACE)
    ramp = np.broadcast_to(np.arange(224, dtype=np.uint8)[None, :, None], (224, 224, 3))
    # All points one tenth to the right show what lay there, up to the border.
    shifted = warp(ramp, np.broadcast_to([0.0, 0.1], (4, 4, 2)))
    assert gap(shifted[:, :100], ramp[:, :100] + 22) <= 1 and (shifted[:, -1] == 223).all()
    jittered = warp(ramp, np.random.default_rng(3).normal(0, 0.05, (4, 4, 2))).astype(int)
    # Continuous across the triangles' edges: no jump beyond the local stretch.
    assert np.abs(np.diff(jittered, axis=1)).max() <= 6 and np.abs(np.diff(jittered, axis=0)).max() <= 6
    assert gap(jittered, ramp) > 5


def test_sampling_between_pixels():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    rows, columns = np.array([0.0, 0.5, 2.0, 1.25]), np.array([0.0, 1.0, 3.0, 2.5])
    assert sample_bilinear(image, rows, columns)[:, 0] == pytest.approx([0, 3, 11, 7.5])
    single = np.full((1, 1, 3), 9, np.uint8)
    assert np.array_equal(sample_bilinear(single, np.zeros(2), np.zeros(2)), np.full((2, 3), 9))


@pytest.mark.parametrize("shape", [(5, 7), (13, 3), (1, 1), (128, 96)])
def test_resizing_keeps_ramps_and_constants(shape):
    ramp = np.arange(8, dtype=np.float64)[None, :, None] * np.ones((6, 1, 2))
    out = bilinear_resize(ramp, *shape)
    assert out.shape == (*shape, 2)
    assert np.abs(out - out[:1]).max() < 1e-5  # nothing changes down the columns
    assert bilinear_resize(np.full((6, 8, 3), 255, np.uint8), *shape) == pytest.approx(255)
    assert np.array_equal(resample(np.full((6, 8, 3), 255, np.uint8), *shape), np.full((*shape, 3), 255, np.uint8))


def test_resizing_twice_loses_little_and_something():
    small = GOLDEN["face128"]
    again = resample(resample(small, 224, 224), 128, 128)
    assert again.shape == small.shape and 0 < gap(again, small) < 40
    assert resample(small, 128, 128) is small


# --- draws and labels ------------------------------------------------------------------------------------------------


def test_draws_follow_the_weights():
    rng = np.random.default_rng(0)
    counts = Counter(draw_manipulation(rng) for _ in range(8000))
    assert set(counts) == set(OFFICIAL_WEIGHTS)
    for name, weight in OFFICIAL_WEIGHTS.items():
        share = weight / 8
        assert abs(counts[name] / 8000 - share) < 4 * (share * (1 - share) / 8000) ** 0.5
    assert {draw_manipulation(rng, {PHOTOGRAPH: 0, "warp": 2}) for _ in range(20)} == {"warp"}


def test_the_strength_is_drawn_as_officially():
    faces = {r: manipulate(FACE, "warp", np.random.default_rng(0), ratio=r)[0] for r in (0.75, 1.0)}
    assert np.array_equal(faces[0.75], faces[1.0])  # the warp has no strength
    strengths = []
    for seed in range(80):
        edited, _ = manipulate(FACE, "mouth_rotated", np.random.default_rng(seed), landmarks=POINTS)
        strengths.append(gap(edited, GOLDEN["mouth_rot180.out_ratio1.0"]) <= 1)
    assert RATIOS.count(1.0) == 3 and 0.55 < np.mean(strengths) < 0.95


def test_the_seed_decides_everything():
    for name in MANIPULATIONS:
        one, two, other = (manipulate(FACE, name, np.random.default_rng(s))[0] for s in (1, 1, 2))
        assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_labels():
    assert {name: labels_of(name) for name in (PHOTOGRAPH, *MANIPULATIONS)} == {
        PHOTOGRAPH: (0, (0, 0, 0)),
        "mouth_rotated": (1, (1, 0, 0)),
        "mouth_mirrored": (1, (1, 0, 0)),
        "eye_mirrored": (1, (0, 1, 0)),
        "nose_rotated": (1, (0, 0, 1)),
        "warp": (1, (1, 1, 1)),
    }
    # The official labels [photographic, manipulated, mouth, eye] of its indices 0 to 4.
    official = [(0, (0, 0)), (1, (1, 0)), (1, (1, 0)), (1, (0, 1)), (1, (1, 1))]
    assert [labels_of(name, 2) for name in OFFICIAL_WEIGHTS] == official
