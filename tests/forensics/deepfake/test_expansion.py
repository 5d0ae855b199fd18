"""The expansion as a data set: labels by the graph, masks that are true, splits kept, the same bytes for one seed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from thurl.errors import DataError, UsageError
from thurl.forensics.deepfake.drawn_faces import write_drawn_faces
from thurl.forensics.deepfake.expansion import expand
from thurl.forensics.deepfake.expansion_plan import ExpansionConfig, region_labels
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.manifest import FaceItem, read_manifest


GRAPH = load_graph("ffpp")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return write_drawn_faces(tmp_path_factory.mktemp("drawn"), GRAPH, people={"train": 3, "test": 3}, frames=2, seed=2)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def provenance(folder):
    return [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]


def test_labels_of_regions_are_those_of_the_official_table():
    assert region_labels(GRAPH, ["eye"]) == tuple(GRAPH.vector("eyes"))
    assert region_labels(GRAPH, ["mouth"]) == tuple(GRAPH.vector("mouth"))
    assert region_labels(GRAPH, ["nose"]) == tuple(GRAPH.vector("nose"))
    both = region_labels(GRAPH, ["eye", "nose"])
    assert both == tuple(map(max, GRAPH.vector("eyes"), GRAPH.vector("nose")))
    # Brows and skin are below identity only.
    assert region_labels(GRAPH, ["eyebrow"])[:6] == (1, 0, 1, 0, 0, 1)
    assert region_labels(load_graph("ffsc"), ["eye"], ("physical", "identity"))[:6] == (1, 0, 0, 0, 1, 0)
    with pytest.raises(UsageError, match="region 'ear' has no node"):
        region_labels(GRAPH, ["ear"])


def test_the_expansion_is_a_data_set_with_true_masks(drawn, tmp_path):
    config = ExpansionConfig(
        edits={"region": 3, "identity": 1, "expression": 1, "physical": 1}, copies=3, combine=0.3, seed=1
    )
    made = expand(drawn, tmp_path / "forged", GRAPH, config)
    items = read_manifest(tmp_path / "forged" / "manifest.jsonl", GRAPH)
    assert len(items) == len(made.items) == sum(made.counts.values()) == 3 * len(drawn)
    assert made.skipped == {}
    real = {(item.video, item.frame): item for item in drawn}
    lines = provenance(tmp_path / "forged")
    assert len(lines) == len(items)
    assert {line["edit"] for line in lines} == {"region", "identity", "expression", "physical"}
    for item, line in zip(items, lines, strict=True):
        GRAPH.check(item.labels)
        source = real[item.original, item.frame]
        assert item.fake == 1 and item.split == source.split and item.manipulation.startswith("expanded-")
        assert "not published" in line["procedure"] and line["change_inside"] >= 2 and line["change_outside"] == 0
        assert (tmp_path / "forged" / line["path"]).samefile(item.path)
        before, after, mask = pixels(source.path), pixels(item.path), pixels(item.mask)
        assert mask.shape == before.shape[:2] and mask.max() > 128
        assert not (before != after).any(-1)[mask == 0].any()
        if line["edit"] == "region":
            assert item.labels == region_labels(GRAPH, line["regions"])
        if line["edit"] == "identity":
            assert item.labels == tuple(GRAPH.vector("FaceSwap"))
        if line["donor_kind"] == "other":
            # The donor is another person of the same split.
            assert line["donor"]["video"] != item.original
            assert len(item.identities) == 2
            assert {real[line["donor"]["video"], 0].split} == {item.split}


def test_one_seed_gives_the_same_bytes_in_any_order_and_another_seed_others(drawn, tmp_path):
    def bytes_of(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}

    config = ExpansionConfig(copies=2)
    state = np.random.get_state()[1].copy()
    for name, items, chosen in (
        ("a", drawn, config),
        ("b", [*drawn[6:], *drawn[:6]], config),
        ("c", drawn, replace(config, seed=1)),
    ):
        expand(items, tmp_path / name, GRAPH, chosen)
    assert (np.random.get_state()[1] == state).all()
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert bytes_of(tmp_path / "a") != bytes_of(tmp_path / "c")


def fakes_of(items, folder):
    """Aligned fakes of every video: brighter copies."""
    folder.mkdir()
    found = []
    for place, item in enumerate(items):
        path = folder / f"{place}.png"
        Image.fromarray(np.clip(pixels(item.path).astype(int) + (40, -30, 0), 0, 255).astype(np.uint8)).save(path)
        labels, source = tuple(GRAPH.vector("Deepfakes")), "100" if item.split == "test" else "101"
        found.append(
            FaceItem(str(path), labels, f"{item.video}_{source}", item.frame, item.dataset, item.split, "Deepfakes",
                     (item.video, source), item.video)
        )  # fmt: skip
    return found


def test_aligned_fakes_donate_their_frame(drawn, tmp_path):
    config = ExpansionConfig(donors={"aligned": 1}, colour=(0, 0))
    made = expand([*drawn, *fakes_of(drawn, tmp_path / "fakes")], tmp_path / "forged", GRAPH, config)
    lines = provenance(tmp_path / "forged")
    assert len(made.items) == len(drawn)
    for item, line in zip(made.items, lines, strict=True):
        assert line["donor"]["frame"] == item.frame and line["donor"]["video"].startswith(item.original + "_")
        assert set(item.identities) == {item.original, line["donor"]["video"].split("_")[1]}


def test_what_cannot_be_made_is_named(drawn, tmp_path):
    config = ExpansionConfig(donors={"aligned": 1, "other": 1})
    strangers = [replace(item, identities=()) for item in drawn]
    with pytest.raises(DataError, match=r"nothing could be made of 12 real faces: no donor \(aligned, other\)"):
        expand(strangers, tmp_path / "a", GRAPH, config)
    bare = [replace(drawn[0], landmarks=None), *drawn[2:]]
    assert list(expand(bare, tmp_path / "b", GRAPH).skipped.values()) == [f"{drawn[0].path}: no landmarks"]
    with pytest.raises(DataError, match=r"changed by .* grey values inside the mask"):
        expand(drawn, tmp_path / "c", GRAPH, ExpansionConfig(least_change=200, attempts=2))
    with pytest.raises(DataError, match="no real face among 1"):
        expand([replace(drawn[0], labels=tuple(GRAPH.vector("eyes")))], tmp_path / "d", GRAPH)
    with pytest.raises(UsageError, match="not empty"):
        expand(drawn, tmp_path / "b", GRAPH)


def test_frames_of_another_size_are_no_aligned_donors(drawn, tmp_path):
    fakes = fakes_of(drawn, tmp_path / "fakes")
    Image.new("RGB", (40, 48)).save(fakes[0].path)
    made = expand([*drawn, *fakes], tmp_path / "forged", GRAPH, ExpansionConfig(donors={"aligned": 1}))
    assert "40x48 pixels; the real frame it should be aligned with has 48x48" in made.skipped[drawn[0].path]
    # A fake that has only one of the two frames leaves the other out.
    made = expand([*drawn, *fakes[2:3]], tmp_path / "more", GRAPH, ExpansionConfig(donors={"aligned": 1}))
    assert len(made.items) == 1 and "has no such frame" in made.skipped[drawn[3].path]


def test_settings_that_make_no_sense_are_all_named(drawn, tmp_path):
    with pytest.raises(UsageError) as error:
        ExpansionConfig(
            edits={"regoin": 1}, regions={"eye": -1}, donors={}, combine=1, copies=0, dilation=(0.3, 0.1), seed=-1
        )
    text = str(error.value)
    assert len(error.value.problems) == 7 and "did you mean `region`?" in text and "dilation is [0.3, 0.1]" in text
    with pytest.raises(UsageError, match="edit 'physical' needs a node of this name"):
        expand(drawn, tmp_path / "a", load_graph("ffsc"), ExpansionConfig(edits={"physical": 1}))
