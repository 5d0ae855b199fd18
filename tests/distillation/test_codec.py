"""The trainable codec against the official one, against a plain slice, and its promises."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from thurl.distillation.codec import LatentCodec, Noise, latent_bits
from thurl.distillation.entropy import contexts, laplace_bits, predict
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.post_quantisation import post_quantise
from thurl.distillation.synthesis import upsample_pyramid
from thurl.errors import DataError, UsageError


NETS = (("grids", "grids"), ("arm", "ap"), ("upsampling", "up"), ("synthesis", "sp"))


@pytest.fixture(scope="module")
def plain_slice():
    path = Path(__file__).parents[2] / "benchmarks" / "distillation_codec.py"
    spec = importlib.util.spec_from_file_location("distillation_codec_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PlainSlice


def loss(images, bits, seed=3):
    """Pictures and bits weighted at random, so that every gradient is its own."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(tensor.shape, generator=generator).to(tensor) for tensor in (images, bits)]
    return (weights[0] * images).sum() + 0.01 * (weights[1] * bits).sum()


def gradients(codec, noise, **options):
    codec.zero_grad(set_to_none=True)
    output = codec(noise, 0.3, **options)
    loss(output.images, output.bits).backward()
    return [parameter.grad.clone() for parameter in codec.parameters()]


