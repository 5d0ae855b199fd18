"""constriction's coder and the one in Python: the same bytes, and each reads what the other wrote."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from thurl.distillation import range_coder
from thurl.distillation.range_coder import PRECISION, make_decoder, make_encoder
from thurl.errors import DataError, MissingRequirementError, UsageError


def distributions(rng, count, symbols, skew):
    """Rows of excess frequencies; the more skew, the more symbols of frequency 1."""
    share = rng.random((count, symbols)) ** skew + 1e-12
    ends = np.floor(np.cumsum(share / share.sum(1, keepdims=True), axis=1) * (2**PRECISION - symbols))
    ends[:, -1] = 2**PRECISION - symbols
    return np.diff(ends, axis=1, prepend=0).astype(np.float32)


def draw(rng, excess, likely):
    """Symbols as they are likely, or any: those of frequency 1 cost 24 bits each."""
    if not likely:
        return rng.integers(0, excess.shape[1], len(excess))
    ends = np.cumsum(excess.astype(np.int64) + 1, axis=1)
    return (rng.integers(0, 2**PRECISION, (len(excess), 1)) >= ends).sum(1)


@pytest.mark.parametrize("likely", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_both_coders_write_the_same_bytes_and_read_each_other(seed, likely):
    rng = np.random.default_rng(seed)
    excess = distributions(rng, 120, int(rng.integers(2, 70)), float(rng.uniform(0, 60)))
    symbols, bits = draw(rng, excess, likely), rng.integers(0, 20, 60)
    values = rng.integers(0, np.left_shift(1, bits))
    written = {}
    for name in ("constriction", "reference"):
        encoder = make_encoder(name)
        encoder.encode(symbols[:50], excess[:50])
        encoder.encode_uniform(values, bits)
        encoder.encode(symbols[50:], excess[50:])
        written[name] = encoder.finish()
    assert written["constriction"] == written["reference"]
    for name in ("constriction", "reference"):
        decoder = make_decoder(written["reference"], name)
        assert (decoder.decode(excess[:50]) == symbols[:50]).all()
        assert (decoder.decode_uniform(bits) == values).all()
        assert (decoder.decode(excess[50:]) == symbols[50:]).all()
        decoder.check_end()
    cost = bits.sum() + (PRECISION - np.log2(excess[np.arange(120), symbols].astype(float) + 1)).sum()
    assert cost <= 8 * len(written["reference"]) <= cost + 66


def test_carries_run_through_many_words():
    """The last of three symbols again and again: the lower end of the interval stays just below a power of two."""
    excess = np.array([[0, 2**PRECISION - 5, 2]], np.float32)
    for pattern in ([2] * 40 + [1], [2] * 40 + [0], [1] * 3 + [2] * 25 + [0] * 9):
        symbols, rows = np.array(pattern), np.repeat(excess, len(pattern), axis=0)
        written = []
        for name in ("constriction", "reference"):
            encoder = make_encoder(name)
            encoder.encode(symbols, rows)
            written.append(encoder.finish())
        assert written[0] == written[1]
        assert make_decoder(written[1], "reference").decode(rows).tolist() == pattern


@pytest.mark.parametrize("name", ["constriction", "reference"])
def test_nothing_written_is_nothing(name):
    encoder = make_encoder(name)
    encoder.encode(np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
    encoder.encode_uniform(np.zeros(2, np.int64), np.zeros(2, np.int64))
    assert encoder.finish() == b""
    decoder = make_decoder(b"", name)
    assert decoder.decode(np.zeros((0, 4), np.float32)).tolist() == []
    assert decoder.decode_uniform(np.zeros(2, np.int64)).tolist() == [0, 0]
    decoder.check_end()


@pytest.mark.parametrize("name", ["constriction", "reference"])
def test_bytes_that_no_encoder_writes_are_refused(name):
    row = np.full((4, 2), 2 ** (PRECISION - 1) - 1, np.float32)
    with pytest.raises(DataError, match="no encoder writes"):
        make_decoder(b"\xff" * 16, name).decode(row)
    with pytest.raises(DataError, match="no encoder writes"):
        make_decoder(b"\xff" * 16, name).decode_uniform(np.array([3]))
    with pytest.raises(DataError, match="multiple of 4"):
        make_decoder(b"\0" * 6, name)
    decoder = make_decoder(b"\1\2\3\0" * 9, name)
    decoder.decode(row)
    with pytest.raises(DataError, match="left over"):
        decoder.check_end()


def test_unknown_coder():
    with pytest.raises(UsageError, match="'fast' must be one of auto, constriction, reference"):
        make_encoder("fast")


@pytest.fixture
def fresh():
    """The choice of a coder is made once; here it is made anew before and after."""
    range_coder._why_not_fast.cache_clear()
    yield
    range_coder._why_not_fast.cache_clear()


def test_without_constriction_python_takes_over(fresh, monkeypatch):
    monkeypatch.setattr(range_coder.importlib.util, "find_spec", lambda name: None)
    assert isinstance(make_encoder(), range_coder.ReferenceEncoder)
    assert isinstance(make_decoder(b""), range_coder.ReferenceDecoder)
    with pytest.raises(MissingRequirementError, match=r"pip install .thurl\[distillation\]"):
        make_encoder("constriction")


def test_a_constriction_with_other_bytes_is_not_used(fresh, monkeypatch, caplog):
    plain = range_coder._FastEncoder.finish
    monkeypatch.setattr(range_coder._FastEncoder, "finish", lambda self: plain(self)[::-1])
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_encoder(), range_coder.ReferenceEncoder)
        assert isinstance(make_encoder(), range_coder.ReferenceEncoder)
    assert caplog.text.count("writes other bytes") == 1
