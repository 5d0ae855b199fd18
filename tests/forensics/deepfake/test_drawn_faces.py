"""Drawn faces: the same numbers give the same bytes, people differ, landmarks lie on what they name."""

from __future__ import annotations

import numpy as np
import pytest

from thurl.data.images import open_image
from thurl.errors import UsageError
from thurl.forensics.deepfake.drawn_faces import draw_face, write_drawn_faces
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.manifest import read_manifest
from thurl.forensics.faces import read_landmarks


def test_a_face_depends_on_its_numbers_only():
    face = draw_face(3, video=1, frame=2, seed=5)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    again = draw_face(3, video=1, frame=2, seed=5)
    assert face.pixels.shape == (48, 48, 3) and face.pixels.dtype == np.uint8
    assert (face.pixels == again.pixels).all() and (face.landmarks == again.landmarks).all()
    assert (np.random.get_state()[1] == before).all()
    for other in ({"video": 0}, {"frame": 3}, {"seed": 6}):
        changed = draw_face(3, **({"video": 1, "frame": 2, "seed": 5} | other))
        assert (changed.pixels != face.pixels).mean() > 0.5


def test_frames_of_one_person_are_nearer_than_two_people():
    def parts(identity, frame):
        face = draw_face(identity, frame=frame)
        places = np.rint(face.landmarks[[2, 14, 27]]).astype(int)
        return face.pixels[places[:, 1], places[:, 0]].astype(float)

    own = np.mean([np.abs(parts(i, 0) - parts(i, 1)).mean() for i in range(12)])
    others = np.mean([np.abs(parts(i, 0) - parts(i + 1, 1)).mean() for i in range(12)])
    assert own < others / 2


@pytest.mark.parametrize("size", [48, 160])
def test_landmarks_lie_on_the_parts(size):
    for identity in range(8):
        face = draw_face(identity, size=size)
        points, pixels = face.landmarks, face.pixels.astype(float)
        assert points.shape == (68, 2) and points.min() > 0 and points.max() < size - 1

        def at(place, pixels=pixels):
            return pixels[round(float(place[1])), round(float(place[0]))]

        cheek = at((points[2] + points[31]) / 2)
        # The dark middle of the mouth, pupils darker than the cheek, and lips redder than it.
        assert at(points[60:68].mean(0)).sum() < cheek.sum() - 60
        assert min(at(points[36:42].mean(0)).sum(), at(points[42:48].mean(0)).sum()) < cheek.sum() - 60
        lip = (points[57] + points[66]) / 2
        assert at(lip)[0] / at(lip).sum() > cheek[0] / cheek.sum()


def test_numbers_out_of_range_are_named():
    with pytest.raises(UsageError, match="identity is -1.*\n.*size is 8"):
        draw_face(-1, size=8)
    with pytest.raises(UsageError, match="frames 0"):
        write_drawn_faces("unused", load_graph("ffpp"), frames=0)


def test_a_data_set_of_drawn_faces_reads_back(tmp_path):
    graph = load_graph("ffpp")
    people = {"train": 2, "test": 1}
    items = write_drawn_faces(tmp_path, graph, people=people, videos=2, frames=2, seed=4)
    read = read_manifest(tmp_path / "manifest.jsonl", graph)
    assert len(items) == 12 and [i.path for i in read] == [i.path for i in items]
    assert {(i.split, *i.identities) for i in read} == {("train", "000"), ("train", "001"), ("test", "002")}
    assert len({i.video_key for i in read}) == 6
    assert all(i.labels == (0,) * 10 for i in read)
    last = draw_face(2, video=1, frame=1, seed=4)
    assert (np.asarray(open_image(read[-1].path)) == last.pixels).all()
    assert np.allclose(read_landmarks(read[-1].landmarks, (48, 48), reference=None), last.landmarks)
    first = (tmp_path / "manifest.jsonl").read_bytes()
    write_drawn_faces(tmp_path, graph, people=people, videos=2, frames=2, seed=4)
    assert (tmp_path / "manifest.jsonl").read_bytes() == first
