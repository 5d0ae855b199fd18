"""The file: what is written is read, bits are all counted, damage is always an error."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest

from thurl.distillation import ddr, integer_entropy
from thurl.distillation.coded import CodedDataset, CodedGroup, CodedSlice, group_shapes
from thurl.distillation.ddr_bytes import Writer
from thurl.distillation.ddr_header import DICTIONARY
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.integer import decode_images, slice_bits
from thurl.distillation.label_stream import label_runs, labels_of_runs
from thurl.errors import DataError


@pytest.fixture
def small():
    """One slice of two samples of 4 x 5 pixels: a file of few bytes, to be damaged at every one."""
    config = CodecConfig(4, 5, 1, context=8, depth=1, widths=(2,))
    rng = np.random.default_rng(2)
    latents = tuple(rng.integers(-2, 3, (2, *size)).astype(np.int32) for size in config.level_sizes)
    nets = {
        name: CodedGroup(5, tuple(rng.integers(-3, 4, shape).astype(np.int32) for shape in shapes))
        for name, shapes in group_shapes(config).items()
    }
    part = CodedSlice(config, np.array([1, 0], np.int32), latents, nets)
    return CodedDataset((part,), ("cat", "dog"), (0.5,), (0.25,), {"lr": 0.01}, np.ones((2, 2), np.float16))


def assert_same(one, other):
    assert ddr._same(one, other)
    assert one.hints == other.hints


@pytest.mark.parametrize("reader", ["constriction", "reference"])
@pytest.mark.parametrize("writer", ["constriction", "reference"])
def test_what_is_written_is_read(coded, tmp_path, writer, reader):
    rate = ddr.write(coded, tmp_path / "deep" / "x.ddr", coder=writer)
    found = ddr.inspect(tmp_path / "deep" / "x.ddr", coder=reader)
    assert_same(coded, found.dataset)
    assert found.rate == rate
    wanted = np.concatenate([decode_images(part) for part in coded.slices])
    assert (found.images() == wanted).all() and wanted.dtype == np.uint8
    assert (tmp_path / "deep" / "x.ddr").read_bytes() == ddr.encode(coded, coder="reference")


def test_all_bits_are_counted(coded, small, tmp_path):
    """Correctness test 3: the size is the reported one, and latents take their exact bits up to words of 32."""
    for dataset in (coded, small):
        rate = ddr.write(dataset, tmp_path / "x.ddr")
        row = rate.row()
        assert row["total_bits"] == 8 * os.path.getsize(tmp_path / "x.ddr") == rate.total_bits
        assert row["latents"] + row["nets"] + row["labels"] + row["header"] == row["total_bits"]
        assert row["bpc"] * len(dataset.classes) == row["total_bits"]
        exact = sum(slice_bits(part) for part in dataset.slices)
        assert 0 <= row["latents"] - exact <= 66 * len(dataset.slices)
        assert ddr.rate(dataset) == rate
    # Implied labels take nothing; soft ones 16 bits per class and sample.
    assert ddr.rate(coded).labels == 0
    assert ddr.rate(small).labels == 16 * 2 * 2
    assert 0 < ddr.rate(coded).header < 8 * 120


PROGRAM = """
import hashlib, sys
from thurl.distillation import ddr
found = ddr.inspect(sys.argv[1])
digest = hashlib.sha256(found.images().tobytes())
for part in found.dataset.slices:
    for level in part.latents:
        digest.update(level.tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("threads", [1, 4])
def test_a_fresh_process_reads_the_same(coded, tmp_path, threads):
    """Correctness test 2."""
    ddr.write(coded, tmp_path / "x.ddr")
    digest = hashlib.sha256(np.concatenate([decode_images(part) for part in coded.slices]).tobytes())
    for part in coded.slices:
        for level in part.latents:
            digest.update(level.tobytes())
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x.ddr")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **limits})
    assert done.stdout.strip() == digest.hexdigest(), done.stderr


def test_every_damaged_byte_is_noticed(small):
    data = ddr.encode(small)
    assert len(data) < 400
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        for mask in (1 << rng.integers(0, 8), int(rng.integers(1, 256)), 255):
            broken = bytearray(data)
            broken[position] ^= mask
            with pytest.raises(DataError, match=r"^x\.ddr: "):
                ddr.decode(bytes(broken), "x.ddr")


def test_every_truncation_is_noticed(small):
    data = ddr.encode(small)
    for length in range(len(data)):
        with pytest.raises(DataError, match=r"^x\.ddr: "):
            ddr.decode(data[:length], "x.ddr")
    with pytest.raises(DataError, match="bytes follow it"):
        ddr.decode(data + b"\0", "x.ddr")


def test_random_damage_of_a_larger_file_is_noticed(coded):
    data = ddr.encode(coded)
    rng = np.random.default_rng(1)
    for _ in range(150):
        broken = bytearray(data)
        start, count = rng.integers(0, len(data)), rng.integers(1, 60)
        broken[start : start + count] = rng.bytes(count)
        if bytes(broken) != data:
            with pytest.raises(DataError, match=r"^x\.ddr: bytes \d+"):
                ddr.decode(bytes(broken), "x.ddr")


def test_messages_say_where_and_what_to_do(coded):
    data = ddr.encode(coded)
    for broken, message in (
        (b"\x89PNG" + data[4:], r"x: bytes 0 to 4 are 89 50 4e 47: this is not a \.ddr file"),
        (b"", r"are nothing: this is not a \.ddr file"),
        (data[:4] + b"\2" + data[5:], "version 2, this thurl reads 1 to 1; update thurl"),
        (data[:60], r"needs bytes 49 to \d+, but the file ends at 60: it is truncated or damaged. Copy it again"),
        (data[:300] + b"\0\0" + data[302:], "the checksum of the nets of slice 0 does not fit"),
        (data[:-4] + b"\0" * 4, "the checksum of the file does not fit"),
        (data[:-8] + b"\0" * 8, "the checksum of the file does not fit"),
    ):
        with pytest.raises(DataError, match=message):
            ddr.decode(broken, "x")


def test_other_pictures_than_were_written_are_refused(coded):
    """A program that decodes differently, hence writes another checksum of its pictures."""
    data = ddr.encode(coded)[:-8] + b"\1\2\3\4"
    data += zlib.crc32(data).to_bytes(4, "little")
    found = ddr.decode(data, "x.ddr")
    with pytest.raises(DataError, match=r"x\.ddr: the checksum of the decoded pictures does not fit"):
        found.images()


# --- files made to harm ----------------------------------------------------------------------------------------------


def with_header(change, sections=()):
    """A file with right checksums whose header was changed."""
    header = {
        "channels": 1, "classes": 2, "configs": [{"context": 8, "depth": 1, "gain": 16.0, "widths": [2]}],
        "height": 4, "hints": {}, "labels": "implicit", "mean": [0.5], "slices": [[0, 0, 2, 1]], "soft": False,
        "std": [0.25], "width": 5,
    }  # fmt: skip
    change(header)
    return with_bytes(json.dumps(header).encode(), sections)


def with_bytes(header, sections=()):
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    writer = Writer()
    writer.section(deflater.compress(header) + deflater.flush(), ddr.MAGIC + b"\1")
    for section in sections:
        writer.section(section)
    writer.checksum(0)
    writer.checksum(zlib.crc32(writer.data))
    return bytes(writer.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(height=2**40), "sides must be 2 to 4096"),
        (lambda h: h.update(height=4096, width=4096, slices=[[0, 0, 2, 2**20]]), "bytes of pictures, at most"),
        (lambda h: h.update(slices=[[0, 0, 2, 2**62]]), "must be a whole number from 1 to"),
        (lambda h: h.update(slices=[[0, 0, 3, 1]]), "labels 0 to 2 of a slice"),
        (lambda h: h.update(slices=[[1, 0, 2, 1]]), "has no configuration"),
        (lambda h: h.update(slices=[[0, 0, 2]]), "runs of three numbers"),
        (lambda h: h.update(slices=[]), "slices must be lists"),
        (lambda h: h.update(slices=[[0, 0, 1, True]]), "slices must be lists of whole numbers"),
        (lambda h: h.update(labels="hard"), "a configuration and a number of samples"),
        (lambda h: h.update(labels="hard", slices=[[0, 2**28]], classes=65536), "bytes of pictures, at most"),
        (lambda h: h.update(labels="none"), "labels must be implicit or hard"),
        (lambda h: h["configs"][0].update(widths=[4096] * 8), "at most 1048576 are read"),
        (lambda h: h["configs"][0].update(widths=[1e300]), "widths must be whole numbers"),
        (lambda h: h["configs"][0].update(gain=float("nan")), "gain must be a number"),
        (lambda h: h["configs"][0].update(context=9), "context: 9 must be one of"),
        (lambda h: h.update(mean=[0.5, 0.5]), "mean must be 1 finite numbers"),
        (lambda h: h.update(std=[float("inf")]), "std must be 1 finite numbers"),
        (lambda h: h.update(classes=2**30), "must be a whole number from 1 to 65536"),
        (lambda h: h.update(classes=["a", 3]), "a number or a list of names"),
        (lambda h: h.update(classes=[]), "0 classes"),
        (lambda h: h.update(classes=True), "must be a whole number"),
        (lambda h: h.update(soft=1), "soft must be true or false"),
        (lambda h: h.update(hints=[1]), "hints must be an object"),
        (lambda h: h.update(more=1), "its keys must be"),
        (lambda h: h.pop("std"), "its keys must be"),
        (lambda h: None, "the nets of slice 0"),
    ],
)
def test_headers_made_to_harm_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        ddr.decode(with_header(change), "x.ddr")


