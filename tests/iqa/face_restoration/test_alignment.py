"""Alignment: golden matrices and pixels of the official code, properties of the fit and the warp, landmark files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from thurl.errors import DataError
from thurl.iqa.face_restoration.adaface import face_pixels
from thurl.iqa.face_restoration.alignment import TEMPLATE, align_face, fit_alignment, warp_affine
from thurl.iqa.face_restoration.landmarks import COLUMNS, FFHQ_512, ffhq_points, read_landmarks


GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "ntire_modules_tiny.safetensors")


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def test_the_template_is_the_official_one():
    np.testing.assert_array_equal(TEMPLATE, GOLDEN["align.reference5"])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_matrices_and_pixels_are_the_official_ones(number):
    matrix = fit_alignment(GOLDEN[f"align.{number}.points"])
    np.testing.assert_allclose(matrix, GOLDEN[f"align.{number}.matrix"], atol=1e-4)
    warped = align_face(GOLDEN["align.image_u8"], GOLDEN[f"align.{number}.points"])
    difference = np.abs(warped.astype(int) - GOLDEN[f"align.{number}.warped_u8"])
    assert (difference <= 1).mean() >= 0.995


def test_network_input_is_the_official_one():
    pixels = face_pixels(GOLDEN["align.0.warped_u8"][None]).numpy()
    np.testing.assert_allclose(pixels, GOLDEN["align.0.adaface_input"], atol=1e-6)


def test_a_forward_fit_would_be_another_one():
    # On noisy landmarks the direction of the least squares matters; the golden matrices would not be met.
    from skimage.transform import SimilarityTransform

    points = GOLDEN["align.2.points"]
    forward = SimilarityTransform.from_estimate(points, TEMPLATE).params[:2]
    assert np.abs(forward - fit_alignment(points)).max() > 0.01


def test_exact_similarities_are_found_and_batches_are_single_fits():
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(5):
        angle, scale, shift = rng.uniform(-1, 1), rng.uniform(0.5, 3), rng.uniform(-50, 50, 2)
        rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        cases.append(TEMPLATE @ rotation.T + shift)
    matrices = fit_alignment(np.stack(cases))
    for points, matrix in zip(cases, matrices, strict=True):
        np.testing.assert_allclose(apply(matrix, points), TEMPLATE, atol=1e-9)
        np.testing.assert_array_equal(matrix, fit_alignment(points))


def test_mirrored_landmarks_take_the_mirrored_candidate():
    points = GOLDEN["align.0.points"]
    mirrored = points * np.array([-1.0, 1.0]) + np.array([160.0, 0.0])
    matrix = fit_alignment(mirrored)
    assert np.linalg.det(matrix[:, :2]) < 0 < np.linalg.det(fit_alignment(points)[:, :2])
    assert np.abs(apply(matrix, mirrored) - TEMPLATE).max() < 10


def test_the_identity_warp_keeps_every_pixel_and_shifts_are_exact():
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(warp_affine(image, np.eye(2, 3), 30), image)
    shifted = warp_affine(image, np.array([[1.0, 0, 4], [0, 1, -3]]), 30)
    np.testing.assert_array_equal(shifted[:27, 4:], image[3:, :26])
    assert not shifted[27:].any() and not shifted[:, :4].any()  # black border
    half = warp_affine(image, np.array([[1.0, 0, 0.5], [0, 1, 0]]), 30)
    expected = (image[:, :-1].astype(int) + image[:, 1:] + 1) // 2
    np.testing.assert_array_equal(half[:, 1:], expected)


@pytest.mark.parametrize("points", [np.ones((5, 2)), np.full((5, 2), np.nan), np.ones((4, 2))])
def test_unusable_landmarks_are_errors(points):
    with pytest.raises(DataError):
        fit_alignment(points)


def test_far_and_degenerate_warps_stay_defined():
    image = np.full((20, 20, 3), 255, dtype=np.uint8)
    assert not warp_affine(image, np.array([[1e-6, 0, 1e9], [0, 1e-6, 1e9]]), 8).any()
    with pytest.raises(DataError):
        warp_affine(image, np.zeros((2, 3)), 8)


# --- landmark files --------------------------------------------------------------------------------------------------


def landmark_file(path, rows, columns=("filename", "dataset", *COLUMNS)):
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_landmark_files_are_read_by_data_set_and_stem(tmp_path):
    path = landmark_file(tmp_path / "l.csv", [["0", "A", *range(10)], ["0", "B", *range(10, 20)]])
    marks = read_landmarks(path)
    assert marks.of("A", "0") == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
    assert marks.of("B", "0")[0] == (10, 11)
    assert marks.of("C", "0") is None
    without = landmark_file(tmp_path / "m.csv", [["0", *range(10)]], ("filename", *COLUMNS))
    assert read_landmarks(without).of("anything", "0")[0] == (0, 1)


def test_bad_landmark_files_name_every_problem(tmp_path):
    rows = [["0", "A", *range(10)], ["0", "A", *range(10)], ["1", "A", "x", *range(9)], ["2", "A", "inf", *range(9)]]
    with pytest.raises(DataError) as error:
        read_landmarks(landmark_file(tmp_path / "l.csv", rows))
    text = str(error.value)
    assert "A/0 occurs twice" in text and "line 4 (1): left_eye_x" in text and "line 5 (2)" in text
    with pytest.raises(DataError, match="nose_x"):
        read_landmarks(landmark_file(tmp_path / "m.csv", [], ("filename", "left_eye_x")))
    with pytest.raises(DataError, match="no such"):
        read_landmarks(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no face"):
        read_landmarks(landmark_file(tmp_path / "e.csv", []))


def test_fixed_points_scale_with_the_picture():
    np.testing.assert_allclose(ffhq_points(512, 512), FFHQ_512)
    np.testing.assert_allclose(ffhq_points(256, 1024), np.array(FFHQ_512) * [0.5, 2])
    # They are a face: nearly similar to the template.
    points = np.array(FFHQ_512)
    assert np.abs(apply(fit_alignment(points), points) - TEMPLATE).max() < 4
