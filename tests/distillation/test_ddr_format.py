"""docs/ddr_format.md is enough to write a reader: one that shares no code with the package reads the same."""

from __future__ import annotations

import importlib.util
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

import thurl.distillation
from thurl.distillation import ddr
from thurl.distillation.coded import GROUPS, CodedDataset, CodedGroup, CodedSlice, group_shapes
from thurl.distillation.ddr_header import DICTIONARY
from thurl.distillation.geometry import CodecConfig


HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "ddr_format.md").read_text(encoding="utf-8")
FACTORS = json.loads((Path(thurl.distillation.__file__).parent / "laplace_factors.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain():
    spec = importlib.util.spec_from_file_location("plain_ddr", HERE / "plain_ddr.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_read(plain, dataset):
    data = ddr.encode(dataset)
    pictures, labels, fits = plain.read(data, DICTIONARY, FACTORS)
    wanted = ddr.decode(data).images()
    assert pictures == [image.tobytes() for image in wanted]
    assert labels == dataset.labels.tolist()
    assert fits
    assert len(np.unique(wanted)) > 5


def test_the_page_and_the_package_agree_on_the_dictionary():
    found = re.search(r"the (\d+)\s+bytes of `DICTIONARY`.*?CRC-32 is `([0-9a-f]{8})`", PAGE, re.DOTALL)
    assert found.groups() == (str(len(DICTIONARY)), f"{zlib.crc32(DICTIONARY):08x}")


def test_a_reader_written_from_the_page_reads_slices_and_implied_labels(plain, coded):
    assert_read(plain, coded)


@pytest.mark.parametrize("context", [16, 24, 32])
def test_it_reads_outliers_wide_weights_and_coded_labels(plain, context):
    config, rng = CodecConfig(5, 7, 1, context=context, depth=1, widths=(3, 2)), np.random.default_rng(context)
    latents = [np.rint(rng.laplace(0, 1, (4, *size))).astype(np.int32) for size in config.level_sizes]
    latents[0][1, 2, 3], latents[1][0, 1, 1], latents[0][3, 0, 0] = 300, -60, 17
    spreads = dict(zip(GROUPS, (6, 40, 300, 20, 3000), strict=True))
    exponents = dict(zip(GROUPS, (6, 5, 11, 8, 16), strict=True))
    nets = {
        name: CodedGroup(
            exponents[name], tuple(np.rint(rng.laplace(0, spreads[name], shape)).astype(np.int32) for shape in shapes)
        )
        for name, shapes in group_shapes(config).items()
    }
    # Positive numbers keep the ReLUs open.
    for name in ("synthesis_weight", "synthesis_bias"):
        nets[name] = CodedGroup(exponents[name], tuple(np.abs(values) for values in nets[name].values))
    part = CodedSlice(config, np.array([0, 0, 1, 1], np.int32), tuple(latents), nets)
    dataset = CodedDataset((part,), ("0", "1", "2"), (0.5,), (0.25,))
    assert_read(plain, dataset)
    # Enough labels in no order that coding them is shorter.
    tiny = CodecConfig(2, 2, 1, context=8, depth=1, widths=(1,))
    grids = tuple(rng.integers(-1, 2, (40, *size)).astype(np.int32) for size in tiny.level_sizes)
    small = {
        name: CodedGroup(2, tuple(rng.integers(1, 5, shape).astype(np.int32) for shape in shapes))
        for name, shapes in group_shapes(tiny).items()
    }
    labels = rng.integers(0, 3, 40).astype(np.int32)
    mixed = CodedDataset((CodedSlice(tiny, labels, grids, small),), ("a", "b", "c"), (0.5,), (0.25,))
    assert ddr.rate(mixed).labels > 0
    pictures, found, fits = plain.read(ddr.encode(mixed), DICTIONARY, FACTORS)
    assert found == labels.tolist() and fits and len(pictures) == 40