def test_headers_that_are_no_headers_are_refused():
    for header, message in (
        (b"[" * 100_000, "header cannot be used"),
        (b"\xff\xfe", "header cannot be used"),
        (b"[]", "its keys must be"),
        (b" " * (2**22 + 1), "more than 4194304 bytes"),
    ):
        with pytest.raises(DataError, match=message):
            ddr.decode(with_bytes(header), "x.ddr")


def test_messages_about_headers_stay_short():
    def change(header):
        header["configs"][0]["widths"] = [5000] * 100_000

    with pytest.raises(DataError, match="widths") as caught:
        ddr.decode(with_header(change), "x.ddr")
    assert len(str(caught.value)) < 500


def test_sections_with_right_checksums_and_wrong_content_are_refused(small):
    rng = np.random.default_rng(4)
    for _ in range(60):
        sections = [rng.bytes(4 * int(rng.integers(0, 40))), rng.bytes(4 * int(rng.integers(0, 40)))]
        with pytest.raises(DataError, match=r"x\.ddr: slice 0: "):
            ddr.decode(with_header(lambda h: None, sections), "x.ddr")
    with pytest.raises(DataError, match="multiple of 4"):
        ddr.decode(with_header(lambda h: None, [b"abc", b""]), "x.ddr")


def test_a_set_that_is_too_large_is_refused_both_ways(coded, tmp_path):
    data = ddr.encode(coded)
    size = sum(len(part.labels) for part in coded.slices) * 9 * 12 * 3
    assert ddr.decode(data, max_bytes=size)
    for refused in (lambda: ddr.decode(data, max_bytes=size - 1), lambda: ddr.encode(coded, max_bytes=size - 1)):
        with pytest.raises(DataError, match=f"{size} bytes of pictures, at most {size - 1}"):
            refused()
    ddr.write(coded, tmp_path / "x.ddr")
    with pytest.raises(DataError, match="at most 100 are read"):
        ddr.read(tmp_path / "x.ddr", max_bytes=100)


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "runs"),
    [
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 3, 3]),
        ([0, 0, 1], [0, 1, 2, 1, 1, 1]),
        ([4], [4, 1, 1]),
        ([2, 2, 1, 1, 2], [2, 1, 2, 1, 1, 2, 2, 1, 1]),
        ([3, 4, 5, 0, 1], [3, 3, 1, 0, 2, 1]),
    ],
)
def test_runs_of_labels(labels, runs):
    assert label_runs(np.array(labels, np.int32)) == runs
    assert labels_of_runs(runs).tolist() == labels


