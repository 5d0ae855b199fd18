"""Frames, crops, videos and checks: the same frames every time, faces where they should be, bad files by their row."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.crop import face_square
from thurl.forensics.deepfake.checks import check_pictures, check_test_sets
from thurl.forensics.deepfake.crops import aligned_crop, crop_faces, five_points
from thurl.forensics.deepfake.drawn_faces import draw_face, write_drawn_faces
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.manifest import FaceItem, read_manifest
from thurl.forensics.deepfake.sampling import evenly_spaced, sample_frames
from thurl.forensics.deepfake.video import cut_videos, read_frames
from thurl.forensics.faces import Face, average_landmarks, read_landmarks
from thurl.iqa.face_restoration.alignment import TEMPLATE


GRAPH = load_graph("ffpp")
REAL = (0,) * 10


def face(path="a.png", video="v", frame=0, **more):
    return FaceItem(path, more.pop("labels", REAL), video, frame, **more)


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "frames"), [(0, 4), (1, 4), (5, 8), (100, 1), (270, 32), (33, 32), (1000, 64)])
def test_frames_are_those_of_a_truncated_linspace(count, frames):
    found = evenly_spaced(count, frames)
    expected = np.unique(np.linspace(0, count - 1, frames).astype(int)).tolist() if count else []
    assert found == expected and len(found) <= min(count, frames)
    if count > 1 and frames > 1:
        assert found[0] == 0 and found[-1] == count - 1


def test_every_video_is_sampled_alone_by_its_frame_numbers():
    long = [face(f"l{n}.png", "long", n) for n in range(10)]
    short = [face(f"s{n}.png", "short", n) for n in range(3)]
    other = [face(f"o{n}.png", "long", n, manipulation="Deepfakes", labels=(1,) * 10) for n in range(10)]
    mixed = [*long[::-1], *short, *other]
    taken = sample_frames(mixed, 4)
    assert [item.path for item in taken.items] == [
        *(f"l{n}.png" for n in (9, 6, 3, 0)), *(f"s{n}.png" for n in range(3)), *(f"o{n}.png" for n in (0, 3, 6, 9))
    ]  # fmt: skip
    assert taken.videos == 3 and taken.short == {short[0].video_key: 3}
    assert sample_frames(mixed, 4).items == taken.items
    with pytest.raises(UsageError, match="frames is 0"):
        sample_frames(mixed, 0)


# --- crops -----------------------------------------------------------------------------------------------------------


def test_an_aligned_crop_puts_the_five_points_in_their_places():
    drawn = draw_face(4, frame=1, size=120)
    points = five_points(drawn.landmarks)
    crop, matrix = aligned_crop(drawn.pixels, points, size=100, scale=1.3)
    wanted = (TEMPLATE + 112 * 0.15) * 100 / (112 * 1.3)
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    assert crop.shape == (100, 100, 3) and np.abs(moved - wanted).max() < 6
    assert moved[0, 1] == pytest.approx(moved[1, 1], abs=2.5)
    # The pupils are still the dark places.
    x, y = np.rint(moved[0]).astype(int)
    assert crop[y - 2 : y + 3, x - 2 : x + 3].sum(-1).min() < 120
    assert (five_points(points) == points).all()


class Detector:
    def __init__(self, *boxes):
        self.boxes = list(boxes)

    def detect(self, image):
        box = self.boxes.pop(0)
        return [] if box is None else [Face(box, average_landmarks(box))]


def test_faces_are_cut_out_by_landmarks_boxes_or_a_detector(tmp_path):
    items = write_drawn_faces(tmp_path / "drawn", GRAPH, people={"test": 1}, frames=5, size=96)
    mask = tmp_path / "mask.png"
    Image.fromarray(np.full((96, 96), 255, np.uint8)).save(mask)
    bare = [replace(item, landmarks=None) for item in items]
    given = [
        replace(items[0], mask=str(mask)), replace(bare[1], box=(20, 20, 60, 60), mask=str(mask)), bare[2], bare[3],
        replace(bare[4], path=str(tmp_path / "none.png")),
    ]  # fmt: skip
    cut = crop_faces(given, tmp_path / "crops", GRAPH, size=64, detector=Detector((10, 10, 70, 70), None))
    assert list(cut.dropped) == [bare[3].path, given[4].path]
    assert "the detector finds no face" in cut.dropped[bare[3].path] and "no such file" in cut.dropped[given[4].path]
    read = read_manifest(tmp_path / "crops" / "manifest.jsonl", GRAPH)
    assert [(i.frame, i.video, i.box) for i in read] == [(0, "000", None), (1, "000", None), (2, "000", None)]
    sizes = [Image.open(item.path).size for item in read]
    left, top, right, bottom = face_square((20, 20, 60, 60), (96, 96))
    assert sizes[:2] == [(64, 64), (right - left, bottom - top)] == [Image.open(i.mask).size for i in read[:2]]
    points = read_landmarks(read[0].landmarks, (64, 64), reference=None)
    assert points.shape == (68, 2) and (points > 0).all() and (points < 64).all()
    x, y = np.rint(points[60:68].mean(0)).astype(int)
    pixels = np.asarray(Image.open(read[0].path)).astype(int)
    assert pixels[y, x].sum() < pixels[int(points[1, 1]), int(points[33, 0])].sum()
    with pytest.raises(DataError, match="no face in 1 frames; the first: .*no landmarks and no box"):
        crop_faces(bare[:1], tmp_path / "more", GRAPH)


# --- videos ----------------------------------------------------------------------------------------------------------


def test_without_pyav_videos_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # importing it fails
    with pytest.raises(MissingRequirementError, match=r"pip install thurl\[video\]"):
        cut_videos([face("a.mp4")], tmp_path / "frames")
    with pytest.raises(MissingRequirementError, match="PyAV"):
        list(read_frames("a.mp4"))


@pytest.fixture
def movie(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip 1.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_of_a_video_file(movie, tmp_path):
    frames = dict(read_frames(movie, 4))
    assert list(frames) == [0, 3, 7, 11]
    assert all(abs(pixels.mean() - 20 * number) < 4 for number, pixels in frames.items())
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(movie.read_bytes()[:300])
    items = [face(str(movie), "", None, split="test"), face(str(broken)), face("none.mp4")]
    cut, dropped = cut_videos(items, tmp_path / "frames", frames=3)
    assert [(i.video, i.frame, i.split) for i in cut] == [
        ("clip 1", 0, "test"),
        ("clip 1", 5, "test"),
        ("clip 1", 11, "test"),
    ]
    assert "broken one" in dropped[str(broken)] and "does not exist" in dropped["none.mp4"]
    with pytest.raises(DataError, match="no frame in 1 videos"):
        cut_videos(items[2:], tmp_path / "more")


# --- checks ----------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_named_by_row(tmp_path):
    def saved(name, array):
        Image.fromarray(np.asarray(array, np.uint8)).save(tmp_path / name)
        return str(tmp_path / name)

    fine = draw_face(0).pixels
    good = saved("good.png", fine)
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    np.save(tmp_path / "far.npy", np.full((68, 2), 900.0))
    np.save(tmp_path / "odd.npy", np.zeros((7, 2)))
    items = [
        face(good),
        face(str(tmp_path / "none.png")),
        face(str(tmp_path / "cut.png")),
        face(saved("tiny.png", fine[:20])),
        face(saved("flat.png", np.full((48, 48, 3), 7))),
        face(good, box=(100, 0, 120, 20)),
        face(good, box=(0, 0, 10, 40)),
        face(good, mask=saved("mask.png", fine[:40, :, 0])),
        face(good, landmarks=str(tmp_path / "far.npy")),
        face(good, landmarks=str(tmp_path / "odd.npy")),
    ]
    items = [replace(item, row=row, source="list") for row, item in enumerate(items, start=1)]
    check_pictures(items[:1])
    with pytest.raises(DataError) as error:
        check_pictures(items)
    lines = str(error.value).split("\n")
    for row, expected in enumerate(
        ("no such file", "truncated or corrupt", "48x20 pixels; 32 on each", "one colour only", "outside the picture",
         "11x41 pixels", "48x40 pixels, but the picture has 48x48", "most landmarks lie outside", "holds (7, 2)"),
        start=2,
    ):  # fmt: skip
        assert any(f"row {row}:" in line and expected in line for line in lines), (row, expected, lines)
    check_pictures(items[3:4], smallest=20)


def test_a_test_set_of_one_class_is_named_with_its_rows():
    fake = (1,) + (-1,) * 9
    items = [
        face("a", labels=REAL, dataset="A", row=1), face("b", labels=fake, dataset="A", row=2),
        face("c", labels=fake, dataset="B", row=3, source="l"), face("d", labels=fake, dataset="B", row=9, source="l"),
        face("e", labels=(-1,) * 10, dataset="C"),
    ]  # fmt: skip
    check_test_sets(items[:2])
    with pytest.raises(DataError) as error:
        check_test_sets(items)
    assert str(error.value).split("\n") == [
        "test set 'B' (l rows 3 to 9) has fake faces only; both kinds are needed",
        "test set 'C' has no face known as real or fake; both kinds are needed",
    ]
