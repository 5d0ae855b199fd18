"""The label files shipped with VisualQuality-R1: the first rows of each real file, and broken ones."""

from __future__ import annotations

import json

import pytest

from thurl.data.formats.official import OFFICIAL_DATASETS, official_dataset
from thurl.data.labels import read_labels
from thurl.errors import DataError, MissingRequirementError, UsageError


FILES = {
    "KADID-10K_train_set.txt": ("I01.png I01_02_05.png 4.633587786 0.70427267446636", "KADID-10K", 4.633587786),
    "AGIQA-3K_test_all.txt": ("AttnGAN_normal_000.jpg 21.511657711264263 0.223270101", "AGIQA-3K", 21.511657711264263),
    "BID_test_all.txt": ("DatabaseImage0190.JPG 52.28900832768076", "BID", 52.28900832768076),
    "Deblur_test_all.txt": ("0_0.png 0_1.png 4.569234903368079", "Liu13", 4.569234903368079),
    "KONIQ-10K_test_all.txt": ("10004473376.jpg 4.478899486428679 0.527277894494", "KONIQ-10K", 4.478899486428679),
    "LIVEC_test_all.txt": ("t1.bmp 68.01712128701747 18.3762", "CLIVE", 68.01712128701747),
    "SPAQ_test_all.txt": ("00001.jpg 2.9940425531914894 17.5539983235403", "SPAQ", 2.9940425531914894),
    "SRIQA-Bench_test_all.txt": ("a_Original.png a_Original.png 81.67066311938132", "SRIQA-Bench", 81.67066311938132),
    "dehaze_test_all.txt": ("Adirondack.png Adirondack_Cai16.png 3.2238872850453495", "Min19", 3.2238872850453495),
    "TID2013_mos.txt": ("I01.BMP I01_03_4.bmp 5.5", "TID2013", 5.5),
    "CSIQ_mos.txt": ("1600.png 1600.AWGN.1.png 0.938", "CSIQ", 0.938),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_columns_and_data_set_follow_from_the_file_name(tmp_path, name):
    line, dataset, mos = FILES[name]
    (tmp_path / name).write_text(line + "\n")
    (record,) = read_labels(tmp_path / name, format="official")
    cells = line.split()
    columns = OFFICIAL_DATASETS[dataset][0]
    assert (record.dataset, record.mos, record.row) == (dataset, mos, 1)
    assert record.std == (float(cells[-1]) if columns.endswith("std") else None)
    assert record.reference == (cells[0] if columns.startswith("ref") else None)
    assert record.image == str(tmp_path / cells[1 if columns.startswith("ref") else 0])
    assert [record] == read_labels(tmp_path / name, format=columns)


def test_kind_and_level_come_from_kadid_names(tmp_path):
    (tmp_path / "KADID-10K_mos.txt").write_text("I01.png I01_23_05.png 4.57 0.7\r\n\r\nI01.png I01_23_01.png 4 0\r\n")
    first, second = read_labels(tmp_path / "KADID-10K_mos.txt", format="official")
    assert first.extra == {"kind": "23", "level": "5"}
    assert second.row == 3


def test_the_data_set_can_be_told(tmp_path):
    (tmp_path / "x.txt").write_text("r.png a.png 3\n")
    with pytest.raises(UsageError, match="'x' is not a data set.*KADID-10K"):
        read_labels(tmp_path / "x.txt", format="official")
    (record,) = read_labels(tmp_path / "x.txt", format="official", dataset="PIPAL")
    assert (record.dataset, record.reference) == ("PIPAL", "r.png")
    (record,) = read_labels(tmp_path / "x.txt", format="ref_dis_mos")
    assert record.dataset == "x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bid_test", "BID"),
        ("bidirectional", None),
        ("LIVEC_test_all", "CLIVE"),
        ("deblur_test_all", "Liu13"),
        ("", None),
    ],
)
def test_names_of_files_and_data_sets(name, expected):
    assert official_dataset(name) == expected


def test_wrong_columns_are_reported_by_row(tmp_path):
    path = tmp_path / "KADID-10K_mos.txt"
    path.write_text("I01.png I01_01_01.png 4.57 0.70\nI01.png I01_01_02.png 4.33\nI01.png I01_01_03.png x 0.1\n")
    with pytest.raises(DataError, match=r"2 rows.*\n  row 2: 3 columns; ref_dis_mos_std has 4.*\n  row 3: mos is 'x'"):
        read_labels(path, format="official")


