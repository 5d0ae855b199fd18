"""Files of triplets, DiffIQA and SRIQA-Bench as released, triplets from opinions: what is read and what is refused."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from thurl.data.labels import read_labels
from thurl.data.records import RatedImage
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.iqa.afine.diffiqa import read_diffiqa, read_diffiqa_labels
from thurl.iqa.afine.rated_pairs import drawn_pairs, select_part, with_reference_paths
from thurl.iqa.afine.sources import load_pairs
from thurl.iqa.afine.sriqa import GENERATION, REGRESSION, read_sriqa, read_sriqa_counts
from thurl.iqa.afine.triplets import (
    Triplet,
    compare,
    diffiqa_path,
    read_triplets,
    shuffle_labels,
    triplet_type,
    write_triplets,
)


def picture(path, size=(8, 8), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return str(path)


# --- files of triplets -----------------------------------------------------------------------------------------------


def test_both_layouts_of_a_line_are_read(tmp_path):
    file = tmp_path / "test_PNY.csv"
    file.write_text("a_01.png,b_02.png,b.png,1,1,0\n\nc.png,d.png,d.png,0.5\r\n")
    one, two = read_triplets(file, images="pics", dataset="X")
    assert one == Triplet("pics/a_01.png", "pics/b_02.png", "pics/b.png", 1, 1, 0, "PNY", "b", "X")
    assert (two.g12, two.type, two.dataset) == (0.5, "PNY", "X") and math.isnan(two.g1r) and math.isnan(two.g2r)
    assert read_triplets(file, layout="diffiqa")[0].images == (
        *(str(tmp_path / name) for name in ("01/a_01.png", "02/b_02.png", "Original/b.png")),
    )
    (tmp_path / "train.csv").write_text("a,b,c,0\n")
    assert read_triplets(tmp_path / "train.csv")[0].type == ""


def test_names_of_diffiqa():
    assert diffiqa_path("000006x0y32_04.png") == "04/000006x0y32_04.png"
    assert diffiqa_path("some/folder/a_b_06.png") == "06/a_b_06.png"
    assert diffiqa_path("000006x0y32.png") == "Original/000006x0y32.png"
    assert diffiqa_path("_01.png") == "Original/_01.png"


def test_types_name_the_better_image_first():
    pairs = {("Negative", "Positive"): "PNY", ("Similar", "Positive"): "PSY", ("Similar", "Similar"): "SSY"}
    pairs |= {("Negative", "Y"): "NYY", ("Similar", "Negative"): "SNY", ("Positive", "Y"): "PYY"}
    assert {pair: triplet_type(*pair) for pair in pairs} == pairs


def test_all_bad_lines_are_named_at_once(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("a,b,c,1,1,1\na,b,c,2,1,1\n../x,b,c,1,1,1\n,b,c,1,1,1\na,b,c\na,b,c,x,nan,0.25\n")
    with pytest.raises(DataError) as error:
        read_triplets(file)
    text = str(error.value)
    assert "5 rows cannot be used" in text
    for part in ("row 2: g12 is 2", "row 3: image '../x'", "row 4: image is empty", "row 5: 3 cells", "g1r is 'nan'"):
        assert part in text
    with pytest.raises(DataError, match="row 1: 4 cells; a line is x1,x2,ref,g12,g1r,g2r"):
        (tmp_path / "short.csv").write_text("a,b,c,1\n")
        read_triplets(tmp_path / "short.csv", complete=True)
    with pytest.raises(UsageError, match="layout is 'x'"):
        read_triplets(file, layout="x")
    with pytest.raises(MissingRequirementError):
        read_triplets(tmp_path / "none.csv")


def test_what_is_written_is_read_again(tmp_path, triplets, textures):
    write_triplets(tmp_path / "t.csv", triplets, images=textures / "images")
    again = read_triplets(tmp_path / "t.csv", images=textures / "images")
    assert [(t.images, t.g12, t.g1r, t.g2r) for t in again] == [(t.images, t.g12, t.g1r, t.g2r) for t in triplets]
    with pytest.raises(DataError, match="needs all three"):
        write_triplets(tmp_path / "u.csv", [Triplet("a", "b", "c", 1)], images=".")
    with pytest.raises(DataError, match="g12 is 0.7"):
        Triplet("a", "b", "c", 0.7)


def test_shuffled_labels_depend_on_nothing():
    rows = [Triplet("a", "b", "c", 1, 1, 0), Triplet("a", "b", "c", 0.5, math.nan, 1)] * 500
    shuffled = shuffle_labels(rows, seed=1)
    turned = [[t.g12 for t in shuffle_labels(rows, seed=seed)] for seed in (1, 2)]
    assert [t.g12 for t in shuffled] == turned[0] != turned[1]
    decided = Counter(t.g12 for t in shuffled[::2])
    assert set(decided) == {0.0, 1.0} and abs(decided[1.0] - 250) < 50
    assert all(t.g12 == 0.5 and math.isnan(t.g1r) for t in shuffled[1::2])


# --- DiffIQA ---------------------------------------------------------------------------------------------------------


def write_label(root, annotator, scene, version, label):
    path = root / "labels" / annotator / version / f"{scene}_{version}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"Picture_AI": {"Name": scene, "Label": label}, "picture_Original": {}}))
    return path


def diffiqa(root):
    votes = {"01": "PPN", "02": "SSS", "03": "PSN", "04": "NNS"}
    words = {"P": "Positive", "S": "Similar", "N": "Negative"}
    for version, letters in votes.items():
        for annotator, letter in zip("ABC", letters, strict=True):
            write_label(root, annotator, "s_x1", version, words[letter])
            write_label(root, annotator, "s2", version, "Negative")
        picture(root / "images" / version / f"s_x1_{version}.png")
        picture(root / "images" / version / f"s2_{version}.png")
    for scene in ("s_x1", "s2"):
        picture(root / "images" / "Original" / f"{scene}.png")


def test_diffiqa_is_read_from_its_folders(tmp_path):
    diffiqa(tmp_path)
    labels = read_diffiqa_labels(tmp_path / "labels")
    assert labels["s_x1"]["01"] == ["Positive", "Positive", "Negative"] and list(labels) == ["s2", "s_x1"]
    found = read_diffiqa(tmp_path / "labels", references=["s_x1.png"])
    # 01 Positive, 02 Similar, 04 Negative; 03 is dropped since all three differ.
    assert Counter(t.type for t in found) == Counter(["PSY", "PNY", "SNY", "PYY", "SYY", "NYY"])
    assert {t.scene for t in found} == {"s_x1"}
    pair = next(t for t in found if t.type == "SNY")
    assert (pair.g12, pair.g1r, pair.g2r) == (1, 0.5, 0) and pair.first.endswith("02/s_x1_02.png")
    # A scene of Negatives alone: no order between them, each below the reference.
    assert [t.type for t in read_diffiqa(tmp_path / "labels", references=["s2"])] == ["NYY"] * 4
    test = load_pairs("diffiqa", tmp_path / "labels", images=tmp_path / "images")
    assert len(test.triplets) == 10 and test.name == "DiffIQA"
    with pytest.raises(DataError, match="no label of reference s9"):
        read_diffiqa(tmp_path / "labels", references=["s9"])


def test_bad_label_files_of_diffiqa_are_named_at_once(tmp_path):
    diffiqa(tmp_path)
    write_label(tmp_path, "A", "s2", "01", "Better")
    write_label(tmp_path, "B", "s2", "02", "Similar").write_text("{")
    write_label(tmp_path, "C", "s2", "03", "Similar").write_text("[]")
    write_label(tmp_path, "A", "s3", "01", "Similar")
    write_label(tmp_path, "A", "s2", "05", "Similar").rename(tmp_path / "labels/A/05/s2_06.json")
    with pytest.raises(DataError) as error:
        read_diffiqa_labels(tmp_path / "labels")
    text = str(error.value)
    for part in ("Label is 'Better'", "is no JSON file", "has no Picture_AI.Label", "s3_01", "must end in _05"):
        assert part in text
    with pytest.raises(MissingRequirementError, match="no folder A, B, C"):
        read_diffiqa_labels(tmp_path / "images")


# --- opinions --------------------------------------------------------------------------------------------------------


def rated(count, references=1, dataset="D"):
    return [
        RatedImage(f"d{r}_{i}.png", float(i), dataset=dataset, reference=f"r{r}.png")
        for r in range(references)
        for i in range(count)
    ]


@pytest.mark.parametrize(("images", "pairs"), [(1, 2 * 1), (7, 8 * 3), (25, 26 * 5), (124, 125 * 7)])
def test_n_log_n_ordered_pairs_per_reference(images, pairs):
    found = drawn_pairs(rated(images))
    assert len(found) == pairs
    firsts = Counter(t.first for t in found)
    assert set(firsts.values()) == {pairs // (images + 1)}, "each image meets equally many"
    assert len({(t.first, t.second) for t in found}) == len(found) and all(t.first != t.second for t in found)


def test_drawn_pairs_have_the_labels_of_the_scores():
    records = rated(12)
    records[3] = RatedImage(records[3].image, records[2].mos, dataset="D", reference="r0.png")
    mos = {record.image: record.mos for record in records} | {"r0.png": math.inf}
    found = drawn_pairs(records, seed=3)
    for t in found:
        assert t.g12 == compare(mos[t.first], mos[t.second])
        assert (t.g1r, t.g2r) == (0.5 * (t.first == "r0.png"), 0.5 * (t.second == "r0.png"))
    assert any(t.first == "r0.png" for t in found) and any(t.second == "r0.png" for t in found)
    assert any(t.g12 == 0.5 for s in range(30) for t in drawn_pairs(records, seed=s)), "an exact tie is one"
    assert found == drawn_pairs(records, seed=3) != drawn_pairs(records, seed=4)
    two = drawn_pairs(rated(12, references=2), seed=3)
    assert [t for t in two if t.reference == "r0.png"] == drawn_pairs(rated(12), seed=3), "scenes are independent"
    with pytest.raises(DataError, match="no reference for a.png"):
        drawn_pairs([RatedImage("a.png", 1.0)])


def test_parts_share_no_reference():
    records = rated(3, references=20)
    parts = {name: {r.reference for r in select_part(records, name)} for name in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [14, 2, 4] and len(set.union(*parts.values())) == 20
    assert {r.reference for r in select_part(records, "all", references=["R3", "r5.png"])} == {"r3.png", "r5.png"}
    for wrong in ({"split": "dev"}, {"split": "test", "references": ["r3"]}, {"split": "all", "references": ["zz"]}):
        with pytest.raises(UsageError):
            select_part(records, **wrong)


def test_references_are_found_whatever_their_ending_and_case(tmp_path):
    picture(tmp_path / "I01.BMP")
    picture(tmp_path / "i02.png")
    records = [RatedImage("a", 1.0, reference=name) for name in ("i01.png", "I02", "I01.bmp")]
    found = [r.reference for r in with_reference_paths(records, tmp_path)]
    assert found == [str(tmp_path / name) for name in ("I01.BMP", "i02.png", "I01.BMP")]
    with pytest.raises(MissingRequirementError) as error:
        with_reference_paths([RatedImage("a", 1.0, reference=name) for name in ("i03", "i04", "i01")], tmp_path)
    assert len(error.value.problems) == 2
    with pytest.raises(MissingRequirementError, match="does not exist"):
        with_reference_paths(records, tmp_path / "none")


def test_ratings_by_reference_of_all_three_layouts(tmp_path):
    (tmp_path / "I01.txt").write_text("i01_01_1.png,I01.png,4.5\ni01_01_2.png,I01.png,3,0.25\n")
    (tmp_path / "A2.txt").write_text("A2_x.bmp,1400.5\n\nA2_y.bmp 1300\n")
    a, b, c, d = read_labels(tmp_path, format="by_reference", images="p", dataset="X")
    assert (a.image, a.mos, a.std, a.reference, a.row) == ("p/A2_x.bmp", 1400.5, None, "A2", 1)
    assert (b.image, b.row) == ("p/A2_y.bmp", 3)
    assert (c.mos, c.reference, c.extra) == (4.5, "I01.png", {"kind": "01", "level": "1"}) and d.std == 0.5
    (tmp_path / "bad.txt").write_text("only\nx.png,r,bad\nx.png,../r,1,-2\n../y.png,3\n")
    with pytest.raises(DataError) as error:
        read_labels(tmp_path, format="by_reference")
    for part in ("bad.txt row 1: 1 cells", "bad.txt row 2: mos is 'bad'", "variance is -2", "row 4: image '../y.png'"):
        assert part in str(error.value)
    with pytest.raises(MissingRequirementError, match="label folder"):
        read_labels(tmp_path / "none", format="by_reference")


def test_rated_images_become_a_test_set(tmp_path):
    for reference in ("r1", "r2", "r3"):
        picture(tmp_path / "refs" / f"{reference}.BMP")
        rows = []
        for i in range(7):
            picture(tmp_path / "images" / f"{reference}_{i}.PNG", value=10 * i)
            rows.append(f"{reference}_{i}.png,{reference}.png,{i}\n")
        (tmp_path / "mos").mkdir(exist_ok=True)
        (tmp_path / "mos" / f"{reference}.txt").write_text("".join(rows))
    arguments = {"images": tmp_path / "images", "references": tmp_path / "refs", "dataset": "TID"}
    found = load_pairs("by_reference", tmp_path / "mos", **arguments)
    assert (len(found.triplets), len(found.records), found.name) == (3 * 8 * 3, 21, "TID")
    assert all(t.reference.endswith(".BMP") for t in found.triplets)
    assert any(t.first.endswith("r1_0.PNG") for t in found.triplets), "the real case of the name"
    few = load_pairs("by_reference", tmp_path / "mos", max_triplets=10, **arguments)
    assert len(few.triplets) == 10 and set(few.triplets) <= set(found.triplets)
    (tmp_path / "list.txt").write_text("r2\n")
    only = load_pairs("by_reference", tmp_path / "mos", reference_list=tmp_path / "list.txt", **arguments)
    assert {t.scene for t in only.triplets} == {"r2"}
    picture(tmp_path / "images" / "r1_3.PNG", size=(8, 9))
    (tmp_path / "images" / "r2_1.PNG").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 24 pictures cannot be used(.|\n)*r2_1"):
        load_pairs("by_reference", tmp_path / "mos", **arguments)
    picture(tmp_path / "images" / "r2_1.PNG")
    with pytest.raises(DataError, match="pictures of different sizes"):
        load_pairs("by_reference", tmp_path / "mos", **arguments)
    (tmp_path / "images" / "r2_1.PNG").unlink()
    with pytest.raises(MissingRequirementError, match="1 of 21 pictures are missing"):
        load_pairs("by_reference", tmp_path / "mos", **arguments)
    with pytest.raises(UsageError, match="did you mean `triplets`"):
        load_pairs("triplet", tmp_path)


# --- SRIQA-Bench -----------------------------------------------------------------------------------------------------


def sriqa(root, scenes=2):
    rng = np.random.default_rng(0)
    (root / "MOS").mkdir(parents=True)
    for s in range(scenes):
        rows = []
        for method in ("Original", *REGRESSION, *GENERATION):
            name = f"n_{s}_Original.png" if method == "Original" else f"n_{s}_{method}x4.png"
            picture(root / "images" / method / name)
            rows.append(f"{name}{', '[s % 2]}{rng.uniform(0, 100):.3f}\n")
        (root / "MOS" / f"n_{s}.txt").write_text("".join(rows))


def test_subsets_of_sriqa_bench(tmp_path):
    sriqa(tmp_path)
    counts = {}
    for part in ("All", "Reg", "Gen"):
        records, pairs = read_sriqa(tmp_path, part=part)
        counts[part] = len(pairs)
        assert {pair.type for pair in pairs} == {part}
        assert sum(record.extra["method"] == "Original" for record in records) == 2
    assert counts == {"All": 2 * 55, "Reg": 2 * 3, "Gen": 2 * 36}
    found = load_pairs("sriqa", tmp_path, part="Reg")
    assert len({pair for pair in found.pairs()}) == 2 * 3
    assert {t.reference for t in found.triplets} == {
        str(tmp_path / f"images/Original/n_{s}_Original.png") for s in (0, 1)
    }
    (tmp_path / "MOS" / "n_1.txt").write_text("n_1_Fantasyx4.png,3\n")
    with pytest.raises(DataError, match="'Fantasy' is no method"):
        read_sriqa(tmp_path)
    with pytest.raises(DataError, match="must be All, Reg or Gen"):
        read_sriqa(tmp_path, part="GAN")


def test_counts_of_sriqa_bench(tmp_path):
    def verdict(annotator, number, names, labels):
        path = tmp_path / annotator / "s" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = [{"Name": name, "Label": label} for name, label in zip(names, labels, strict=True)]
        path.write_text(json.dumps(dict(zip(("Picture_01", "Picture_02"), pictures, strict=True))))

    verdict("A", 1, "ab", ("Positive", "Negative"))
    verdict("B", 1, "ba", ("Negative", "Positive"))
    verdict("C", 1, "ab", ("Similar", "Similar"))
    verdict("A", 2, "bc", ("Negative", "Positive"))
    (scene,) = read_sriqa_counts(tmp_path)
    assert scene.images == ("a", "b", "c") and scene.counts.tolist() == [[0, 3, 0], [1, 0, 0], [0, 1, 0]]
    verdict("D", 1, "ab", ("Positive", "Positive"))
    verdict("E", 1, "aa", ("Positive", "Negative"))
    (tmp_path / "E" / "s" / "2.json").write_text("{}")
    with pytest.raises(DataError) as error:
        read_sriqa_counts(tmp_path)
    assert "3 rows cannot be used" in str(error.value) and "E/s/2.json" in str(error.value)
