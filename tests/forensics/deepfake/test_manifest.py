"""The manifest: what is written comes back, and every row that cannot be used is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.identity_split import split_by_identity
from thurl.forensics.deepfake.manifest import FaceItem, read_manifest, write_manifest


GRAPH = load_graph("ffpp")
SWAPPED = tuple(GRAPH.vector("Deepfakes"))


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_manifest_comes_back_as_it_was(tmp_path):
    partial = (1, -1, 1, -1, 0, -1, -1, -1, -1, -1)
    items = [
        FaceItem(str(tmp_path / "a/0.png"), (0,) * 10, "000", 0, "FF", "train", "real", ("000",)),
        FaceItem(
            str(tmp_path / "b/7 ü.png"), SWAPPED, "000_003", 7, "FF", "train", "Deepfakes", ("000", "003"), "000",
            str(tmp_path / "m.png"), str(tmp_path / "l.npy"), (1.5, 2.0, 30.0, 40.0),
        ),
        FaceItem(str(tmp_path / "c.png"), partial),
    ]  # fmt: skip
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, items, GRAPH)
    read = read_manifest(path, GRAPH)
    assert [replace(item, row=0, source="") for item in read] == items
    assert [item.row for item in read] == [1, 2, 3] and read[2].where == f"{items[2].path} ({path} row 3)"
    first = path.read_bytes()
    write_manifest(path, read, GRAPH)
    assert path.read_bytes() == first and b"/" + str(tmp_path).encode() not in first
    # From another picture folder, and outside of it.
    write_manifest(tmp_path / "x" / "m.jsonl", items, GRAPH, images=tmp_path)
    assert read_manifest(tmp_path / "x" / "m.jsonl", GRAPH, images=tmp_path)[0].path == items[0].path
    write_manifest(tmp_path / "x" / "m.jsonl", items, GRAPH)
    with pytest.raises(DataError, match="lies outside"):
        read_manifest(tmp_path / "x" / "m.jsonl", GRAPH)
    assert read_manifest(tmp_path / "x" / "m.jsonl", GRAPH, allow_outside=True)[0].path == items[0].path


def test_labels_that_follow_are_filled_in(tmp_path):
    rows = [{"path": "a.png", "labels": {"fake": 0}}, {"path": "b.png", "labels": {"eyebrow": 1, "lip": None}}]
    real, brow = read_manifest(write(tmp_path / "m.jsonl", rows), GRAPH)
    assert real.labels == (0,) * 10
    assert brow.labels == (1, -1, 1, -1, -1, 1, -1, -1, -1, -1)


def test_every_bad_row_is_named(tmp_path):
    rows = [
        {"path": "ok.png", "labels": {"fake": 1}},
        "{",
        {"path": "b.png", "labels": {"fake": 0, "nose": 1}},
        {"path": "c.png", "labels": {"fake": 1, "nosee": 1}},
        {"path": "d.png", "labels": {"fake": 2}},
        {"path": "e.png"},
        {"path": "../f.png", "labels": {"fake": 1}},
        {"path": "ok.png", "labels": {"fake": 1}},
        {"path": "g.png", "labels": {"fake": 1}, "frame": -1},
        {"path": "h.png", "labels": {"fake": 1}, "box": [5, 5, 2, 9]},
        {"path": "i.png", "labels": {"fake": 1}, "vidoe": "x"},
        {"path": "j.png", "labels": {"fake": 1}, "identities": "me"},
    ]
    with pytest.raises(DataError) as error:
        read_manifest(write(tmp_path / "m.jsonl", rows), GRAPH)
    text = str(error.value)
    assert "11 rows cannot be used" in text
    for expected in (
        "row 2: not a JSON object",
        "row 3: illegal labels",
        "row 4: label 'nosee' (str) is no node",
        "row 5: label fake is 2 (int)",
        "row 6: labels is missing",
        "row 7: image '../f.png' lies outside",
        "ok.png is already in row 1",
        "row 9: frame is -1",
        "row 10: box is [5, 5, 2, 9]",
        "row 11: key 'vidoe' is unknown; did you mean `video`?",
        "row 12: identities is 'me'",
    ):
        assert expected in text, expected
    with pytest.raises(MissingRequirementError):
        read_manifest(tmp_path / "none.jsonl", GRAPH)
    with pytest.raises(DataError, match="no face in it"):
        read_manifest(write(tmp_path / "m.jsonl", [""]), GRAPH)


def face(path, video, frame, manipulation="Deepfakes", **more):
    labels = dict(zip(GRAPH.names, GRAPH.vector(manipulation), strict=True))
    row = {"path": path, "labels": labels, "video": video, "frame": frame, "manipulation": manipulation}
    return {**row, "dataset": "FF", "split": "test", **more}


def test_videos_of_one_name_stay_apart_and_mixed_ones_are_named(tmp_path):
    rows = [
        face("a.png", "000_003", 1),
        face("b.png", "000_003", 1, "Face2Face"),
        face("c.png", "000_003", 1, "real"),
        face("d.png", "000_003", 1, dataset="other"),
    ]
    items = read_manifest(write(tmp_path / "m.jsonl", rows), GRAPH)
    assert len({item.video_key for item in items}) == 4
    rows += [
        face("e.png", "000_003", 1),
        face("f.png", "000_003", 2, split="train"),
        face("g.png", "000_003", 3, identities=["someone"]),
    ]
    with pytest.raises(DataError) as error:
        read_manifest(write(tmp_path / "m.jsonl", rows), GRAPH)
    for expected in (
        "row 5: frame 1 of video '000_003' of FF is already in row 1; if these are two videos, give them two names",
        "row 6: video '000_003' of FF is in 'train' here and in 'test' in row 1",
        "row 7: video '000_003' of FF shows someone here and nobody in row 1",
    ):
        assert expected in str(error.value)


def test_no_person_is_in_two_parts():
    def item(name, *people):
        return FaceItem(f"{name}.png", (0,) * 10, name, identities=people)

    # 0 and 1 are in one swap, 1 and 2 in another: the three belong together.
    items = [item("a", "0"), item("b", "0", "1"), item("c", "1", "2"), item("d", "2")]
    items += [item(f"e{place}", str(place)) for place in range(3, 12)] + [item("alone"), item("alone")]
    parts = split_by_identity(items, {"train": 0.7, "val": 0.3}, seed=1)
    people = [{name for item in part for name in item.identities} for part in parts.values()]
    assert not people[0] & people[1] and sum(map(len, parts.values())) == len(items)
    assert all(item.split == name for name, part in parts.items() for item in part)
    where = {item.video: name for name, part in parts.items() for item in part}
    assert len({where[name] for name in "abcd"}) == 1
    again = split_by_identity(items[::-1], {"train": 0.7, "val": 0.3}, seed=1)
    assert {item.video for item in again["val"]} == {item.video for item in parts["val"]}
    with pytest.raises(DataError, match="2 faces form 1 group and 2 parts"):
        split_by_identity([item("a", "0"), item("b", "0")], {"train": 0.5, "val": 0.5})
    with pytest.raises(UsageError):
        split_by_identity(items, {"train": 0.5})
