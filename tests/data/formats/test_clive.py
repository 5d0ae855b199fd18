"""LIVE Challenge: MATLAB files in the released layout, and files that are something else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import savemat

from thurl.data.labels import read_labels
from thurl.errors import DataError, MissingRequirementError


NAMES = ["t1.bmp", "t7.bmp", "3.bmp", "10.JPG"]


def _cells(names):
    cells = np.empty((len(names), 1), dtype=object)
    for index, name in enumerate(names):
        cells[index, 0] = name
    return cells


def _release(folder, *, names=NAMES, mos=(63.96, 25.3, 48.9, 35.8), std=(18.3, 13.6, 18.9, 18.1), compress=False):
    folder.mkdir(exist_ok=True)
    savemat(folder / "AllImages_release.mat", {"AllImages_release": _cells(names)}, do_compression=compress)
    savemat(folder / "AllMOS_release.mat", {"AllMOS_release": np.array([mos])}, do_compression=compress)
    if std is not None:
        savemat(folder / "AllStdDev_release.mat", {"AllStdDev_release": np.array([std])}, do_compression=compress)
    return folder


@pytest.mark.parametrize("compress", [False, True])
def test_the_release(tmp_path, compress):
    folder = _release(tmp_path / "Data", compress=compress)
    records = read_labels(folder / "AllMOS_release.mat", format="clive", images=tmp_path / "Images")
    assert records == read_labels(folder, format="clive", images=tmp_path / "Images")
    assert [record.image for record in records] == [str(tmp_path / "Images" / name) for name in NAMES]
    assert (records[2].mos, records[2].std, records[2].row, records[2].dataset) == (48.9, 18.9, 3, "CLIVE")


def test_practice_pictures_and_missing_deviations(tmp_path):
    folder = _release(tmp_path / "Data", std=None)
    records = read_labels(folder, format="clive", practice="drop")
    assert [record.std for record in records] == [None, None]
    assert [record.row for record in records] == [3, 4]


def test_csv_with_any_usual_name_of_the_picture_column(tmp_path):
    path = tmp_path / "clive.csv"
    path.write_text("image_name,MOS,std\nt1.bmp,63.9,18.3\n3.bmp,48.9,18.9\n")
    assert [record.mos for record in read_labels(path, format="clive")] == [63.9, 48.9]
    assert len(read_labels(path, format="clive", practice="drop")) == 1
    path.write_text("picture,MOS\nt1.bmp,63.9\n")
    with pytest.raises(DataError, match="no column 'image'"):
        read_labels(path, format="clive")


def test_bad_values_are_reported_by_position(tmp_path):
    folder = _release(tmp_path / "Data", names=["a.bmp", "../b.bmp", "c.bmp"], mos=(np.nan, 1, 2), std=(1, 1, -1))
    with pytest.raises(DataError, match="3 rows(.|\n)*row 1: mos is nan(.|\n)*row 2: image(.|\n)*row 3: std is -1"):
        read_labels(folder, format="clive")


def test_vectors_of_different_length(tmp_path):
    with pytest.raises(DataError, match="AllMOS_release has 3, AllImages_release has 4"):
        read_labels(_release(tmp_path / "Data", mos=(1, 2, 3), std=None), format="clive")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"0" * 200, "MATLAB 7.3"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", "MATLAB 7.3"),
        (b"image,mos\n", "not a MATLAB 5 file"),
        (b"\x80\x04\x95" + b"0" * 200, "not a MATLAB 5 file"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"\x0f\x00\x00\x00\xff\x00\x00\x00abc", "cannot be read"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM", "no variable AllMOS_release; found none"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    folder = _release(tmp_path / "Data")
    (folder / "AllMOS_release.mat").write_bytes(content)
    with pytest.raises(DataError, match=f"AllMOS_release.mat: .*{message}"):
        read_labels(folder, format="clive")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (_cells(["x", "y"]), "class cell; it must be double"),
        ({"a": 1.0}, "class struct; it must be double"),
        (np.ones((2, 2)), "must be a vector"),
        ("text", "class char"),
        (np.array([[1 + 2j, 1]]), "complex128; it must hold real numbers"),
    ],
)
def test_variables_of_another_kind(tmp_path, value, message):
    folder = _release(tmp_path / "Data")
    savemat(folder / "AllMOS_release.mat", {"AllMOS_release": value})
    with pytest.raises(DataError, match=message):
        read_labels(folder, format="clive")


def test_names_must_be_text(tmp_path):
    folder = _release(tmp_path / "Data")
    cells = _cells(NAMES)
    cells[1, 0] = 3.0
    savemat(folder / "AllImages_release.mat", {"AllImages_release": cells})
    with pytest.raises(DataError, match="entry 2 of AllImages_release is not one piece of text"):
        read_labels(folder, format="clive")


def test_a_sibling_that_is_missing_or_too_large(tmp_path):
    folder = _release(tmp_path / "Data")
    (folder / "AllImages_release.mat").write_bytes(b"0" * (5 << 20))
    with pytest.raises(DataError, match="the released one has a few kilobytes"):
        read_labels(folder, format="clive")
    (folder / "AllImages_release.mat").unlink()
    with pytest.raises(MissingRequirementError, match="AllImages_release.mat does not exist"):
        read_labels(folder, format="clive")
