"""Integer Laplace tables are a part of the format: fixed to the bit, and close to the distribution they stand for."""

from __future__ import annotations

import importlib.util
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import laplace as exact

from thurl.distillation import laplace
from thurl.distillation.golomb import decode_golomb, encode_golomb, golomb_bits
from thurl.distillation.laplace import (
    LOWEST_SCALE,
    REACH,
    SCALES,
    decode_differences,
    difference_bits,
    encode_differences,
    excess_table,
    table_row,
)  # fmt: skip
from thurl.distillation.net_stream import choose_code
from thurl.distillation.range_coder import make_decoder, make_encoder
from thurl.errors import DataError


ROOT = Path(__file__).resolve().parents[2]


def test_the_factors_are_what_the_script_computes():
    spec = importlib.util.spec_from_file_location("laplace_factors", ROOT / "scripts" / "laplace_factors.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert json.loads(script.FILE.read_text(encoding="utf-8")) == script.factors()
    scales = np.exp((np.arange(SCALES) + LOWEST_SCALE) / 16)
    assert np.abs(laplace._factors() / 2**32 - np.exp(-1 / (64 * scales))).max() < 1e-9


def test_the_table_never_changes():
    """Other numbers, and no file written before could be read. docs/ddr_format.md names this checksum."""
    table = excess_table()
    assert table.shape == (64 * 154, 34) and table.min() == 255
    assert (table.astype(np.int64).sum(1) == 2**24 - 34).all()
    assert (table == table.astype(np.int32)).all()
    checksum = zlib.crc32((table.astype("<i4") + 1).tobytes())
    assert f"{checksum:08x}" in (ROOT / "docs" / "ddr_format.md").read_text(encoding="utf-8")


def test_frequencies_are_those_of_the_laplace_distribution():
    rng = np.random.default_rng(0)
    edges = np.arange(-REACH, REACH + 2) - 0.5
    for fraction, scale in zip(rng.integers(-32, 32, 60), rng.integers(0, SCALES, 60), strict=True):
        wanted = np.diff(exact.cdf(edges, fraction / 64, np.exp((scale + LOWEST_SCALE) / 16)))
        found = (excess_table()[table_row(fraction, scale)].astype(float) + 1) / 2**24
        wanted = np.append(wanted, 1 - wanted.sum()) * (1 - 34 / 2**16) + 2**-16
        assert np.abs(found - wanted).max() < 2e-6


@pytest.mark.parametrize("name", ["constriction", "reference"])
@pytest.mark.parametrize("spread", [0.3, 4.0, 60.0, 3000.0])
def test_differences_come_back_with_escapes_behind_their_group(name, spread):
    rng = np.random.default_rng(3)
    count, group = 210, 30
    differences = np.clip(np.rint(rng.laplace(0, spread, count)), -8190, 8190).astype(np.int64)
    differences[:4] = [REACH, -REACH, REACH + 1, -REACH - 1]
    rows = table_row(rng.integers(-32, 32, count), rng.integers(0, SCALES, count))
    encoder = make_encoder(name)
    encode_differences(encoder, differences, rows, group)
    data = encoder.finish()
    decoder = make_decoder(data, name)
    found = [decode_differences(decoder, rows[i : i + group]) for i in range(0, count, group)]
    assert np.concatenate(found).tolist() == differences.tolist()
    decoder.check_end()
    assert 0 <= 8 * len(data) - difference_bits(differences, rows).sum() <= 66


def test_golomb_bits_are_those_of_the_official_code(golden):
    data = np.load(golden / "ddruo_quantizer.npz", allow_pickle=False)
    values = data["eg_symbols"]
    for order in range(13):
        size = np.abs(values).astype(np.int64)
        assert (golomb_bits(size, order) + (size != 0) == data["eg_each_bits_k0_12"][order]).all()


def test_golomb_codes_cost_what_they_say():
    rng = np.random.default_rng(5)
    order = rng.integers(0, 13, 4000)
    values = rng.integers(0, 2 ** rng.integers(1, 17, 4000))
    encoder = make_encoder()
    encode_golomb(encoder, values, order)
    data = encoder.finish()
    assert (decode_golomb(make_decoder(data), order) == values).all()
    assert 0 <= 8 * len(data) - golomb_bits(values, order).sum() <= 66
    with pytest.raises(DataError, match="the code ends"):
        encode_golomb(make_encoder(), np.array([2**19]), np.array([0]))


@pytest.mark.parametrize("spread", [0.05, 1.0, 12.0, 300.0, 4000.0])
def test_the_cheaper_code_of_weights_is_close_to_the_entropy(spread):
    rng = np.random.default_rng(1)
    values = np.clip(np.rint(rng.laplace(0, spread, 3000)), -65535, 65535).astype(np.int64)
    bits = choose_code(values)[2]
    best = -np.log2(exact.cdf(values + 0.5, 0, spread) - exact.cdf(values - 0.5, 0, spread)).sum()
    assert best * 0.99 < bits < best * 1.02 + 20


def test_each_code_of_weights_is_chosen_where_it_is_cheaper():
    rng = np.random.default_rng(2)
    assert choose_code(np.rint(rng.laplace(0, 3, 500)).astype(np.int64))[0] is True
    # Every size equally often down to the bit suits no Laplace distribution.
    assert choose_code((2.0 ** rng.uniform(0, 15.9, 500)).astype(np.int64))[0] is False
