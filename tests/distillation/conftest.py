"""Where the golden files are, and a small coded data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thurl.distillation.coded import CodedDataset, CodedGroup, CodedSlice, group_shapes
from thurl.distillation.geometry import CodecConfig


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
