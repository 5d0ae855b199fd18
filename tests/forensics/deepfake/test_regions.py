"""Regions, colours and single forgeries: masks lie where they should, and nothing changes outside them."""

from __future__ import annotations

import numpy as np
import pytest

from thurl.errors import DataError
from thurl.forensics.deepfake.drawn_faces import draw_face
from thurl.forensics.deepfake.forgeries import (
    Blend,
    blend_regions,
    change,
    expression_donor,
    relit_donor,
    self_donor,
    warped_donor,
)
from thurl.forensics.deepfake.regions import REGIONS, eye_distance, feather, jitter, region_mask
from thurl.forensics.lab import lab_to_rgb, match_colours, rgb_to_lab


FACE, OTHER = draw_face(1, size=64), draw_face(9, size=64)
BLEND = Blend(dilation=0.1, jitter=0.03, feather=4.0, colour=0.8, seed=3)


def masks(dilation, face=FACE, size=64):
    return {region: region_mask(face.landmarks, region, size, size, dilation=dilation) for region in REGIONS}


def test_regions_lie_on_their_landmarks_and_grow():
    thin, thick = masks(0.0), masks(0.15)
    for region, part in (("eye", slice(36, 42)), ("eyebrow", slice(17, 22)), ("nose", slice(27, 36))):
        x, y = np.rint(FACE.landmarks[part].mean(0)).astype(int)
        assert thick[region][y, x] == 1
    for region in REGIONS[:-1]:
        assert (thick[region] >= thin[region] - 1e-9).all() and thick[region].sum() > thin[region].sum()
        assert 0 <= thin[region].min() and thick[region].max() == 1
    x, y = np.rint(FACE.landmarks[60:68].mean(0)).astype(int)
    assert thick["mouth"][y, x] == 1 and thick["lip"][y, x] < 0.5
    # The skin is what is left of the face.
    for region in REGIONS[:-1]:
        assert np.minimum(thick["skin"], thick[region]).max() <= 0.5 + 1e-9
    assert thick["skin"][:, :3].max() == 0


def test_regions_grow_with_the_face():
    for region in ("eye", "mouth", "nose"):
        small, large = (
            region_mask(face.landmarks, region, size, size, dilation=0.1).sum() / eye_distance(face.landmarks) ** 2
            for size in (48, 192)
            for face in (draw_face(1, size=size),)
        )
        assert large == pytest.approx(small, rel=0.25)


def test_81_points_widen_the_skin_only():
    forehead = np.stack([np.linspace(20, 44, 13), np.full(13, 8.0)], -1)
    more = np.concatenate([FACE.landmarks, forehead])
    wide = region_mask(more, "skin", 64, 64)
    assert wide[10, 32] == 1 > masks(0.0)["skin"][10, 32]
    assert (region_mask(more, "nose", 64, 64) == masks(0.0)["nose"]).all()


def test_faces_that_cannot_have_regions_are_refused():
    with pytest.raises(DataError, match=r"shape \(5, 2\)"):
        region_mask(FACE.landmarks[:5], "eye", 64, 64)
    with pytest.raises(DataError, match="pixels between the eyes"):
        region_mask(FACE.landmarks / 20, "eye", 64, 64)


def test_jitter_and_feather_keep_the_place():
    mask = masks(0.1)["nose"]
    bent = jitter(mask, 2.0, 6.0, np.random.default_rng(0))
    assert 0 < np.abs(bent - mask).sum() < mask.sum()
    assert np.argwhere(bent > 0.5).mean(0) == pytest.approx(np.argwhere(mask > 0.5).mean(0), abs=2)
    soft = feather(mask, 2.0)
    assert soft.max() == pytest.approx(mask.max()) and soft[0].max() == 0
    assert ((soft > 0.01) & (soft < 0.99)).sum() > ((mask > 0.01) & (mask < 0.99)).sum()
    assert (feather(np.zeros((9, 9)), 2.0) == 0).all()


