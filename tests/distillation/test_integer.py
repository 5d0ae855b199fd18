"""Whole-number networks: exact against Python's integers, close to the float networks, causal, guarded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.numpy import load_file

from thurl.distillation.coded import GROUPS, CodedGroup, CodedSlice, group_shapes
from thurl.distillation.context import context_offsets
from thurl.distillation.fixed_point import LARGEST_LATENT, Layer
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.integer import decode_images, slice_bits
from thurl.distillation.integer_entropy import EntropyNetwork, LevelPlan, level_blocks
from thurl.distillation.laplace import FRACTIONS, LOWEST_SCALE, SCALES
from thurl.errors import DataError


CONFIGS = {
    "cifar": CodecConfig(32, 32, 3, context=16, depth=2, widths=(24,)),
    "gray28": CodecConfig(28, 28, 1, context=8, depth=2, widths=(40,)),
}
TENSORS = {"arm": "ap", "upsampling": "up", "synthesis": "sp"}


def golden_slice(golden, name, exponent=13):
    """A golden codec in integers, and the file's tensors."""
    data, config = load_file(golden / f"ddruo_codec_{name}.safetensors"), CONFIGS[name]
    latents = tuple(np.rint(data[f"grids.{i}"][:, 0] * 16).astype(np.int32) for i in range(config.levels))
    nets = {}
    for group in GROUPS:
        net, kind = group.split("_")
        count = len(getattr(config, f"{net}_shapes"))
        tensors = [data[f"{TENSORS[net]}.{i}"] for i in range(count)]
        chosen = [t for t in tensors if (t.ndim >= 2) == (kind == "weight")]
        nets[group] = CodedGroup(exponent, tuple(np.rint(t * 2.0**exponent).astype(np.int32) for t in chosen))
    return CodedSlice(config, np.zeros(len(latents[0]), np.int32), latents, nets), data


def tensor(coded, group, position):
    """A tensor of the networks as float64."""
    return torch.from_numpy(coded.nets[group].values[position].astype(np.float64)) * 2.0 ** -coded.nets[group].exponent


def float_images(coded):
    """The pictures as the float networks make them, float64 (samples, channels, H, W): as the official code does."""
    levels = [torch.from_numpy(level.astype(np.float64))[:, None] for level in coded.latents]
    x, kernel = levels[-1], tensor(coded, "upsampling_weight", 0)
    for level in levels[-2::-1]:
        n, c, h, w = x.shape
        padded = F.pad(x.reshape(n * c, 1, h, w), (4,) * 4, mode="replicate")
        x = F.conv_transpose2d(padded, kernel, stride=2)[:, :, 11:-11, 11:-11].reshape(n, c, 2 * h, 2 * w)
        x = torch.cat([level, x[:, :, : level.shape[2], : level.shape[3]]], dim=1)
    plain = len(coded.config.widths) + 1
    for i in range(plain + 2):
        weight, bias = tensor(coded, "synthesis_weight", i), tensor(coded, "synthesis_bias", i)
        if i < plain:
            x = F.conv2d(x, weight, bias)
        else:
            x = F.conv2d(F.pad(x, (1,) * 4, mode="replicate"), weight, bias) + x
        if i not in (plain - 1, plain + 1):
            x = x.relu()
    return x.numpy()