@pytest.mark.parametrize("reader", ["constriction", "reference"])
def test_labels_in_no_order_are_coded_and_counted(reader):
    config, rng = CodecConfig(2, 2, 1, context=8, depth=1, widths=(1,)), np.random.default_rng(0)
    labels = rng.choice(7, 300, p=[0.6, 0.2, 0.1, 0.04, 0.03, 0.02, 0.01]).astype(np.int32)
    nets = {
        name: CodedGroup(0, tuple(np.zeros(shape, np.int32) for shape in shapes))
        for name, shapes in group_shapes(config).items()
    }

    def part(chosen):
        latents = tuple(np.zeros((len(chosen), *size), np.int32) for size in config.level_sizes)
        return CodedSlice(config, chosen, latents, nets)

    names = tuple("abcdefg")
    dataset = CodedDataset((part(labels[:100]), part(labels[100:])), names, (0.5,), (0.25,))
    found = ddr.decode(ddr.encode(dataset), coder=reader)
    assert found.dataset.labels.tolist() == labels.tolist()
    share = np.bincount(labels) / 300
    entropy = -300 * (share * np.log2(share)).sum()
    assert entropy < found.rate.labels < 1.1 * entropy + 64
    # In order they cost nothing.
    ordered = CodedDataset((part(np.sort(labels)),), names, (0.5,), (0.25,))
    assert ddr.rate(ordered).labels == 0