def test_lab_agrees_with_scikit_image_and_comes_back():
    color = pytest.importorskip("skimage.color")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(float)
    assert np.abs(rgb_to_lab(pixels) - color.rgb2lab(pixels / 255)).max() < 0.02
    assert np.abs(lab_to_rgb(rgb_to_lab(pixels)) - pixels).max() < 1e-6


def test_matched_colours_have_the_targets_mean():
    rng = np.random.default_rng(0)
    donor, target = rng.uniform(90, 130, (20, 20, 3)), rng.uniform(80, 115, (20, 20, 3))
    where = np.zeros((20, 20), bool)
    where[5:15] = True
    matched = match_colours(donor, target, where)
    assert np.abs(rgb_to_lab(matched)[where].mean(0) - rgb_to_lab(target)[where].mean(0)).max() < 0.1
    assert np.abs(rgb_to_lab(matched)[where].std(0) - rgb_to_lab(target)[where].std(0)).max() < 0.2
    half = match_colours(donor, target, where, 0.5)
    assert 0 < np.abs(half - donor).mean() < np.abs(matched - donor).mean()
    assert (match_colours(donor, target, np.zeros_like(where)) == donor).all()


@pytest.mark.parametrize("regions", [("eye",), ("nose", "mouth"), ("skin",), REGIONS])
def test_a_forgery_changes_its_mask_and_nothing_else(regions):
    donor = warped_donor(OTHER.pixels, OTHER.landmarks, FACE.landmarks, (64, 64), regions)
    forged, mask = blend_regions(FACE.pixels, FACE.landmarks, donor, regions, BLEND)
    different = (forged != FACE.pixels).any(-1)
    assert different.sum() > 0.5 * (mask > 0.5).sum()
    assert not different[mask == 0].any()
    inside, outside = change(FACE.pixels, forged, mask)
    assert inside > 3 and outside == 0
    again, _ = blend_regions(FACE.pixels, FACE.landmarks, donor, regions, BLEND)
    assert (again == forged).all()


def test_the_face_itself_as_a_donor_changes_nothing():
    forged, mask = blend_regions(FACE.pixels, FACE.landmarks, FACE.pixels.astype(float), ("eye",), BLEND)
    assert np.abs(forged.astype(int) - FACE.pixels).max() <= 1
    assert change(FACE.pixels, forged, mask)[0] < 0.1
    with pytest.raises(DataError, match="pixel on pixel"):
        blend_regions(FACE.pixels, FACE.landmarks, FACE.pixels[:32], ("eye",), BLEND)


def test_a_warped_donor_lies_on_the_landmarks():
    # The same face in another size and place: the warp must undo both.
    large = draw_face(1, size=128)
    points = large.landmarks + 6
    moved = np.roll(large.pixels, (6, 6), (0, 1))
    donor = warped_donor(moved, points, FACE.landmarks, (64, 64))
    inner = region_mask(FACE.landmarks, "nose", 64, 64, dilation=0.3) > 0.5
    assert np.abs(donor - FACE.pixels)[inner].mean() < 12
    assert np.abs(moved[:64, :64].astype(float) - FACE.pixels)[inner].mean() > 20


@pytest.mark.parametrize("make", [self_donor, expression_donor, relit_donor])
def test_donors_made_of_the_face_differ_where_they_should(make):
    first, second = (make(FACE.pixels, FACE.landmarks, np.random.default_rng(seed)) for seed in (0, 1))
    assert first.shape == FACE.pixels.shape and np.isfinite(first).all()
    assert first.min() >= 0 and first.max() <= 255
    assert (first == make(FACE.pixels, FACE.landmarks, np.random.default_rng(0))).all()
    assert not (first == second).all()
    mouth = region_mask(FACE.landmarks, "mouth", 64, 64, dilation=0.1) > 0.5
    assert np.abs(first - FACE.pixels)[mouth].mean() > 3
    if make is expression_donor:
        brows = region_mask(FACE.landmarks, "eyebrow", 64, 64) > 0.5
        assert np.abs(first - FACE.pixels)[brows].max() < 1
