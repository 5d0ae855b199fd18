"""Accounting against the numbers of the paper and of the official tools."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from thurl.distillation.rate import (
    best_golomb,
    bits_per_class,
    exp_golomb_bits,
    kib,
    label_bits,
    pixel_bits,
    rate_multiplier,
)


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden / "ddruo_bpc.json").read_text())


def of(cases, kind):
    found = [case for case in cases if case["kind"] == kind]
    assert found
    return found


def test_every_kind_of_case_is_used(cases):
    kinds = Counter(case["kind"] for case in cases)
    assert set(kinds) == {"pixels", "codec_bpp", "files", "exp_golomb", "labels", "shared_decoder", "lambda"}


def test_pixels(cases):
    for case in of(cases, "pixels"):
        bits = pixel_bits(case["ipc"], case["H"], case["W"], case["ch"], case["bits_per_value"])
        assert bits == case["expect_bpc"] and kib(bits) == case["expect_KiB_per_class"]


def test_codec(cases):
    for case in of(cases, "codec_bpp"):
        found = bits_per_class(case["bpp"], case["spc"], case["H"], case["W"])
        assert found == pytest.approx(case["expect_bpc"], rel=1e-6)
        shares = case["components"]
        assert sum(shares.values()) == pytest.approx(case["bpp"], rel=case["tol_rel"])
        assert shares["grids"] / case["bpp"] == pytest.approx(case["expect_latent_fraction"], rel=1e-6)


def test_files_of_the_official_demonstration(cases):
    (case,) = of(cases, "files")
    parts = case["bytes"]
    total = parts["header"] + sum(parts["latents"]) + sum(parts["nets"])
    assert total == case["expect_total_bytes"]
    pixels = case["n_images"] * case["H"] * case["W"]
    assert 8 * total / pixels == pytest.approx(case["expect_bpp"], rel=1e-9)
    found = bits_per_class(case["expect_bpp"], case["n_images"], case["H"], case["W"])
    assert found == pytest.approx(case["expect_bpc_bits"], rel=1e-9)


def test_labels_shared_decoders_and_lambda(cases):
    soft, hard = of(cases, "labels")
    found = label_bits(soft["samples_per_class"], soft["num_classes"], soft["bits_per_logit"])
    assert found == soft["expect_extra_bpc"]
    assert label_bits(96, 10, 0) == hard["expect_extra_bpc"]
    (shared,) = of(cases, "shared_decoder")
    total = shared["net_bits"] + shared["latent_bits_total"]
    assert total / shared["num_classes"] == shared["expect_bpc"]
    for case in of(cases, "lambda")[0]["cases"]:
        assert rate_multiplier(case["lr_it"], case["ldb_it"], case["ldb"]) == pytest.approx(case["expect"], rel=1e-9)


def test_codes_of_the_official_tool(cases, golden):
    (case,) = of(cases, "exp_golomb")
    found = [int(exp_golomb_bits(case["symbols"], order).sum()) for order in range(len(case["expect_bits_per_k"]))]
    assert found == case["expect_bits_per_k"]
    assert best_golomb([np.array(case["symbols"])]) == (case["expect_best_k"], min(found))
    with np.load(golden / "ddruo_quantizer.npz") as file:
        symbols, each, totals = file["eg_symbols"], file["eg_each_bits_k0_12"], file["eg_total_bits_k0_12"]
    for order in range(13):
        bits = exp_golomb_bits(symbols, order)
        assert np.array_equal(bits, each[order]) and bits.sum() == totals[order]


def test_codes_are_exact_at_powers_of_two():
    """Where a logarithm in floating point may fall on the wrong side."""
    for power in range(1, 40):
        values = np.array([2**power - 2, 2**power - 1, 2**power])
        expected = [2 * (int(v + 1).bit_length() - 1) + 1 + (v != 0) for v in values]
        assert exp_golomb_bits(values, 0).tolist() == expected


def test_the_lower_order_wins_a_tie():
    assert best_golomb([np.zeros(3, np.int32)]) == (0, 3)