def test_soft_labels_come_back(small):
    soft = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float16)
    found = ddr.decode(ddr.encode(replace(small, soft_labels=soft))).dataset
    assert found.soft_labels.dtype == np.float16 and (found.soft_labels == soft).all()
    soft[0, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        ddr.encode(replace(small, soft_labels=soft))


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hints": {"lr": float("nan")}}, "hints and names must be JSON values"),
        ({"hints": {"net": object()}}, "hints and names must be JSON values"),
        ({"classes": ("a", "\ud800", "c")}, "hints and names must be JSON values"),
        ({"mean": (0.5,)}, "mean must be 3 finite numbers"),
        ({"std": (0.5, 0.5, float("inf"))}, "JSON values|std must be"),
    ],
)
def test_what_cannot_be_read_again_is_not_written(coded, tmp_path, change, message):
    path = tmp_path / "x.ddr"
    ddr.write(coded, path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=message):
        ddr.write(replace(coded, **change), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.ddr"]


def test_names_and_hints_come_back(coded):
    hints = {"network": "convnet3", "epochs": 1000, "augmentation": ["color", "crop"], "ölig": None}
    dataset = replace(coded, classes=("Ähre", "b|c", "0"), hints=hints, mean=(0.1, 0.25, 1 / 3))
    found = ddr.decode(ddr.encode(dataset)).dataset
    assert_same(dataset, found)
    numbered = replace(coded, classes=("0", "1", "2"))
    assert_same(numbered, ddr.decode(ddr.encode(numbered)).dataset)


def test_not_a_file(coded, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        ddr.read(tmp_path / "none.ddr")
    with pytest.raises(DataError, match="not a regular file"):
        ddr.read(tmp_path)
    with pytest.raises(DataError, match="this is a folder"):
        ddr.write(coded, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        ddr.write(coded, tmp_path / "file" / "x.ddr")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        ddr.read(tmp_path / "pipe")


def test_many_samples_of_many_levels_with_outliers(tmp_path, monkeypatch):
    """Latents far outside what the network expects; blocks of positions, cut anywhere in writing, leave no trace."""
    config, rng = CodecConfig(25, 17, 3, context=16, depth=3, widths=(4, 3)), np.random.default_rng(9)
    count = 60
    latents = []
    for size in config.level_sizes:
        level = np.rint(rng.laplace(0, 0.4, (count, *size))).astype(np.int32)
        far = rng.random(level.shape) < 0.005
        level[far] = rng.integers(-4095, 4096, far.sum())
        latents.append(level)
    nets = {
        name: CodedGroup(int(rng.integers(4, 9)), tuple(rng.integers(-9, 10, s).astype(np.int32) for s in shapes))
        for name, shapes in group_shapes(config).items()
    }
    part = CodedSlice(config, np.repeat(np.arange(3, dtype=np.int32), 20), tuple(latents), nets)
    dataset = CodedDataset((part,), ("0", "1", "2"), (0.5,) * 3, (0.25,) * 3)
    rate = ddr.write(dataset, tmp_path / "x.ddr")
    assert_same(dataset, ddr.read(tmp_path / "x.ddr"))
    assert 0 <= rate.latents - slice_bits(part) <= 66
    monkeypatch.setattr(integer_entropy, "_COLUMNS", 500)
    assert ddr.encode(dataset) == (tmp_path / "x.ddr").read_bytes()
