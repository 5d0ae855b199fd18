"""`thurl deepfake predict` and `crop` on videos and whole pictures, and lists of videos."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from thurl.cli import app
from thurl.errors import DataError
from thurl.forensics.deepfake.explanations import explain_energies
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.manifest import read_manifest
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.deepfake.tiny import tiny_config
from thurl.forensics.deepfake.video_lists import read_celebdf_list, read_dfdc_list
from thurl.forensics.deepfake.video_verdicts import explain_frames
from thurl.forensics.processing import FaceImageProcessor


GRAPH = load_graph("ffpp")


def thurl(*arguments, code=0):
    found = CliRunner().invoke(app, ["deepfake", *map(str, arguments)])
    assert found.exit_code == code, (found.output, found.stderr, found.exception)
    return found


def write_video(path, frames):
    av = pytest.importorskip("av")
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "model"
    DeepFakeModel(tiny_config(image_size=32, patch_size=16, hidden=8, layers=1)).save_pretrained(folder)
    FaceImageProcessor(size=32).save_pretrained(folder)
    return folder


def test_predict_judges_videos_by_the_mean_of_their_frames(tmp_path, model):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", 9)
    write_video(videos / "short.mp4", 3)
    (videos / "broken.mp4").write_bytes(b"nothing")
    found = thurl("predict", videos, "--model", model, "--frames", 4, "--json", "--workers", 0)
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    first = [row for row in rows if row["image"].endswith("a.mp4")]
    assert [row["frame"] for row in first[:-1]] == [0, 2, 5, 8] and first[-1]["frames"] == 4
    assert first[-1]["p_fake"] == pytest.approx(np.mean([row["p_fake"] for row in first[:-1]]))
    GRAPH.check(first[-1]["most_probable_state"])
    of_videos = {row["image"].rsplit("/", 1)[-1]: row for row in rows if "frame" not in row}
    assert "3 usable frames; a verdict needs 4" in of_videos["short.mp4"]["error"]
    assert "broken one" in of_videos["broken.mp4"]["error"] and "p_fake" not in of_videos["broken.mp4"]
    assert "p_fake" not in of_videos["short.mp4"] and "1 of 3 pictures and videos judged" in found.stderr


def test_predict_says_what_videos_need(tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # importing it fails
    found = thurl("predict", tmp_path / "a.mp4", "--model", model, code=3)
    assert "pip install thurl[video]" in found.stderr


def test_a_video_is_explained_by_the_mean_of_its_frames_distributions():
    energies = torch.randn(5, 10, generator=torch.Generator().manual_seed(0)) * 4
    whole = explain_frames(GRAPH, energies)
    each = explain_energies(GRAPH, energies)
    for name, value in whole.regions.items():
        assert value == pytest.approx(np.mean([one.regions[name] for one in each]))
    assert explain_frames(GRAPH, energies[:1]).state == each[0].state


def test_crop_writes_faces_once_and_names_bad_boxes(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (80, 100, 3), np.uint8)
    for name in ("a", "b"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,left,top,right,bottom\na.png,20,10,60,50\nb.png,500,500,540,540\n")
    found = thurl("crop", boxes, "--output", tmp_path / "faces")
    items = read_manifest(tmp_path / "faces" / "manifest.jsonl", GRAPH)
    with Image.open(items[0].path) as face:
        assert face.size == (52, 52) and len(items) == 1 and items[0].fake == -1
        assert (np.asarray(face) == pixels[4:56, 14:66]).all()
    assert "b.png" in found.stderr and "lies outside the picture of 100x80" in found.stderr
    assert "is not empty" in thurl("crop", boxes, "--output", tmp_path / "faces", code=2).stderr
    boxes.write_text("image,left,top,right,bottom\na.png,60,10,20,50\n")
    assert "row 2" in thurl("crop", boxes, "--output", tmp_path / "more", code=1).stderr
    assert not (tmp_path / "more").exists()


def test_crop_cuts_videos_of_a_manifest(tmp_path):
    write_video(tmp_path / "id1_0007.mp4", 5)
    (tmp_path / "list.txt").write_text("1 id1_0007.mp4\n")
    thurl("import", tmp_path / "list.txt", "--format", "celebdf", "--output", tmp_path / "videos.jsonl")
    rows = [json.loads(line) | {"box": [8, 8, 48, 48]} for line in (tmp_path / "videos.jsonl").open()]
    (tmp_path / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    thurl("crop", tmp_path / "videos.jsonl", "--manifest", "--output", tmp_path / "faces", "--frames", 2)
    items = read_manifest(tmp_path / "faces" / "manifest.jsonl", GRAPH)
    assert [(item.fake, item.video, item.frame) for item in items] == [(0, "id1_0007", 0), (0, "id1_0007", 4)]
    # Frames lie in a temporary folder, whose name would say nothing.
    (tmp_path / "videos.jsonl").write_text(json.dumps(rows[0] | {"box": [500, 500, 540, 540]}) + "\n")
    again = ("crop", tmp_path / "videos.jsonl", "--manifest", "--frames", 2, "--output", tmp_path / "none")
    said = thurl(*again, code=1).stderr
    assert "id1_0007, frame 0" in said and "frames/000000" not in said


def test_celebdf_list_has_one_for_real(tmp_path):
    path = tmp_path / "List_of_testing_videos.txt"
    path.write_text("1 YouTube-real/00170.mp4\n1 Celeb-real/id1_0007.mp4\n0 Celeb-synthesis/id1_id0_0007.mp4\n")
    items = read_celebdf_list(path, GRAPH)
    assert [item.fake for item in items] == [0, 0, 1] and items[2].original == "id1_0007"
    assert items[2].identities == ("id1", "id0") and {item.split for item in items} == {"test"}
    path.write_text("0 Celeb-real/id1_0007.mp4\n2 x.mp4\n1 a/x.mp4\n1 b/x.mp4\n1 ../y.mp4\n")
    with pytest.raises(DataError) as error:
        read_celebdf_list(path, GRAPH)
    for part in ("row 1", "1 is real", "row 2", "already in row 3", "row 5"):
        assert part in str(error.value)


def test_dfdc_lists(tmp_path):
    path = tmp_path / "metadata.json"
    good = {"a.mp4": {"label": "FAKE", "split": "train", "original": "b.mp4"}, "b.mp4": {"label": "REAL"}}
    path.write_text(json.dumps(good))
    items = read_dfdc_list(path, GRAPH)
    assert [(item.fake, item.split, item.original) for item in items] == [(1, "train", "b"), (0, "", "")]
    path.write_text('{"a.mp4": {"label": "fake"}, "b.mp4": 3, "c.mp4": {"label": "REAL"}, "c.mp4": {"label": "REAL"}}')
    with pytest.raises(DataError, match=r"'fake'(.|\n)*b.mp4(.|\n)*already in row 3"):
        read_dfdc_list(path, GRAPH)
    table = tmp_path / "labels.csv"
    table.write_text("filename,label\na.mp4,1\nb.mp4,0\n")
    assert [(item.fake, item.split) for item in read_dfdc_list(table, GRAPH)] == [(1, "test"), (0, "test")]
    table.write_text("filename,label\na.mp4,\n")
    with pytest.raises(DataError, match="row 2"):
        read_dfdc_list(table, GRAPH)