def test_three_columns_of_the_other_kind_are_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("00001.jpg 2.99 17.5\n")
    with pytest.raises(DataError, match="dis is '2.99', a number and no picture"):
        read_labels(path, format="ref_dis_mos")


def _line(image="I01_01_01.png", value=4.6, **more):
    turns = [{"from": "human", "value": "<image>Rate it. "}, {"from": "gpt", "value": value}]
    return json.dumps({"id": 7, "dataset_name": "KADID-10K", "image": image, "conversations": turns, **more})


def test_jsonl_numbers_tags_lists_and_the_image_marker(tmp_path):
    path = tmp_path / "train.jsonl"
    values = [4.6, "3.5", "<think>1</think><answer> 2.25 </answer>", 3]
    path.write_text("\n".join(_line([f"I0{i}_01_02.png"], value) for i, value in enumerate(values, 1)) + "\n\n")
    records = read_labels(path, format="jsonl", images=tmp_path / "p")
    assert [record.mos for record in records] == [4.6, 3.5, 2.25, 3.0]
    assert records[0].image == str(tmp_path / "p" / "I01_01_02.png")
    assert records[0].extra == {"id": "1", "question": "Rate it.", "kind": "01", "level": "2"}
    assert [record.reference for record in records] == ["I01.png", "I02.png", "I03.png", "I04.png"]


def test_several_jsonl_files_have_a_folder_each_and_new_ids(tmp_path):
    for name, dataset in (("a", "KADID-10K"), ("b", "SPAQ")):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.jsonl").write_text(
            _line(f"{name}1.png", dataset_name=dataset) + "\n" + _line(f"{name}2.png")
        )
    labels = f"{tmp_path / 'a.jsonl'}:{tmp_path / 'b.jsonl'}"
    records = read_labels(labels, format="jsonl", images=f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert [record.extra["id"] for record in records] == ["1", "2", "3", "4"]
    assert [record.image for record in records] == [
        str(tmp_path / p) for p in ("a/a1.png", "a/a2.png", "b/b1.png", "b/b2.png")
    ]
    assert [record.source for record in records] == [str(tmp_path / "a.jsonl")] * 2 + [str(tmp_path / "b.jsonl")] * 2
    one = read_labels(labels, format="jsonl", images=tmp_path / "a")
    assert one[-1].image == str(tmp_path / "a/b2.png")
    beside = read_labels(labels, format="jsonl")
    assert beside[-1].image == str(tmp_path / "b2.png")
    with pytest.raises(UsageError, match="3 folders for 2 label files"):
        read_labels(labels, format="jsonl", images="x:y:z")
    with pytest.raises(MissingRequirementError, match="c.jsonl does not exist"):
        read_labels(f"{tmp_path / 'a.jsonl'}:{tmp_path / 'c.jsonl'}", format="jsonl")


def test_every_bad_jsonl_row_is_reported(tmp_path):
    lines = [
        _line("ok.png"),
        "{not json",
        "[1]",
        _line(["a.png", "b.png"]),
        _line(3),
        _line("c.png", float("nan")),
        _line("d.png", "<answer>good</answer>"),
        _line("e.png", conversations=[{"from": "human", "value": "x"}]),
        _line("f.png", conversations="x"),
        _line("../g.png"),
        _line("ok.png"),
        "[" * 100_000,
        _line("h.png", True),
        _line("i.png", dataset_name=3),
    ]
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_labels(path, format="jsonl")
    text = str(caught.value)
    assert "13 rows cannot be used" in text
    for row, expected in {
        2: "not a JSON object",
        3: "a JSON list",
        4: "image lists 2 pictures",
        5: "image is 3",
        6: "mos is nan",
        7: "mos is 'good'",
        8: "no turn from 'gpt'",
        9: "conversations is not a list",
        10: "outside the picture folder",
        11: "already rated in row 1",
        12: "not a JSON object",
        13: "mos is True",
        14: "dataset_name is 3",
    }.items():
        assert any(f"row {row}: " in line and expected in line for line in text.split("\n")), (row, expected)


def test_bad_rows_of_several_files_name_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(_line("a.png"))
    (tmp_path / "b.jsonl").write_text("x\n" + _line("a.png"))
    with pytest.raises(
        DataError, match=r"b.jsonl row 1: not a JSON(.|\n)*b.jsonl row 2: .*already rated in .*a.jsonl row 1"
    ):
        read_labels(f"{tmp_path / 'a.jsonl'}:{tmp_path / 'b.jsonl'}", format="jsonl")
