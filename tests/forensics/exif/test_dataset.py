"""The training data set: labels, seeds, matched resampling, and landmarks wherever they come from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from thurl.data.images import ImageError
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.crop import central_box
from thurl.forensics.exif.dataset import CameraFaces, collate_faces
from thurl.forensics.exif.landmarks import annotate, with_average_landmarks, with_landmark_files
from thurl.forensics.exif.losses import blades_terms, ordinal_terms
from thurl.forensics.exif.manifest import FaceRecord
from thurl.forensics.exif.manipulations import draw_manipulation, manipulate, resample
from thurl.forensics.exif.settings import CameraSettings
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, ORDINAL_TASKS, TASKS
from thurl.forensics.faces import CascadeDetector, Face, average_landmarks, read_landmarks
from thurl.forensics.processing import FaceImageProcessor


SETTINGS = (
    CameraSettings({"iso": 200.0, "exposure_time": 1 / 60, "make": "Canon", "white_balance": "manual"}),
    CameraSettings({"aperture": 2.8, "focal_length": 50.0, "make": "Nikon"}),
    CameraSettings({}),
)
PROCESSOR = FaceImageProcessor(size=32)


@pytest.fixture
def records(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for i in range(12):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        found.append(FaceRecord(str(path), SETTINGS[i % 3], size=(40, 40)))
    return with_average_landmarks(found)


def test_items_and_batches(records):
    batch = collate_faces([CameraFaces(records, PROCESSOR, manipulations=None)[i] for i in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 32, 32) and batch["pixel_values"].dtype == torch.float32
    labels = batch["labels"]
    assert tuple(labels) == TASKS
    assert labels["iso"].tolist()[0] == 200 and torch.isnan(labels["iso"][1:]).all()
    assert labels["exposure_time"][0] == pytest.approx(1 / 60)
    assert labels["make"].tolist() == [3, 0, -1] and labels["white_balance"].tolist() == [1, -1, -1]
    assert labels["coarse_face"].tolist() == [0, 0, 0] and labels["fine_face"].tolist() == [[0.0] * 3] * 3
    for task in ORDINAL_TASKS:
        assert labels[task].dtype == torch.float32
    for task in (*CATEGORICAL_TASKS, "coarse_face"):
        assert labels[task].dtype == torch.int64


def test_the_losses_of_both_methods_take_the_batches(records):
    data = CameraFaces(records, PROCESSOR)
    batch = collate_faces([data[i] for i in range(12)])
    for terms in (
        ordinal_terms(torch.randn(12, 5), batch["labels"]),
        blades_terms(torch.randn(12, 50), batch["labels"]),
    ):
        assert all(math.isfinite(float(term)) for term in terms.values())
        assert float(terms["iso"]) > 0


def test_without_manipulations_pixels_are_untouched(records):
    data = CameraFaces(records, PROCESSOR, manipulations=None)
    for i in (0, 5):
        face, name = data.face(i)
        assert name == "photograph" and np.array_equal(face, np.asarray(Image.open(records[i].image)))
        assert torch.equal(data[i]["pixel_values"], PROCESSOR(records[i].image)["pixel_values"][0])


def everything(data):
    faces = [data.face(i) for i in range(len(data))]
    return [name for _, name in faces], np.stack([face for face, _ in faces])


def test_an_item_depends_on_seed_epoch_and_index_only(records):
    data = CameraFaces(records, PROCESSOR, seed=3)
    names, faces = everything(data)
    again_names, again = everything(CameraFaces(records, PROCESSOR, seed=3))
    assert names == again_names and np.array_equal(faces, again)
    # In another order, and through an index from the end.
    assert np.array_equal(data.face(7)[0], faces[7]) and np.array_equal(data.face(-1)[0], faces[-1])
    other_epoch = CameraFaces(records, PROCESSOR, seed=3)
    other_epoch.set_epoch(1)
    assert everything(other_epoch)[0] != names
    other_epoch.set_epoch(0)
    assert everything(other_epoch)[0] == names
    assert everything(CameraFaces(records, PROCESSOR, seed=4))[0] != names


def test_workers_see_the_epoch_and_change_nothing(records):
    data = CameraFaces(records, PROCESSOR)
    loader = DataLoader(data, batch_size=4, num_workers=2, collate_fn=collate_faces, persistent_workers=True)

    def epoch(number):
        data.set_epoch(number)
        return torch.cat([batch["pixel_values"] for batch in loader])

    first, second = epoch(0), epoch(1)
    assert not torch.equal(first, second)
    for number, seen in ((0, first), (1, second)):
        data.set_epoch(number)
        assert torch.equal(torch.stack([data[i]["pixel_values"] for i in range(len(data))]), seen)


def test_labels_follow_the_edit_that_was_made(records):
    only = {name: CameraFaces(records, PROCESSOR, manipulations={name: 1.0}) for name in ("mouth_rotated", "warp")}
    mouth, warped = only["mouth_rotated"][0]["labels"], only["warp"][0]["labels"]
    assert mouth["coarse_face"] == 1 and mouth["fine_face"].tolist() == [1, 0, 0]
    assert warped["coarse_face"] == 1 and warped["fine_face"].tolist() == [1, 1, 1]
    assert mouth["iso"] == 200 and mouth["make"] == 3  # the settings of the source stay
    # No landmarks: the edit is the warp, and so are its labels.
    bare = CameraFaces([replace(records[0], landmarks=None)], PROCESSOR, manipulations={"mouth_rotated": 1.0})
    assert bare[0]["labels"]["fine_face"].tolist() == [1, 1, 1]
    two = CameraFaces(records, PROCESSOR, manipulations={"eye_mirrored": 1.0}, regions=2)
    assert two[0]["labels"]["fine_face"].tolist() == [0, 1]


def test_photographs_share_the_resampling_of_edited_pictures(records):
    matched = CameraFaces(records, PROCESSOR, manipulations={"photograph": 1.0})
    plain = CameraFaces(records, PROCESSOR, manipulations={"photograph": 1.0}, match_resampling=False)
    source = np.asarray(Image.open(records[0].image))
    chain = resample(resample(source, 224, 224), 40, 40)
    assert np.array_equal(matched.face(0)[0], chain) and not np.array_equal(chain, source)
    assert np.array_equal(plain.face(0)[0], source)
    # Outside the edited region an edited picture equals the photograph beside it: no cue but the edit itself.
    edited = CameraFaces(records, PROCESSOR, manipulations={"mouth_mirrored": 1.0})
    face, name = edited.face(0)
    assert name == "mouth_mirrored"
    same = (face == chain).all(-1)
    assert same[:20].all() and not same[24:].all()


def test_faces_larger_than_the_work_size(tmp_path):
    path = tmp_path / "large.png"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    for antialias in (False, True):
        processor = FaceImageProcessor(antialias=antialias)
        data = CameraFaces([FaceRecord(str(path))], processor, manipulations={"photograph": 1.0})
        # The work picture is the input itself, so training and scoring shrink alike.
        direct = processor(path)["pixel_values"][0]
        assert (data[0]["pixel_values"] - direct).abs().max() < 0.5 / 255 / 0.26 + 1e-4


def test_boxes_cut_the_face_out_and_move_the_landmarks(tmp_path):
    path = tmp_path / "wide.png"
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    box = (100, 50, 150, 100)
    record = FaceRecord(str(path), box=box, size=(300, 200), landmarks=tuple(map(tuple, average_landmarks(box))))
    data = CameraFaces([record], PROCESSOR, manipulations={"mouth_mirrored": 1.0})
    face, name = data.face(0)
    crop = pixels[43:108, 93:158]
    assert name == "mouth_mirrored" and face.shape == crop.shape
    points = (average_landmarks(box) - (93, 43)) * (224 / 65)
    rng = np.random.default_rng((0, 0, 0))
    draw_manipulation(rng, {"mouth_mirrored": 1.0})
    expected, _ = manipulate(resample(crop, 224, 224), "mouth_mirrored", rng, landmarks=points)
    assert np.array_equal(face, resample(expected, 65, 65))


def test_ready_made_edits_are_used(records, tmp_path):
    path = tmp_path / "warped.png"
    Image.new("RGB", (40, 40), (9, 9, 9)).save(path)
    record = replace(records[0], edited={"warp": str(path)})
    face, name = CameraFaces([record], PROCESSOR, manipulations={"warp": 1.0}).face(0)
    assert name == "warp" and (face == 9).all()


def test_wrong_arguments(records):
    with pytest.raises(UsageError, match="empty"):
        CameraFaces([], PROCESSOR)
    with pytest.raises(UsageError, match="did you mean `warp`"):
        CameraFaces(records, PROCESSOR, manipulations={"wrap": 1.0})
    for weights in ({}, {"warp": 0.0}, {"warp": -1.0}, {"warp": math.nan}):
        with pytest.raises(UsageError, match="at least one above 0"):
            CameraFaces(records, PROCESSOR, manipulations=weights)
    with pytest.raises(UsageError, match="regions"):
        CameraFaces(records, PROCESSOR, regions=4)
    with pytest.raises(ImageError, match="gone.png"):
        CameraFaces([FaceRecord("gone.png")], PROCESSOR)[0]


# --- landmarks -------------------------------------------------------------------------------------------------------


def test_the_average_face_is_one():
    points = average_landmarks((0, 0, 100, 100))
    assert points.shape == (68, 2) and points.min() >= 0 and points.max() <= 100
    mirrored = points * (-1, 1) + (100, 0)
    for a, b in ((0, 16), (8, 8), (17, 26), (36, 45), (39, 42), (31, 35), (48, 54), (51, 51), (60, 64)):
        assert points[a] == pytest.approx(mirrored[b])
    eyes, nose, mouth, chin = points[36:48, 1].mean(), points[33, 1], points[48:68, 1].mean(), points[8, 1]
    assert points[17:27, 1].mean() < eyes < nose < mouth < chin
    assert points[36, 0] < points[39, 0] < points[42, 0] < points[45, 0]
    moved = average_landmarks((10, 20, 60, 120))
    assert moved == pytest.approx(points * (0.5, 1.0) + (10, 20))


def test_landmark_files(tmp_path, records):
    points = average_landmarks((20, 20, 200, 200))
    path = tmp_path / "0.npy"
    np.save(path, np.stack([points, points + 5]))
    assert read_landmarks(path, (112, 448)) == pytest.approx(points * (0.5, 2.0))
    assert read_landmarks(path, (112, 448), reference=None) == pytest.approx(points)
    found = with_landmark_files([replace(r, landmarks=None) for r in records], tmp_path)
    assert np.asarray(found[0].landmarks) == pytest.approx(points * (40 / 224), abs=0.01)
    assert found[1].landmarks is None


def test_landmark_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.npy"
    with pytest.raises(MissingRequirementError, match="does not exist"):
        read_landmarks(path, (10, 10))
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DataError, match="array of numbers"):  # never unpickled
        read_landmarks(path, (10, 10))
    for wrong in (np.zeros((68, 3)), np.zeros((0, 68, 2)), np.full((68, 2), np.nan), np.zeros((68, 2), complex)):
        np.save(path, wrong)
        with pytest.raises(DataError, match="68, 2"):
            read_landmarks(path, (10, 10))
    path.write_bytes(b"")
    with pytest.raises(DataError):
        read_landmarks(path, (10, 10))


class OneFace:
    def detect(self, image):
        height, width = image.shape[:2]
        return [] if image.max() == 0 else [Face((1, 2, width - 1, height - 2), average_landmarks((0, 0, 9, 9)))]


def test_annotate_takes_any_detector(records, tmp_path):
    black = tmp_path / "black.png"
    Image.new("RGB", (30, 30)).save(black)
    boxed = replace(records[1], box=(0, 0, 5, 5))
    kept, dropped = annotate([records[0], boxed, FaceRecord(str(black)), FaceRecord("gone.png")], OneFace())
    assert [record.box for record in kept] == [(1, 2, 39, 38), (0, 0, 5, 5)]
    assert len(kept[0].landmarks) == 68 and kept[1].landmarks == records[1].landmarks
    assert dropped[str(black)] == "no face found" and "no such file" in dropped["gone.png"]


def test_the_cascade_finds_a_face():
    data = pytest.importorskip("skimage.data")
    picture = data.astronaut()
    faces = CascadeDetector(smallest=60).detect(picture)
    left, top, right, bottom = faces[0].box
    # Eyes and mouth of the astronaut, read off the picture.
    assert left < 205 and right > 250 and top < 100 and bottom > 140
    points = faces[0].landmarks
    assert np.abs(points[36:48].mean(0) - (225, 103)).max() < 20
    assert np.abs(points[48:68].mean(0) - (225, 145)).max() < 20
    assert CascadeDetector().detect(np.zeros((20, 20, 3), np.uint8)) == []
    assert CascadeDetector(smallest=60).detect(np.zeros((100, 100, 3), np.uint8)) == []


def test_average_landmarks_of_crops(records):
    points = np.asarray(records[0].landmarks)
    assert points == pytest.approx(average_landmarks(central_box((40, 40))), abs=0.01)
    again = with_average_landmarks([replace(records[0], landmarks=tuple(map(tuple, points + 1)))])
    assert np.asarray(again[0].landmarks) == pytest.approx(points + 1)
