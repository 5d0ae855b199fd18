"""Where the golden files are, and a small coded data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from thurl.distillation.codec import LatentCodec
from thurl.distillation.coded import CodedDataset, CodedGroup, CodedSlice, group_shapes
from thurl.distillation.geometry import DECODERS, CodecConfig


@pytest.fixture(scope="session")
def golden():
    return Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def coded():
    """Two slices of 3 and 2 samples, 9 x 12 pixels, random small integers."""
    rng = np.random.default_rng(7)
    config = CodecConfig(9, 12, 3, context=8, depth=2, widths=(5,))

    def integers(shape, most):
        return rng.integers(-most, most + 1, shape).astype(np.int32)

    def one(labels):
        latents = tuple(integers((len(labels), *size), 3) for size in config.level_sizes)
        nets = {
            name: CodedGroup(6, tuple(integers(shape, 20) for shape in shapes))
            for name, shapes in group_shapes(config).items()
        }
        return CodedSlice(config, np.array(labels, np.int32), latents, nets)

    return CodedDataset((one([0, 0, 1]), one([1, 2])), ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="session")
def official(golden):
    """The official codec of a golden file: ours with its tensors, all tensors of the file, and its numbers."""

    def load(name):
        path = golden / f"ddruo_codec_{name}.safetensors"
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["json"])
        cfg = numbers["cfg"]
        config = CodecConfig(cfg["H"], cfg["W"], cfg["ch"], cfg["C"], cfg["d"], DECODERS[cfg["v"]])
        codec = LatentCodec(config, 1, cfg["B"])
        with torch.no_grad():
            for level, grid in enumerate(codec.grids):
                grid[0].copy_(tensors[f"grids.{level}"][:, 0])
            for key, values in (("ap", codec.arm), ("up", codec.upsampling), ("sp", codec.synthesis)):
                for index, value in enumerate(values):
                    value[0].copy_(tensors[f"{key}.{index}"])
        return codec, tensors, numbers

    return load


@pytest.fixture
def codec():
    """Three slices of two samples of 9 x 12 pixels with networks and latents that are far from their first values."""
    return scrambled(CodecConfig(9, 12, 3, context=8, depth=2, widths=(5,)), slices=3, samples=2)


def scrambled(config, *, slices, samples, seed=5):
    generator = torch.Generator().manual_seed(seed)
    made = LatentCodec(config, slices, samples, generator=generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return made
