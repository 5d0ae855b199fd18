"""Steps of the networks: the official search's, and of all pairs the cheapest that hold."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from thurl.distillation.codec import LatentCodec
from thurl.distillation.coded import GROUPS
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.post_quantisation import LARGEST_EXPONENT, post_quantise
from thurl.distillation.rate import best_golomb
from thurl.errors import DataError, UsageError


@pytest.mark.parametrize("case", range(3))
def test_the_search_is_the_official_one(official, golden, case):
    (search,) = json.loads((golden / "ddruo_postquant.json").read_text())
    wanted = search["results"][case]
    codec, _, _ = official("cifar")
    (found,) = post_quantise(codec, wanted["mse_err"]).slices
    steps = {name: -found.groups[name].exponent for name in GROUPS}
    assert steps == {
        f"{net}_{kind}": step
        for net, kinds in wanted["q_step_log2"].items()
        for kind, step in kinds.items()
        if f"{net}_{kind}" in GROUPS
    }
    assert found.golomb == {
        f"{net}_{kind}": order for net, kinds in wanted["exp_golomb_k"].items() for kind, order in kinds.items()
    }
    pixels = codec.samples * codec.config.height * codec.config.width
    assert found.total_bits / pixels == pytest.approx(wanted["total_bpp"], rel=1e-4)
    assert found.latent_bits == pytest.approx(wanted["latent_bits_after"], rel=1e-4)
    for net, bpp in wanted["components_bpp"].items():
        if net != "grids":
            bits = sum(value for name, value in found.net_bits.items() if name.startswith(net))
            assert bits / pixels == pytest.approx(bpp, rel=1e-9)
    assert found.mse <= wanted["mse_err"]


def tried(values, exponent):
    """Dequantised tensors, integers and bits with the best code, by the definition."""
    integers = [(value.double() * 2.0**exponent).round() for value in values]
    bits = best_golomb([value.numpy().astype(np.int64) for value in integers])[1]
    return [(value / 2.0**exponent).float() for value in integers], bits


def test_no_pair_that_holds_is_cheaper():
    """All pairs decoded, for a codec that is small enough for that; more samples than are looked at together."""
    codec = LatentCodec(CodecConfig(4, 5, 1, context=8, depth=1, widths=(3,)), 1, 18)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    limit = 2e-3
    (found,) = post_quantise(codec, limit).slices
    before = codec.hard()
    trial = codec.select(torch.tensor([0]))
    best = None
    synthesis = [p.detach() for p in codec.synthesis]
    pairs = itertools.product(*(range(LARGEST_EXPONENT[f"synthesis_{kind}"], -1, -1) for kind in ("weight", "bias")))
    for weight, bias in pairs:
        weights, weight_bits = tried(synthesis[::2], weight)
        biases, bias_bits = tried(synthesis[1::2], bias)
        with torch.no_grad():
            for parameter, value in zip(
                trial.synthesis, itertools.chain(*zip(weights, biases, strict=True)), strict=True
            ):
                parameter.copy_(value)
        error = (trial.hard().images - before.images).square().mean().item()
        if error <= limit and (best is None or weight_bits + bias_bits < best[0]):
            best = (weight_bits + bias_bits, weight, bias)
    assert best is not None
    bits = found.net_bits["synthesis_weight"] + found.net_bits["synthesis_bias"]
    assert (bits, found.groups["synthesis_weight"].exponent, found.groups["synthesis_bias"].exponent) == best


def test_every_slice_is_searched_for_itself(codec):
    together = post_quantise(codec, 1e-4)
    kept = []
    for s in range(codec.slices):
        (alone,) = post_quantise(codec.select(torch.tensor([s])), 1e-4).slices
        mine = together.slices[s]
        assert (mine.golomb, mine.net_bits) == (alone.golomb, alone.net_bits)
        for name in GROUPS:
            assert mine.groups[name].exponent == alone.groups[name].exponent
            for ours, theirs in zip(mine.groups[name].values, alone.groups[name].values, strict=True):
                assert np.array_equal(ours, theirs)
        kept.append(mine)
    changed = together.apply(codec).hard()
    for s, part in enumerate(kept):
        mse = (changed.images[s] - codec.hard().images[s]).square().mean().item()
        assert mse == pytest.approx(part.mse, rel=1e-3) and mse <= 1e-4
        assert changed.bits[s].sum().item() == pytest.approx(part.latent_bits, rel=1e-5)
        assert part.net_bits == {name: best_golomb(list(part.groups[name].values))[1] for name in GROUPS}


def test_the_codec_goes_on_training_what_the_optimiser_holds(codec):
    """Officially the search replaces the networks, and from then on only latents train."""
    optimizer = torch.optim.Adam(codec.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in codec.parameters()]
    held = list(codec.parameters())
    nets = post_quantise(codec, 1e-3)
    nets.apply(codec)
    assert all(a is b for a, b in zip(held, codec.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, codec.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in codec.parameters())
    output = codec(codec.draw_noise("gaussian", 0.25, torch.Generator().manual_seed(0)))
    (output.images.square().sum() + output.bits.sum()).backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, codec.parameters(), strict=True))


def test_more_error_buys_fewer_bits(codec):
    totals = [sum(part.total_bits for part in post_quantise(codec, mse).slices) for mse in (1e-6, 1e-4, 1e-2)]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]


def test_what_cannot_be_quantised_is_named(codec):
    for mse in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="max_mse"):
            post_quantise(codec, mse)
    with pytest.raises(UsageError) as caught:
        post_quantise(codec, 1e-30)
    assert len(caught.value.problems) == codec.slices and "max_mse 1e-30" in caught.value.problems[0]
    with torch.no_grad():
        codec.arm[0][1, 0, 0] = 1e6
    with pytest.raises(UsageError, match="slice 1, entropy network: no step"):
        post_quantise(codec, 1e-4)
    with torch.no_grad():
        codec.arm[0][1, 0, 0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        post_quantise(codec, 1e-4)
