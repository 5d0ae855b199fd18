"""Other people's lists: DeepfakeBench files there and back, SJEDD lists, FaceForensics++ folders, CSV."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.deepfake.deepfakebench import read_deepfakebench, write_deepfakebench
from thurl.forensics.deepfake.ffpp import read_ffpp_folders
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.importers import read_face_csv, read_sjedd_list
from thurl.forensics.deepfake.manifest import FaceItem
from thurl.forensics.deepfake.releases import people_in


GRAPH = load_graph("ffpp")


def video(label, *frames, **more):
    return {"label": label, "frames": list(frames), **more}


def bench(tmp_path, content, name="FF"):
    path = tmp_path / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


FFPP = {
    "FaceForensics++": {
        "FF-real": {
            "train": {"c23": {"001": video("FF-real", "r/001/000.png")}, "c40": {}},
            "test": {"c23": {"000": video("FF-real", "r\\000\\010.png", "r\\000\\009.png")}},
        },
        "FF-DF": {
            "train": {},
            "test": {
                "c23": {"000_003": video("FF-DF", "d/000_003/000.png", masks=["m/000_003/000.png"])},
                "c40": {"000_003": video("FF-DF", "d40/000_003/000.png")},
            },
        },
        "FF-NT": {"test": {"c23": {"000_003": video("FF-NT", "n/000_003/000.png")}}},
    }
}


def test_deepfakebench_videos_of_one_name_stay_apart(tmp_path):
    items = read_deepfakebench(bench(tmp_path, FFPP), GRAPH)
    assert [(i.manipulation, i.video, i.frame, i.split) for i in items] == [
        ("real", "001", 0, "train"),
        ("real", "000", 9, "test"),
        ("real", "000", 10, "test"),
        ("Deepfakes", "000_003", 0, "test"),
        ("NeuralTextures", "000_003", 0, "test"),
    ]
    assert len({item.video_key for item in items}) == 4
    real, swapped = items[1], items[3]
    assert real.path == str(tmp_path / "r/000/009.png") and real.identities == ("000",) and real.labels == (0,) * 10
    assert swapped.labels == tuple(GRAPH.vector("Deepfakes")) and swapped.original == "000"
    assert swapped.identities == ("000", "003") and swapped.mask == str(tmp_path / "m/000_003/000.png")
    only = {"FF-DF": {"FF-DF": {"test": FFPP["FaceForensics++"]["FF-DF"]["test"]}}}
    (other,) = read_deepfakebench(bench(tmp_path, only), GRAPH, splits=["test"], compression="c40")
    assert other.path == str(tmp_path / "d40/000_003/000.png")


def test_deepfakebench_files_come_back(tmp_path):
    items = read_deepfakebench(bench(tmp_path, FFPP), GRAPH)
    labels = write_deepfakebench(tmp_path / "out", items, images=tmp_path)
    assert labels == {"FF-real": 0, "FF-DF": 1, "FF-NT": 1}
    path = tmp_path / "out" / "FaceForensics++.json"
    again = read_deepfakebench(path, GRAPH, images=tmp_path)
    assert [replace(i, row=0, source="") for i in again] == [replace(i, row=0, source="") for i in items]
    content = json.loads(path.read_text())["FaceForensics++"]
    # DeepfakeBench looks into every split of every label, and takes paths with a leading point as they are.
    assert all(set(splits) == {"train", "val", "test"} for splits in content.values())
    assert content["FF-DF"]["test"]["c23"]["000_003"]["frames"] == ["./d/000_003/000.png"]


def test_deepfakebench_files_of_other_data_sets_and_landmarks(tmp_path):
    (tmp_path / "frames/id0_id1_0002").mkdir(parents=True)
    (tmp_path / "landmarks/id0_id1_0002").mkdir(parents=True)
    np.save(tmp_path / "landmarks/id0_id1_0002/005.npy", np.zeros((81, 2)))
    frames = ["frames/id0_id1_0002/005.png", "frames/id0_id1_0002/006.png"]
    content = {
        "Celeb-DF-v2": {
            "CelebDFv2_real": {"train": {"id0_0002": video("CelebDFv2_real", "r/1.png")}, "test": {}},
            "CelebDFv2_fake": {"test": {"id0_id1_0002": video("CelebDFv2_fake", *frames)}},
        },
        "mine": {"edited": {"val": {"x": video("edited", "x/3.png")}}},
    }
    items = read_deepfakebench(bench(tmp_path, content), GRAPH, labels={"edited": 1}, landmarks=True)
    assert [item.fake for item in items] == [0, 1, 1, 1]
    assert items[1].labels == (1, *[-1] * 9) and items[1].original == "id0_0002"
    assert items[1].landmarks.endswith("005.npy") and items[2].landmarks is None
    assert write_deepfakebench(tmp_path / "out", items, images=tmp_path)["edited"] == 1
    again = read_deepfakebench(tmp_path / "out" / "mine.json", GRAPH, images=tmp_path, labels={"edited": 1})
    assert again[0].manipulation == "edited" and not again[0].landmarks


def test_bad_deepfakebench_files_are_named(tmp_path):
    content = {
        "DFDC": {
            "DFDC_Fake": {
                "test": {
                    "a": video("DFDC_Fake", "a/one.png"),
                    "b": video("DFDC_Fake"),
                    "c": video("FF-fake", "c/1.png"),
                    "d": video("DFDC_Real", "d/1.png"),
                    "e": video("DFDC_Fake", "e/1.png", "e2/1.png"),
                    "f": video("DFDC_Fake", "../1.png"),
                },
                "val": {"e": video("DFDC_Fake", "e/2.png")},
            }
        }
    }
    with pytest.raises(DataError) as error:
        read_deepfakebench(bench(tmp_path, content), GRAPH)
    text = str(error.value)
    for expected in (
        "row 1: DFDC/DFDC_Fake/test/a: frame 'a/one.png' is not called by a whole number",
        "row 2: DFDC/DFDC_Fake/test/b: no frames",
        "row 3: DFDC/DFDC_Fake/test/c: label 'FF-fake' is unknown",
        "row 4: DFDC/DFDC_Fake/test/d: label 'DFDC_Real' is 0, but it lies under 'DFDC_Fake', which is 1",
        "row 5: frame 1 of video 'e' of DFDC is already in row 5",
        "row 6: DFDC/DFDC_Fake/test/f: image '../1.png' lies outside",
        "row 7: video 'e' of DFDC is in 'val' here and in 'test' in row 5",
    ):
        assert expected in text, expected
    with pytest.raises(DataError, match="001 is in one object twice; give two videos two names"):
        read_deepfakebench(bench(tmp_path, '{"a": {"FF-DF": {"test": {"001": {}, "001": {}}}}}'), GRAPH)
    with pytest.raises(DataError, match="has no compression raw, but c23, c40"):
        read_deepfakebench(bench(tmp_path, FFPP), GRAPH, compression="raw")
    with pytest.raises(UsageError, match="split 'dev' is unknown"):
        read_deepfakebench(bench(tmp_path, FFPP), GRAPH, splits=["dev"])
    for broken in ("[1]", "{", '{"a": [1]}', '{"a": {"FF-DF": {"test": {"v": 3}}}}'):
        with pytest.raises(DataError):
            read_deepfakebench(bench(tmp_path, broken), GRAPH)


def test_faces_that_deepfakebench_cannot_hold_are_named(tmp_path):
    fine = FaceItem(str(tmp_path / "a/1.png"), (1,) * 1 + (-1,) * 9, "a", 1, "D", "test", "Deepfakes")
    wrong = [
        replace(fine, split="outer"),
        replace(fine, path=str(tmp_path / "x.png")),
        replace(fine, labels=(0,) * 10),
        replace(fine, labels=(-1,) * 10),
        replace(fine, path=str(tmp_path.parent / "1.png")),
    ]
    with pytest.raises(DataError) as error:
        write_deepfakebench(tmp_path / "out", [fine, *wrong], images=tmp_path)
    reasons = ("split 'outer'", "not called by a whole", "'FF-DF' is 1, but this face is 0", "not known", "outside")
    lines = str(error.value).split("\n")
    for row, expected in enumerate(reasons, start=2):
        assert any(f"row {row}:" in line and expected in line for line in lines), expected
    assert not (tmp_path / "out").exists()


def test_people_are_read_out_of_names():
    assert people_in("000_003") == (("000", "003"), "000") and people_in("071") == (("071",), "")
    assert people_in("id0_id16_0003") == (("id0", "id16"), "id0_0003") and people_in("id3_0007") == (("id3",), "")
    assert people_in("01_02__exit_phone_room__YVGY8LOK") == (("01", "02"), "01__exit_phone_room")
    assert people_in("01__exit_phone_room") == (("01",), "") and people_in("aagfhgtpmv") == ((), "")


def test_sjedd_lists(tmp_path):
    lines = [
        "faces/original/001/0003.png 1 1000000000",
        "faces/Deepfakes/000 with space/0001.png 0101011111",
        "faces/FaceSwap/000_003/0001.png 0101011111",
        "faces/NeuralTextures/000_003/f_12.png -1   0110001100",
        "faces/eyes/000/0001.png 0100110000",
        "faces/mouth/000/0001.png 0100101100",
        "faces/nose/000/0001.png 0100100010",
        "faces/some/000/0001.png 0122222212",
    ]
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines))
    items = read_sjedd_list(path, GRAPH, dataset="FF", split="train")
    expected = ["real", "Deepfakes", "FaceSwap", "NeuralTextures", "eyes", "mouth", "nose"]
    assert [item.manipulation for item in items[:-1]] == expected
    assert [item.labels for item in items[:-1]] == [tuple(GRAPH.vector(name)) for name in expected]
    assert items[1].path == str(tmp_path / "faces/Deepfakes/000 with space/0001.png")
    assert (items[3].video, items[3].frame, items[3].original) == ("000_003", 12, "000")
    # Fake, and the nose altered: swapped or the nose alone, so that only what both have is known.
    known = dict(zip(GRAPH.names, items[-1].labels, strict=True))
    assert known == {"fake": 1, "expression": 0, "identity": -1, "physical": 1, "eye": -1, "eyebrow": -1, "lip": -1,
                     "mouth": -1, "nose": 1, "skin": -1}  # fmt: skip
    path.write_text("a.png 1100000000\nb.png 01010\nc.png 0101011111\nc.png 0101011111\n")
    with pytest.raises(DataError) as error:
        read_sjedd_list(path, GRAPH)
    assert "row 1: key 1100000000 fits none" in str(error.value)
    assert "row 2: not a path" in str(error.value) and "c.png is already in row 3" in str(error.value)
    with pytest.raises(UsageError, match="'Deepfakes' is not in the label graph ffsc"):
        read_sjedd_list(path, load_graph("ffsc"))


def test_csv_files(tmp_path):
    path = tmp_path / "faces.csv"
    path.write_text(
        "path;fake;nose;manipulation;video;frame;dataset;split;identities;left;top;right;bottom\n"
        "a.png;0;;;v1;0;D;test;000;;;;\n"
        "b.png;1;1;mine;v2;3;D;test;000; 1;2;30.5;40\n"
        "c.png;;;Face2Face;v3;;D;test;;;;;\n"
    )
    real, nose, known = read_face_csv(path, GRAPH)
    assert real.labels == (0,) * 10 and nose.labels[8] == 1 and nose.labels[4] == -1
    assert nose.box == (1.0, 2.0, 30.5, 40.0) and nose.frame == 3 and nose.row == 3
    assert known.labels == tuple(GRAPH.vector("Face2Face")) and known.frame is None
    path.write_text("path,fake,nose,frame\na.png,0,1,\nb.png,,,\nc.png,yes,,\nd.png,1,,x\n")
    with pytest.raises(DataError) as error:
        read_face_csv(path, GRAPH)
    for expected in (
        "row 2: illegal labels",
        "row 3: no label is filled",
        "row 4: fake is 'yes'",
        "row 5: frame is 'x'",
    ):
        assert expected in str(error.value)
    path.write_text("path,faek\na.png,1\n")
    with pytest.raises(DataError, match="column 'faek' is unknown; did you mean `fake`"):
        read_face_csv(path, GRAPH)


def test_ffpp_folders(tmp_path):
    def frame(*parts):
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)

    frame("original_sequences/youtube/c23/frames/000/0000.png")
    frame("original_sequences/youtube/c23/frames/003/0000.png")
    for method in ("Deepfakes", "FaceShifter"):
        frame("manipulated_sequences", method, "c23/frames/000_003/0000.png")
        frame("manipulated_sequences", method, "c23/frames/000_003/0010.png")
    frame("manipulated_sequences/Deepfakes/c23/masks/000_003/0010.png")
    for name, pairs in (("train", [["000", "003"]]), ("val", []), ("test", [["007", "132"]])):
        (tmp_path / f"{name}.json").write_text(json.dumps(pairs))
    items = read_ffpp_folders(tmp_path, GRAPH, splits=tmp_path)
    assert [(i.manipulation, i.video, i.frame) for i in items] == [
        ("real", "000", 0),
        ("real", "003", 0),
        ("Deepfakes", "000_003", 0),
        ("Deepfakes", "000_003", 10),
        ("FaceShifter", "000_003", 0),
        ("FaceShifter", "000_003", 10),
    ]
    assert {item.split for item in items} == {"train"} and items[-1].labels == (1, *[-1] * 9)
    assert items[2].mask is None and items[3].mask.endswith("masks/000_003/0010.png")
    frame("original_sequences/youtube/c23/frames/500/0000.png")
    frame("manipulated_sequences/Deepfakes/c23/frames/000/0000.png")
    frame("manipulated_sequences/Deepfakes/c23/frames/003_000/first.png")
    (tmp_path / "original_sequences/youtube/c23/frames/007").mkdir()
    with pytest.raises(DataError) as error:
        read_ffpp_folders(tmp_path, GRAPH, splits=tmp_path)
    for expected in (
        "frames/500: it is in none of the split files",
        "Deepfakes/c23/frames/000: a fake video is called like 000_003",
        "frames/007: no frames in it",
        "first.png does not end with the number",
    ):
        assert expected in str(error.value)
    with pytest.raises(MissingRequirementError, match="no frames in"):
        read_ffpp_folders(tmp_path, GRAPH, compression="c40")
    (tmp_path / "val.json").write_text('[["000", "001"]]')
    with pytest.raises(DataError, match="video 000 is in val and in train"):
        read_ffpp_folders(tmp_path, GRAPH, splits=tmp_path)
