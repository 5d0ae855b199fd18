"""Label files as the makers of the data sets released them, in their exact layouts."""

from __future__ import annotations

import math

import pytest

from thurl.data.labels import read_labels
from thurl.errors import DataError, UsageError


KADID = "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.496\nI02_25_05.png,I02.png,1.10,0.3\n"
KONIQ = (
    '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"\n'
    '"10004473376.jpg",0,0,25,73,7,105,3.828571429,0.527277894,77.38406105\n'
)
AGIQA = (
    "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align\n"
    'AttnGAN_normal_000.jpg,"a cat, sitting",nice,,anime,0.97,0.22,1.5,0.4\n'
)


def _write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_kadid(tmp_path):
    path = _write(tmp_path, "dmos.csv", KADID)
    first, second = read_labels(path, format="kadid")
    assert (first.mos, first.reference, first.dataset) == (4.57, "I01.png", "KADID-10K")
    assert second.extra == {"kind": "25", "level": "5"}
    # The column named var holds standard deviations; the other reading is the official label file's 0.7042726...
    assert first.std == 0.496
    assert read_labels(path, format="kadid", var_is="variance")[0].std == pytest.approx(math.sqrt(0.496))
    with pytest.raises(UsageError, match="var_is is 'sd'; it must be one of std, variance"):
        read_labels(path, format="kadid", var_is="sd")


def test_kadid_negative_and_missing_var(tmp_path):
    for option in ("std", "variance"):
        with pytest.raises(DataError, match="row 2: var is -0.1; it must be 0 or more"):
            read_labels(_write(tmp_path, "a.csv", KADID.replace("0.496", "-0.1")), format="kadid", var_is=option)
    with pytest.raises(DataError, match=r"no column 'dmos' \(nearest column: 'dmoz'\)"):
        read_labels(_write(tmp_path, "b.csv", KADID.replace("dmos", "dmoz")), format="kadid")


def test_koniq(tmp_path):
    path = _write(tmp_path, "koniq10k_scores_and_distributions.csv", KONIQ)
    (record,) = read_labels(path, format="koniq")
    assert (record.mos, record.std, record.dataset) == (3.828571429, 0.527277894, "KONIQ-10K")
    (zscore,) = read_labels(path, format="koniq", mos_column="MOS_zscore")
    # SD is on the 1..5 scale and would be wrong beside a 0..100 score.
    assert (zscore.mos, zscore.std) == (77.38406105, None)


def test_agiqa(tmp_path):
    path = _write(tmp_path, "data.csv", AGIQA)
    (record,) = read_labels(path, format="agiqa")
    assert (record.mos, record.std, record.dataset) == (0.97, 0.22, "AGIQA-3K")
    assert record.extra == {"prompt": "a cat, sitting"}
    (record,) = read_labels(path, format="agiqa", score="align")
    assert (record.mos, record.std) == (1.5, 0.4)


def test_tid2013(tmp_path):
    path = _write(tmp_path, "mos_with_names.txt", "5.51429 I01_01_1.bmp\r\n5.56757 i25_24_5.bmp\r\n")
    first, second = read_labels(path, format="tid2013")
    assert (first.mos, first.std, first.reference, first.dataset) == (5.51429, None, "I01", "TID2013")
    assert (second.reference, second.extra) == ("I25", {"kind": "24", "level": "5"})
    _write(tmp_path, "mos_std.txt", "0.13013\n0.16\n")
    assert [record.std for record in read_labels(path, format="tid2013")] == [0.13013, 0.16]
    _write(tmp_path, "mos_std.txt", "0.13013\n")
    with pytest.raises(DataError, match="1 values for 2 pictures"):
        read_labels(path, format="tid2013")
    with pytest.raises(DataError, match="row 1: 3 columns"):
        read_labels(_write(tmp_path / "..", "t.txt", "5 a b\n"), format="tid2013")


def _sheet(path, rows):
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


HEADER = ["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]


def test_spaq_spreadsheet_and_csv(tmp_path):
    path = _sheet(
        tmp_path / "MOS and Image attribute scores.xlsx",
        [HEADER, ["00001.jpg", 46.88, 60, 50.5, 40, 30, 20], ["00002.jpg", 61, None, 1, 1, 1, 1]],
    )
    first, second = read_labels(path, format="spaq")
    assert (first.mos, first.std, first.dataset, first.row) == (46.88, None, "SPAQ", 2)
    assert first.extra["Colorfulness"] == "50.5" and "Brightness" not in second.extra
    csv = _write(tmp_path, "spaq.csv", ",".join(HEADER) + "\n00001.jpg,46.88,60,50.5,40,30,20\n")
    assert read_labels(csv, format="spaq")[0].mos == 46.88


def test_bad_spreadsheets(tmp_path):
    path = _sheet(tmp_path / "a.xlsx", [HEADER[:2], ["a.jpg", "high"], ["b.jpg", None], [None, 3], ["c.jpg", 1]])
    with pytest.raises(
        DataError, match="3 rows(.|\n)*row 2: MOS is 'high'(.|\n)*row 3: MOS is empty(.|\n)*row 4: image"
    ):
        read_labels(path, format="spaq")
    with pytest.raises(DataError, match="a header and no rows"):
        read_labels(_sheet(tmp_path / "b.xlsx", [HEADER]), format="spaq")
    with pytest.raises(DataError, match="no column 'Image name'"):
        read_labels(_sheet(tmp_path / "c.xlsx", [["Name", "MOS"], ["a", 1]]), format="spaq")
    with pytest.raises(DataError, match="not a spreadsheet"):
        read_labels(_write(tmp_path, "d.xlsx", "Image name,MOS\n"), format="spaq")


def test_a_spreadsheet_that_unpacks_too_far(tmp_path, monkeypatch):
    monkeypatch.setattr("thurl.data.formats.releases.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(DataError, match="unpacks to"):
        read_labels(_sheet(tmp_path / "a.xlsx", [HEADER, ["a.jpg"] + [1] * 6]), format="spaq")
