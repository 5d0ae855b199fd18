"""LIVE In the Wild Challenge (CLIVE): three MATLAB files, or the same as CSV.

A .mat file comes from strangers, so it is held to what the release contains: MATLAB 5 binary, a few kilobytes, a
vector of doubles or a cell array of names. Nothing in such a file is executed by scipy; function handles, objects and
workspaces are refused unread.
"""

from __future__ import annotations

import logging
from pathlib import Path

from thurl.data.formats.plain import read_csv
from thurl.data.formats.tables import Rows, find_columns, read_bytes, read_table, require_choice
from thurl.data.records import RatedImage, RowProblems
from thurl.errors import DataError


__all__ = ["read_clive"]

logger = logging.getLogger(__name__)

# The released files have 10 to 30 kB. Compressed data unpacks to at most about 1000 times its size.
MAX_BYTES = 4 << 20
MAX_ITEMS = 1_000_000

_NAME_COLUMNS = ("image", "image_name", "name", "filename", "file", "img_name")

_NUMBERS = ("double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))

# Shown to the raters before the test: Images/trainingImages/t1.bmp to t7.bmp.
_PRACTICE = {f"t{number}.bmp" for number in range(1, 8)}


def read_clive(
    path: Path,
    *,
    images: Path,
    dataset: str | None,
    problems: RowProblems,
    allow_outside: bool = False,
    practice: str = "keep",
) -> list[RatedImage]:
    """AllMOS_release.mat with AllImages_release.mat and, if it is there, AllStdDev_release.mat beside it.

    Args:
        path: AllMOS_release.mat, the folder that holds the three files, or a CSV with a name, mos and perhaps std.
        practice: "keep" or "drop" the seven practice pictures t1.bmp .. t7.bmp. The official label file of
            VisualQuality-R1 keeps them (1,169 rows); many publications use the other 1,162.

    Raises:
        DataError: a file is not of the released kind, or the vectors differ in length.
    """
    require_choice("practice", practice, ("keep", "drop"))
    if path.is_dir() or path.suffix.lower() == ".mat":
        folder = path if path.is_dir() else path.parent
        mos_file = folder / "AllMOS_release.mat" if path.is_dir() else path
        records = _read_matlab(
            mos_file, images=images, dataset=dataset or "CLIVE", problems=problems, allow_outside=allow_outside
        )
    else:
        columns = read_table(path, problems=RowProblems(str(path))).columns
        lower = {name.lower(): name for name in columns}
        image = next((lower[name] for name in _NAME_COLUMNS if name in lower), None)
        if image is None:
            find_columns(path, columns, ["image", "mos"])
        records = read_csv(
            path,
            images=images,
            dataset=dataset or "CLIVE",
            problems=problems,
            allow_outside=allow_outside,
            columns={"image": image or "image"},
        )
    if practice == "drop":
        kept = [record for record in records if Path(record.image).name.lower() not in _PRACTICE]
        logger.info("%s: %d practice pictures left out", path, len(records) - len(kept))
        return kept
    return records


def _read_matlab(
    mos_file: Path, *, images: Path, dataset: str, problems: RowProblems, allow_outside: bool
) -> list[RatedImage]:
    mos = _load(mos_file, "AllMOS_release")
    names = _load(mos_file.with_name("AllImages_release.mat"), "AllImages_release")
    std_file = mos_file.with_name("AllStdDev_release.mat")
    std = _load(std_file, "AllStdDev_release") if std_file.is_file() else None
    sizes = {"AllMOS_release": len(mos), "AllImages_release": len(names)}
    if std is not None:
        sizes["AllStdDev_release"] = len(std)
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise DataError(f"{mos_file.parent}: {listed}; the vectors must be of one length")
    rows = Rows(mos_file, images, problems, allow_outside)
    for index, value in enumerate(mos):
        rows.add(index + 1, names[index], value, None if std is None else std[index], dataset=dataset)
    return rows.records


def _load(path: Path, variable: str) -> list:
    from scipy.io import loadmat, whosmat

    content = read_bytes(path)
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: {len(content)} bytes; the released one has a few kilobytes, {MAX_BYTES} may be")
    if content[:8] == b"\x89HDF\r\n\x1a\n" or content[124:126] in (b"\x00\x02", b"\x02\x00"):
        raise DataError(f"{path}: a MATLAB 7.3 file; save it with the option -v7, or as CSV")
    if (
        len(content) < 128
        or content[126:128] not in (b"IM", b"MI")
        or content[124:126] not in (b"\x00\x01", b"\x01\x00")
    ):
        raise DataError(
            f"{path}: not a MATLAB 5 file; give the released file, or a CSV with the columns image and mos"
        )
    # scipy raises whatever its binary reader stumbles over.
    try:
        listed = {name: (shape, kind) for name, shape, kind in whosmat(path)}
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error}; download it again") from error
    if variable not in listed:
        raise DataError(f"{path}: no variable {variable}; found {', '.join(map(str, listed)) or 'none'}")
    shape, kind = listed[variable]
    is_text = variable == "AllImages_release"
    if kind not in (("cell",) if is_text else _NUMBERS):
        raise DataError(f"{path}: {variable} is of class {kind}; it must be {'cell' if is_text else 'double'}")
    if len(shape) != 2 or min(shape) != 1 or max(shape) > MAX_ITEMS:
        raise DataError(f"{path}: {variable} has the shape {shape}; it must be a vector")
    try:
        array = loadmat(path, variable_names=[variable], struct_as_record=True)[variable].reshape(-1)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error}; download it again") from error
    if not is_text:
        if array.dtype.kind not in "fiu":
            raise DataError(f"{path}: {variable} holds {array.dtype}; it must hold real numbers")
        return [float(value) for value in array]
    return [_cell_text(cell, path, index) for index, cell in enumerate(array, start=1)]


def _cell_text(cell: object, path: Path, row: int) -> str:
    import numpy as np

    if isinstance(cell, np.ndarray) and cell.dtype.kind == "U" and cell.size == 1:
        return str(cell.reshape(-1)[0])
    raise DataError(f"{path}: entry {row} of AllImages_release is not one piece of text; download the file again")
