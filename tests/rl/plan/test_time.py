"""Times are arithmetic; the parts that can be checked on paper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from thurl.errors import UsageError
from thurl.rl.plan.memory import RunShape
from thurl.rl.plan.shape import RELEASED
from thurl.rl.plan.time import DEVICES, calibrated, device_named, step_seconds


MODEL, DEVICE = RELEASED["Qwen2.5-VL-7B"], DEVICES["h100"]
RUN = RunShape(
    **{"gpus": 8, "zero": 3, "dtype": 2, "compute": 2, "prompt": 362, "answer": 256, "patches": 1008},
    **{"checkpointing": True, "reference": True},
)


def test_an_update_is_its_operations():
    """Rule of thumb: 6 operations per parameter and token, 8 with recomputed layers; embeddings look up only."""
    alone = replace(RUN, gpus=1, zero=0, checkpointing=False, patches=0, train_vision=False)
    seconds = step_seconds(MODEL, alone, DEVICE)
    tokens, layers = 48 * 618, MODEL.layers * MODEL.layer_parameters
    expected = 6 * layers * tokens / (DEVICE.flops * DEVICE.compute_share)
    assert seconds["update"] == pytest.approx(expected, rel=0.1)
    assert seconds["update"] == pytest.approx(3 * seconds["reference"])
    again = step_seconds(MODEL, replace(alone, checkpointing=True), DEVICE)
    assert again["update"] == pytest.approx(4 * again["reference"])


def test_generation_is_bound_by_memory_for_few_rows_and_by_arithmetic_for_many():
    few = replace(RUN, gpus=1, zero=0, images=1, completions=2)
    one_token = MODEL.language_parameters * 2 / (DEVICE.bandwidth * DEVICE.bandwidth_share)
    assert step_seconds(MODEL, few, DEVICE)["rollout"] == pytest.approx(256 * one_token, rel=0.05)
    many = replace(few, images=256, completions=8)
    faster = replace(DEVICE, bandwidth=10 * DEVICE.bandwidth)
    ratio = step_seconds(MODEL, many, DEVICE)["rollout"] / step_seconds(MODEL, few, DEVICE)["rollout"]
    assert 10 < ratio < 1024
    assert step_seconds(MODEL, few, faster)["rollout"] < 0.2 * step_seconds(MODEL, few, DEVICE)["rollout"]


def test_slow_links_bound_zero3():
    near, far = step_seconds(MODEL, RUN, DEVICE), step_seconds(MODEL, replace(RUN, gpus=16), DEVICE)
    tiny = replace(RUN, images=1, gpus=16)
    assert near["update"] == far["update"]  # hidden behind the arithmetic
    gather = MODEL.parameters * 2 * 15 / 16 / 50e9
    assert step_seconds(MODEL, tiny, DEVICE)["reference"] == pytest.approx(gather)
    assert step_seconds(MODEL, replace(tiny, gpus=1), DEVICE)["reference"] < gather


def test_phases_that_are_absent():
    assert set(step_seconds(MODEL, replace(RUN, reference=False), DEVICE)) == {"rollout", "update"}
    assert set(step_seconds(MODEL, replace(RUN, vllm="server"), DEVICE)) == {
        *("rollout", "old log-probabilities", "reference", "update", "weight sync")
    }
    shared = step_seconds(MODEL, replace(RUN, shared=True, gpus=1, zero=0), DEVICE)
    plain = step_seconds(MODEL, replace(RUN, gpus=1, zero=0), DEVICE)
    assert 1.3 < plain["update"] / shared["update"] < 6 and plain["rollout"] == shared["rollout"]


def test_calibration_reproduces_the_measured_update():
    device = calibrated(DEVICE, MODEL, replace(RUN, zero=0, gpus=1), 12.5)
    assert step_seconds(MODEL, replace(RUN, zero=0, gpus=1), device)["update"] == pytest.approx(12.5)
    with pytest.raises(UsageError, match="a100, h100, h200"):
        device_named("z")