# --- the official numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar", "gray28"])
def test_hard_decoding_is_the_official_one(official, name):
    codec, tensors, numbers = official(name)
    wanted = {key.removeprefix("expect.hard."): value for key, value in tensors.items()}
    symbols = codec.symbols()
    assert torch.equal(torch.cat([level.flatten() for level in symbols]), wanted["latent_flat"])
    levels = [level.float() for level in symbols]
    features = contexts(levels, codec.config.context)
    assert torch.equal(features[0].T[:64], wanted["context_first64"])
    mean, scale = predict(features, codec.arm)
    torch.testing.assert_close(mean[0], wanted["mu"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scale[0], wanted["scale"], atol=1e-5, rtol=1e-4)
    bits = laplace_bits(wanted["latent_flat"].float(), mean[0], scale[0])
    assert bits.sum().item() == pytest.approx(numbers["bits_total"], rel=1e-4)
    sizes = [level.numel() for level in levels]
    assert [part.sum().item() for part in bits.split(sizes)] == pytest.approx(numbers["bits_per_level"], rel=1e-4)
    upsampled = upsample_pyramid(levels, codec.upsampling[0][:, 0, 0])
    torch.testing.assert_close(upsampled[0].transpose(0, 1), wanted["upsampled"], atol=1e-5, rtol=1e-4)
    output = codec.hard()
    torch.testing.assert_close(output.images[0], wanted["image"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((output.images[0] * 65535).round() / 65535, wanted["image16"], atol=3e-5, rtol=1e-4)
    bpp = output.bits.sum().item() / (codec.samples * codec.config.height * codec.config.width)
    assert bpp == pytest.approx(numbers["bpp"], rel=1e-4)


@pytest.mark.parametrize("name", ["cifar", "gray28"])
def test_a_training_step_is_the_official_one(official, name):
    codec, tensors, numbers = official(name)
    sizes = [grid.numel() for grid in codec.grids]
    parts = tensors["soft.noise_flat"].split(sizes)
    noise = Noise(tuple(part.view_as(grid) for part, grid in zip(parts, codec.grids, strict=True)))
    soft = numbers["soft"]
    output = codec(noise, soft["temperature"])
    torch.testing.assert_close(output.images[0], tensors["expect.soft.image"], atol=1e-5, rtol=1e-4)
    assert output.bits.sum().item() == pytest.approx(tensors["expect.soft.rate_bits"].sum().item(), rel=1e-4)
    bpp = output.bits.sum() / (codec.samples * codec.config.height * codec.config.width)
    utility = (tensors["soft.dL_dimage"] * output.images[0]).sum()
    (soft["lr_it"] * utility + soft["ldb_it"] * soft["ldb"] * bpp).backward()
    for ours, theirs in NETS:
        for index, parameter in enumerate(getattr(codec, ours)):
            wanted = tensors[f"expect.soft.grad.{theirs}.{index}"]
            error = (parameter.grad[0].view_as(wanted) - wanted).abs().max()
            assert error <= 1e-3 * wanted.abs().max(), (ours, index)


# --- slices together and apart ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        CodecConfig(9, 12, 3, context=8, depth=2, widths=(5,)),
        CodecConfig(7, 5, 1, context=24, depth=1, widths=(4, 3)),
        CodecConfig(64, 66, 3, context=32, depth=3, widths=(6,)),
        CodecConfig(2, 3, 1, context=16, depth=1, widths=(2,)),
    ],
)
def test_slices_together_are_slices_apart(plain_slice, config):
    generator = torch.Generator().manual_seed(0)
    codec = LatentCodec(config, 3, 2, generator=generator)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    noise = codec.draw_noise("gaussian", 0.25, generator)
    output = codec(noise, 0.3)
    found = gradients(codec, noise)
    plain = [plain_slice(codec, s) for s in range(3)]
    pairs = [module([n[s] for n in noise.levels], 0.3) for s, module in enumerate(plain)]
    images, bits = (torch.stack(values) for values in zip(*pairs, strict=True))
    torch.testing.assert_close(output.images, images, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.bits, bits, atol=1e-4, rtol=1e-5)
    loss(images, bits).backward()
    for index, grad in enumerate(found):
        wanted = torch.stack([list(module.parameters())[index].grad for module in plain])
        torch.testing.assert_close(grad, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=1e-3)


def test_a_slice_has_nothing_of_the_others(codec):
    before = codec.hard()
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter[1] += 0.5
    after = codec.hard()
    assert torch.equal(before.images[[0, 2]], after.images[[0, 2]])
    assert torch.equal(before.bits[[0, 2]], after.bits[[0, 2]])
    assert not torch.equal(before.images[1], after.images[1])


def test_every_parameter_gets_a_gradient(codec):
    found = gradients(codec, codec.draw_noise("kumaraswamy", 2.0, torch.Generator().manual_seed(0)))
    assert all((grad.flatten(1) != 0).any(dim=1).all() for grad in found)


# --- memory, precision, phases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("latents_at_once", [1, 300, 10**6])
def test_decoding_in_parts_is_decoding_at_once(codec, latents_at_once):
    noise = codec.draw_noise("gaussian", 0.25, torch.Generator().manual_seed(0))
    whole, parts = codec(noise), codec(noise, latents_at_once=latents_at_once)
    torch.testing.assert_close(parts.images, whole.images)
    torch.testing.assert_close(parts.bits, whole.bits)
    for ours, wanted in zip(
        gradients(codec, noise, latents_at_once=latents_at_once), gradients(codec, noise), strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    hard = codec.hard()
    torch.testing.assert_close(codec.hard(latents_at_once=latents_at_once).images, hard.images)


def test_pictures_as_a_leaf_give_the_same_gradients(codec):
    """The official way to save memory: decode, gradient of the loss by the pictures, decode again."""
    noise = codec.draw_noise("gaussian", 0.25, torch.Generator().manual_seed(0))
    wanted = gradients(codec, noise)
    with torch.no_grad():
        output = codec(noise, latents_at_once=1)
    leaves = [tensor.clone().requires_grad_() for tensor in (output.images, output.bits)]
    loss(*leaves).backward()
    codec.zero_grad()
    again = codec(noise, latents_at_once=1)
    torch.autograd.backward([again.images, again.bits], [leaf.grad for leaf in leaves])
    for parameter, grad in zip(codec.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-5)


def test_parts_keep_little_for_backward(codec):
    noise = codec.draw_noise("gaussian", 0.25, torch.Generator().manual_seed(0))
    kept = {}
    for latents_at_once in (None, 1):
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = codec(noise, latents_at_once=latents_at_once)
        kept[latents_at_once] = sum(sizes.values())
        del output
    assert kept[1] < kept[None] / 3


def test_straight_through_trains_what_is_shipped(codec):
    output, hard = codec(None), codec.hard()
    assert torch.equal(output.images, hard.images) and torch.equal(output.bits, hard.bits)
    assert all((grad.flatten(1) != 0).any(dim=1).all() for grad in gradients(codec, None))


def test_gradients_are_those_of_finite_differences():
    """In double precision with fixed noise: single latents, and a direction through each tensor of the networks."""
    generator = torch.Generator().manual_seed(1)
    codec = LatentCodec(CodecConfig(6, 5, 3, context=8, depth=2, widths=(4,)), 2, 2).double()
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    noise = codec.draw_noise("gaussian", 0.25, generator)
    found = dict(zip([name for name, _ in codec.named_parameters()], gradients(codec, noise), strict=True))

    @torch.no_grad()
    def objective():
        output = codec(noise, 0.3)
        return loss(output.images, output.bits).item()

    for name, parameter in codec.named_parameters():
        directions = [torch.randn(parameter.shape, generator=generator).double()]
        if name.startswith("grids"):
            places = torch.randint(parameter.numel(), (3,), generator=generator)
            directions = [torch.zeros_like(parameter).flatten().index_fill(0, i, 1).view_as(parameter) for i in places]
        for direction in directions:
            with torch.no_grad():
                values = []
                for step in (1e-6, -2e-6):
                    parameter += step * direction
                    values.append(objective())
                parameter += 1e-6 * direction
            numeric = (values[0] - values[1]) / 2e-6
            assert numeric == pytest.approx((found[name] * direction).sum().item(), rel=1e-4, abs=1e-5), name


def test_autocast_changes_nothing_and_half_precision_is_refused(codec):
    noise = codec.draw_noise("gaussian", 0.25, torch.Generator().manual_seed(0))
    wanted = codec(noise)
    with torch.autocast("cpu", torch.bfloat16):
        found = codec(noise)
    assert torch.equal(found.images, wanted.images) and torch.equal(found.bits, wanted.bits)
    with pytest.raises(UsageError, match="half precision"):
        copy.deepcopy(codec).half().hard()


def test_state_goes_round(codec, tmp_path):
    other = LatentCodec(codec.config, codec.slices, codec.samples)
    other.load_state_dict(codec.state_dict())
    assert torch.equal(other.hard().images, codec.hard().images)
    assert {name.split(".")[0] for name in codec.state_dict()} == {"grids", "arm", "upsampling", "synthesis"}
    chosen = codec.select(torch.tensor([2, 0]))
    assert torch.equal(chosen.hard().images, codec.hard().images[[2, 0]])


def test_noise_comes_from_its_generator_alone(codec):
    state = torch.get_rng_state()
    first, second = (codec.draw_noise("kumaraswamy", 2.0, torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.levels, second.levels, strict=True))
    assert [n.shape for n in first.levels] == [g.shape for g in codec.grids]
    kept = [level.clone() for level in first.levels]
    codec(first)
    codec.select(torch.tensor([0]))
    assert all(torch.equal(a, b) for a, b in zip(first.levels, kept, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UsageError, match="noise 'uniform'"):
        codec.draw_noise("uniform", 1.0)
    with pytest.raises(UsageError, match="noise of shapes"):
        codec(Noise(first.levels[:-1]))


# --- integers --------------------------------------------------------------------------------------------------------


def test_integers_go_round(codec):
    nets = post_quantise(codec, 1e-3)
    labels = np.array([[0, 0], [1, 1], [2, 0]])
    slices = codec.coded(labels, nets)
    assert [part.labels.tolist() for part in slices] == labels.tolist()
    again = LatentCodec.from_coded(slices)
    for ours, wanted in zip(again.symbols(), codec.symbols(), strict=True):
        assert torch.equal(ours, wanted)
    quantised = nets.apply(codec)
    assert torch.equal(again.hard().images, quantised.hard().images)
    bits = latent_bits([level.float() for level in again.symbols()], list(again.arm))
    assert torch.equal(bits, quantised.hard().bits)
    assert all(
        np.array_equal(a, b) for a, b in zip(again.coded(labels, nets)[1].latents, slices[1].latents, strict=True)
    )
    with pytest.raises(UsageError, match="labels of shape"):
        codec.coded(labels[:2], nets)
    with pytest.raises(UsageError, match="labels of shape"):
        codec.coded(labels.astype(float), nets)
    with pytest.raises(UsageError, match="labels -1 to 2"):
        codec.coded(torch.tensor([[0, 0], [1, -1], [2, 0]]), nets)
    with pytest.raises(UsageError, match="networks of 3 slices"):
        codec.select(torch.tensor([0])).coded(labels[:1], nets)
    with pytest.raises(UsageError, match="several shapes"):
        LatentCodec.from_coded(())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e10])
def test_a_diverged_latent_is_an_error(codec, value):
    with torch.no_grad():
        codec.grids[1][0, 0, 0, 0] = value
    with pytest.raises(DataError, match="level 1: latents"):
        codec.symbols()


def test_sizes_must_be_positive(codec):
    with pytest.raises(UsageError, match="slices of"):
        LatentCodec(codec.config, 0, 1)
    with pytest.raises(UsageError, match="latents_at_once"):
        codec(None, latents_at_once=0)
