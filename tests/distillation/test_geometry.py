"""Shapes of the official codec, and the refusal of what does not fit them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from thurl.distillation.coded import CodedGroup
from thurl.distillation.geometry import DECODERS, CodecConfig
from thurl.errors import DataError, UsageError


def test_shapes_are_the_official_ones(golden):
    cases = json.loads((golden / "ddruo_geometry.json").read_text())
    assert cases
    for case in cases:
        config = CodecConfig(
            case["H"], case["W"], case["channel"], case["arm"], case["dim"], DECODERS[case["layers_v"]]
        )
        assert [[1, *size] for size in config.level_sizes] == case["latent_shapes"]
        assert config.latents == case["latents_per_image"]
        found = {"ap": config.arm_shapes, "up": config.upsampling_shapes, "sp": config.synthesis_shapes}
        for name, shapes in found.items():
            assert [list(shape) for shape in shapes] == case["param_shapes"][name]
            assert sum(map(math.prod, shapes)) == case["n_params"][name]


def test_odd_sizes_round_up():
    assert CodecConfig(9, 12, 1).level_sizes == ((9, 12), (5, 6), (3, 3), (2, 2))


def test_all_problems_of_a_configuration_are_named_at_once():
    with pytest.raises(UsageError) as caught:
        CodecConfig(1, 8, 2, context=9, depth=0, widths=(), gain=0)
    assert len(caught.value.problems) == 6


def test_a_coded_set_checks_itself(coded):
    assert coded.labels.tolist() == [0, 0, 1, 1, 2]
    first = coded.slices[0]
    with pytest.raises(DataError, match="latents of shapes"):
        replace(first, latents=first.latents[:-1])
    with pytest.raises(DataError, match="one label for each"):
        replace(first, labels=first.labels[:0])
    group = first.nets["arm_bias"]
    for broken, message in (
        (CodedGroup(17, group.values), "2\\^-17"),
        (CodedGroup(6, group.values[::-1]), "are needed"),
        (CodedGroup(6, tuple(value + 70000 for value in group.values)), "above 65535"),
    ):
        with pytest.raises(DataError, match=message):
            replace(first, nets={**first.nets, "arm_bias": broken})
    with pytest.raises(DataError, match="3 classes have names|2 classes have names"):
        replace(coded, classes=("a", "b"))
    with pytest.raises(DataError, match="soft labels"):
        replace(coded, soft_labels=np.zeros((5, 2), np.float16))