def python_images(coded):
    """The pictures by Python's integers, as docs/ddr_format.md describes them, pixel by pixel."""
    config = coded.config
    limit = 2**24 - 1

    def layer(group, i, inputs, residual=None):
        weights, biases = coded.nets[f"{group}_weight"], coded.nets.get(f"{group}_bias")
        w = weights.values[i].reshape(len(weights.values[i]), -1).astype(object)
        bits = 16
        total = (w * 2 ** (bits - weights.exponent)) @ inputs
        if biases is not None:
            total = total + biases.values[i].astype(object)[:, None] * 2 ** (12 + bits - biases.exponent)
        if residual is not None:
            total = total + residual * 2**bits
        return (total + 2 ** (bits - 1)) >> bits

    images = []
    for sample in range(len(coded.labels)):
        grids = [coded.latents[-1][sample].astype(object) * 4096]
        kernel = coded.nets["upsampling_weight"]
        k = kernel.values[0].reshape(8, 8).astype(object)
        for level in coded.latents[-2::-1]:
            height, width = level.shape[1:]
            bigger = []
            for grid in grids:
                h, w = grid.shape
                out = np.zeros((height, width), object)
                for y in range(height):
                    for x in range(width):
                        total = 0
                        for r in range(8):
                            for c in range(8):
                                if (y + 3 - r) % 2 == 0 and (x + 3 - c) % 2 == 0:
                                    a = min(max((y + 3 - r) // 2, 0), h - 1)
                                    b = min(max((x + 3 - c) // 2, 0), w - 1)
                                    total += k[r, c] * grid[a, b]
                        half = 2**kernel.exponent // 2
                        out[y, x] = min(max((total + half) >> kernel.exponent, -limit), limit)
                bigger.append(out)
            grids = [level[sample].astype(object) * 4096, *bigger]
        values = np.stack([grid.ravel() for grid in grids])
        plain = len(config.widths) + 1
        for i in range(plain):
            values = layer("synthesis", i, values)
            values = np.clip(values if i == plain - 1 else np.maximum(values, 0), -limit, limit)
        for i in (plain, plain + 1):
            grid = np.pad(
                values.reshape(config.channels, config.height, config.width), ((0, 0), (1, 1), (1, 1)), mode="edge"
            )
            windows = np.stack([
                grid[ch, a : a + config.height, b : b + config.width].ravel()
                for ch in range(config.channels) for a in range(3) for b in range(3)
            ])  # fmt: skip
            values = layer("synthesis", i, windows, values)
            values = np.clip(np.maximum(values, 0) if i == plain else values, -limit, limit)
        pixels = np.clip((values * 255 + 2048) >> 12, 0, 255)
        images.append(pixels.reshape(config.channels, config.height, config.width))
    return np.stack(images).astype(np.uint8)


def test_pictures_are_exact_in_integers(coded):
    # Steps of every kind, coarser and finer than those of the values between layers.
    for part, exponents in zip(coded.slices, ((0, 0, 6, 7, 9), (0, 0, 5, 8, 16)), strict=True):
        nets = {name: CodedGroup(e, part.nets[name].values) for name, e in zip(GROUPS, exponents, strict=True)}
        # Positive weights: random ones of both signs leave nothing behind the ReLU.
        weights = tuple(np.abs(values) for values in nets["synthesis_weight"].values)
        nets["synthesis_weight"] = CodedGroup(exponents[3], weights)
        part = replace(part, nets=nets)
        found = decode_images(part)
        assert (found == python_images(part)).all()
        assert len(np.unique(found)) > 40


@pytest.mark.parametrize("name", CONFIGS)
def test_pictures_are_those_of_the_float_networks_within_a_level(golden, name):
    coded, data = golden_slice(golden, name)
    exact = float_images(coded)
    # Quantised in steps of 2^-13 the networks are nearly the official ones.
    assert np.abs(exact - data["expect.hard.image"]).max() < 0.01
    wanted = np.clip(np.floor(exact * 255 + 0.5), 0, 255).astype(int)
    found = decode_images(coded).astype(int)
    assert found.shape == (len(coded.labels), coded.config.channels, coded.config.height, coded.config.width)
    assert np.abs(found - wanted).max() <= 1
    assert (found != wanted).mean() < 0.05


@pytest.mark.parametrize("name", CONFIGS)
def test_means_and_scales_are_those_of_the_float_network(golden, name):
    coded, data = golden_slice(golden, name)
    flat = data["expect.hard.latent_flat"]
    mean, scale = data["expect.hard.mu"], data["expect.hard.scale"]
    found = {level: [] for level in range(coded.config.levels)}
    for level, differences, rows in level_blocks(coded):
        found[level].append((differences, rows))
    start = 0
    for level, (height, width) in enumerate(coded.config.level_sizes):
        differences, rows = (np.concatenate(parts) for parts in zip(*found[level], strict=True))
        # The file has all samples of a position together, the golden file all positions of a sample.
        differences, rows = (v.reshape(height * width, -1).T.ravel() for v in (differences, rows))
        part = slice(start, start + len(rows))
        start += len(rows)
        fraction = rows // SCALES - FRACTIONS // 2
        mine = flat.ravel()[part] - differences + fraction / 64
        assert np.abs(mine - mean[part]).max() < 1 / 64
        logarithm = (rows % SCALES + LOWEST_SCALE) / 16
        wanted = np.clip(np.log(scale[part]), LOWEST_SCALE / 16, 5)
        assert np.abs(logarithm - wanted).max() < 1 / 24
    assert start == len(flat.ravel())


@pytest.mark.parametrize("name", CONFIGS)
def test_bits_are_those_of_the_official_formula(golden, name):
    """Both count at most 16 bits for a symbol; here, what is further than 16 from the mean costs its code on top."""
    coded, data = golden_slice(golden, name)
    distance = np.abs(data["expect.hard.latent_flat"].ravel() - data["expect.hard.mu"])
    assert 1 < distance.max()
    wanted = data["expect.hard.rate_bits"].sum()
    assert slice_bits(coded) == pytest.approx(wanted, rel=0.005, abs=20.0 * int((distance > 15.5).sum()) + 1)


def test_a_latent_changes_no_earlier_prediction(coded):
    """Correctness test 4: neither earlier positions of its level, nor other levels, nor other samples."""
    part = coded.slices[0]

    def rows_of(latents):
        found = {}
        for level, differences, rows in level_blocks(replace(part, latents=tuple(latents))):
            values = np.stack([rows, latents_in_order(latents, level) - differences], axis=1)
            found[level] = values.reshape(-1, len(part.labels), 2)
        return found

    def latents_in_order(latents, level):
        return latents[level].reshape(len(part.labels), -1).T.ravel()

    before = rows_of(list(part.latents))
    touched = 0
    for level, (height, width) in enumerate(part.config.level_sizes):
        for y, x in {(0, 0), (height // 2, width // 2), (height - 1, width - 1)}:
            latents = [values.copy() for values in part.latents]
            latents[level][1, y, x] += 50
            after = rows_of(latents)
            for other in before:
                same = (before[other] == after[other]).all(axis=2)
                if other != level:
                    assert same.all()
                    continue
                position = y * width + x
                assert same[: position + 1].all()
                assert same[:, [0, 2]].all()
                touched += (~same).sum()
    assert touched > 0


@pytest.mark.parametrize("context", [8, 16, 24, 32])
def test_contexts_lie_before_the_latent(context):
    offsets = context_offsets(context)
    assert len(set(offsets)) == context
    assert all(row < 0 or (row == 0 and column < 0) for row, column in offsets)
    config = CodecConfig(7, 6, 1, context=context)
    latents = np.arange(1, 2 * 7 * 6 + 1, dtype=np.int32).reshape(2, 7, 6)
    plan = LevelPlan(config, (7, 6), 2)
    plan.fill(latents)
    assert (plan.latents((7, 6)) == latents).all()
    for y in range(7):
        for x in range(6):
            wanted = [latents[:, y + r, x + c] if 0 <= y + r and 0 <= x + c < 6 else np.zeros(2) for r, c in offsets]
            assert (plan.grid[plan.cells[y * 6 + x] + plan.offsets] == np.stack(wanted)).all()


def test_sums_that_could_be_inexact_are_refused(coded):
    part, config = coded.slices[0], CodecConfig(9, 12, 3, context=8, depth=2, widths=(4096,))
    nets = dict(part.nets)
    for name, shapes in group_shapes(config).items():
        nets[name] = CodedGroup(16 if "bias" in name else 0, tuple(np.full(s, 65535, np.int32) for s in shapes))
    with pytest.raises(DataError, match=r"synthesis, layer 2: weights of 2\.684e\+08 .* Quantise coarser"):
        decode_images(CodedSlice(config, part.labels, part.latents, nets))
    # Just inside: sums of 2^51 are still whole numbers.
    weight = np.full((1, 2040), 65535, np.int32)
    layer = Layer.of(weight, 16, np.full(1, 65535, np.int32), 16)
    top = np.full((2040, 1), 2.0**24 - 1)
    top[0] = 1
    exact = (65535 * (2039 * (2**24 - 1) + 1) + 65535 * 4096 + 2**15) >> 16
    assert layer(top).item() == exact
    with pytest.raises(DataError, match="whole numbers that float64 holds"):
        Layer.of(np.full((1, 4200), 65535, np.int32), 16)


def test_entropy_networks_of_any_weights_are_exact(coded):
    """Within the limits of a file its sums cannot reach 2^52, so that no file is refused while being read."""
    config = CodecConfig(9, 12, 3, context=32, depth=1, widths=(5,))
    for exponent in (0, 16):
        groups = [CodedGroup(exponent, tuple(np.full(s, 65535, np.int32) for s in group_shapes(config)[name]))
                  for name in ("arm_weight", "arm_bias")]  # fmt: skip
        rows, whole = EntropyNetwork(config, *groups).predict(np.full((32, 3), float(LARGEST_LATENT)))
        assert (whole == LARGEST_LATENT).all() and (rows % SCALES == SCALES - 1).all()


def test_latents_beyond_the_format_are_refused(coded):
    part = coded.slices[0]
    latents = [level.copy() for level in part.latents]
    latents[1][0, 0, 0] = -LARGEST_LATENT
    slice_bits(replace(part, latents=tuple(latents)))
    latents[1][0, 0, 0] = LARGEST_LATENT + 1
    broken = replace(part, latents=tuple(latents))
    with pytest.raises(DataError, match="level 1 has a latent of size 4096"):
        slice_bits(broken)
    with pytest.raises(DataError, match="above 4095"):
        decode_images(broken)
