"""Plain CSV, what all formats share, and the wording of errors."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys

import pytest

from thurl.data.labels import LABEL_FORMATS, RatedImage, read_labels
from thurl.errors import DataError, MissingRequirementError, UsageError


def _csv(tmp_path, text, name="labels.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_the_full_csv_layout(tmp_path):
    path = _csv(
        tmp_path,
        "image,mos,std,dataset,reference,kind,level\na/1.png,3.5,0.25,A,r1.png,blur,2\n2.png,-1e1,,B,,noise,4\n",
    )
    first, second = read_labels(path, format="csv", images="/pictures")
    assert first == RatedImage(
        image="/pictures/a/1.png",
        mos=3.5,
        std=0.25,
        dataset="A",
        reference="r1.png",
        row=2,
        source=str(path),
        extra={"kind": "blur", "level": "2"},
    )
    assert (second.mos, second.std, second.reference, second.dataset, second.row) == (-10.0, None, None, "B", 3)


def test_defaults_folder_of_the_file_and_name_of_the_file(tmp_path):
    path = _csv(tmp_path, "image,mos\na.png,1\n", "mine.csv")
    (record,) = read_labels(path, format="csv")
    assert record.image == str(tmp_path / "a.png")
    assert record.dataset == "mine"
    assert read_labels(path, format="csv", dataset="X")[0].dataset == "X"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_case_of_the_header_and_spaces(tmp_path, separator):
    text = separator.join([" Image", "MOS ", "Std"]) + "\n" + separator.join([" a.png ", " 3 ", "1"]) + "\n"
    (record,) = read_labels(_csv(tmp_path, text), format="csv")
    assert (record.image, record.mos, record.std) == (str(tmp_path / "a.png"), 3.0, 1.0)


def test_windows_line_ends_byte_order_mark_blank_lines_and_quotes(tmp_path):
    text = '\ufeffimage,mos,note\r\n\r\n"a, b.png",2,"two\r\nlines"\r\nc.png,3,\r\n'
    first, second = read_labels(_csv(tmp_path, text), format="csv")
    assert first.image.endswith("a, b.png") and first.row == 3
    # The quoted cell runs over two lines, so the next row starts on line 5, as an editor shows it.
    assert second.row == 5


def test_latin_1_is_read_and_said(tmp_path, caplog):
    path = _csv(tmp_path, "image,mos\ncafé.png,2\n", encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        (record,) = read_labels(path, format="csv")
    assert record.image.endswith("café.png")
    assert "not UTF-8" in caplog.text and "Latin-1" in caplog.text


def test_columns_can_have_other_names(tmp_path):
    path = _csv(tmp_path, "file,score,mos\na.png,4,9\n")
    (record,) = read_labels(path, format="csv", columns={"image": "file", "mos": "score"})
    assert (record.mos, record.extra) == (4.0, {"mos": "9"})
    with pytest.raises(UsageError, match="'imege' is not a field; nearest: 'image'"):
        read_labels(path, format="csv", columns={"imege": "file"})
    with pytest.raises(DataError, match="no column 'spread'"):
        read_labels(path, format="csv", columns={"image": "file", "std": "spread"})


def test_all_bad_rows_are_listed_together(tmp_path):
    rows = ["a.png,,", "b.png,good,", "c.png,nan,", "d.png,inf,", "e.png,-inf,", 'f.png,"3,5",', ",3,", "h.png,1e999,"]
    rows += ["i.png,3,-1", "j.png,3,x", "../k.png,3,", "/etc/l.png,3,", "m.png,3,", "m.png,4,", "n.png,1_000,"]
    path = _csv(tmp_path, "image,mos,std\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError) as caught:
        read_labels(path, format="csv")
    text = str(caught.value)
    assert text.startswith(f"{path}: 14 rows cannot be used")
    for expected in (
        "row 2: mos is empty",
        "row 3: mos is 'good'",
        "row 4: mos is 'nan'",
        "row 5: mos is 'inf'",
        "row 6: mos is '-inf'",
        "row 7: mos is '3,5'; it must be a finite number (decimal comma: write 3.5)",
        "row 8: image is empty",
        "row 9: mos is 1e999",
        "row 10: std is -1; it must be 0 or more",
        "row 11: std is 'x'",
        "row 12: image '../k.png' lies outside the picture folder",
        "row 13: image '/etc/l.png' lies outside",
        f"row 15: {tmp_path / 'm.png'} is already rated in row 14",
        "row 16: mos is '1_000'",
    ):
        assert expected in text, expected
    assert text.endswith("Correct or remove these rows.")


def test_the_first_twenty_problems_and_the_count(tmp_path):
    path = _csv(tmp_path, "image,mos\n" + "".join(f"{i}.png,bad\n" for i in range(57)))
    with pytest.raises(DataError) as caught:
        read_labels(path, format="csv")
    text = str(caught.value)
    assert "57 rows cannot be used" in text and "... and 37 more" in text
    assert text.count("  row ") == 20


def test_rows_with_another_number_of_cells(tmp_path):
    path = _csv(tmp_path, "image,mos\na.png,1\nb.png\nc.png,1,2\n")
    with pytest.raises(DataError, match=r"row 3: 1 cells, but the header has 2 columns\n  row 4: 3 cells"):
        read_labels(path, format="csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("image,mos\n", "a header and no rows"),
        ("image,mos,MOS\na,1,2\n", "column mos is in the header twice"),
        ('image,mos\n"a.png,1\n', "quotation marks"),
        ("image,score\na.png,1\n", r"no column 'mos'.*Columns found: image, score"),
        ("imgae,mos\na.png,1\n", r"no column 'image' \(nearest column: 'imgae'\)"),
        ("a.png 3\nb.png 4\n", "no column 'image'"),
    ],
)
def test_files_that_are_no_table(tmp_path, text, message):
    with pytest.raises(DataError, match=f"labels.csv: .*{message}"):
        read_labels(_csv(tmp_path, text), format="csv")


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(DataError, match="UTF-16"):
        read_labels(_csv(tmp_path, "image,mos\na,1\n", encoding="utf-16"), format="csv")
    (tmp_path / "b.csv").write_bytes(b"\x89PNG\x00\x00")
    with pytest.raises(DataError, match="zero bytes"):
        read_labels(tmp_path / "b.csv", format="csv")
    with pytest.raises(DataError, match="this is a folder"):
        read_labels(tmp_path, format="csv")
    with pytest.raises(MissingRequirementError, match="nothing.csv does not exist"):
        read_labels(tmp_path / "nothing.csv", format="csv")


def test_paths_may_leave_the_folder_only_when_asked(tmp_path):
    path = _csv(tmp_path, "image,mos\n../a.png,1\n/b/c.png,2\nd/../e.png,3\n")
    with pytest.raises(DataError, match="2 rows"):
        read_labels(path, format="csv", images=tmp_path / "p")
    found = [record.image for record in read_labels(path, format="csv", images=tmp_path / "p", allow_outside=True)]
    assert found == [str(tmp_path / "a.png"), "/b/c.png", str(tmp_path / "p" / "e.png")]


@pytest.mark.parametrize("name", ["..\\a.png", "C:\\a.png", "a/../../b.png", "..", "a\x00.png"])
def test_other_ways_out_of_the_folder(tmp_path, name):
    path = tmp_path / "a.csv"
    path.write_text(f"image,mos\n{name},1\n")
    with pytest.raises(DataError, match="outside the picture folder|zero bytes"):
        read_labels(path, format="csv")


def test_unknown_format_and_option(tmp_path):
    with pytest.raises(UsageError, match="'kadd' does not exist; nearest: 'kadid'. Formats: csv"):
        read_labels(tmp_path, format="kadd")
    with pytest.raises(UsageError, match="format 'csv' has no option 'column'; options: columns"):
        read_labels(tmp_path, format="csv", column={})


def test_a_record_is_valid_by_construction():
    for mos, std in ((float("nan"), None), (float("inf"), None), (1.0, -0.1), (1.0, float("nan"))):
        with pytest.raises(DataError, match=r"a.png \(x.csv row 7\)"):
            RatedImage("a.png", mos, std, row=7, source="x.csv")
    record = RatedImage("a.png", 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.mos = 2.0  # type: ignore[misc]
    assert len({record, RatedImage("a.png", 1.0)}) == 1


def test_every_format_describes_itself():
    assert set(LABEL_FORMATS) >= {"csv", "jsonl", "kadid", "koniq", "tid2013", "spaq", "clive", "agiqa", "hub"}
    for name, item in LABEL_FORMATS.items():
        assert item.name == name and item.layout
        assert not {"path", "images", "args", "kwargs"} & set(item.options)


def test_labels_are_read_without_heavy_imports():
    code = (
        "import sys, thurl.data.labels; print([m for m in ('torch', 'datasets', 'scipy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
