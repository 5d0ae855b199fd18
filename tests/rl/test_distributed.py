"""One process and two give the same rewards, advantages and weights (spec, section 9.3)."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from .forked_worlds import command


SCRIPT = Path(__file__).with_name("distributed_ranking.py")


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_folder, path)
    for index in range(16):
        Image.fromarray(np.full((56 + 28 * (index % 2), 56, 3), 10 * index, np.uint8)).save(path / f"{index}.png")
    return path


@pytest.fixture(scope="module")
def two_processes(folder):
    """The runs of two processes without prefix sharing, which both tests compare with, each made once."""
    return functools.cache(lambda rows, block_size: _run(folder, f"two{rows}", 2, rows, block_size))


def _run(folder, name, world_size, rows, block_size, prefix_sharing="off"):
    output = folder / name
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command(world_size, SCRIPT, output, world_size, rows, block_size, folder, prefix_sharing),
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    states = [json.loads(Path(f"{output}.{rank}.json").read_text()) for rank in range(world_size)]
    return states, load_file(f"{output}.0.safetensors")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("rows", "block_size"),
    [(16, 4), (6, 3)],  # K = 4: with 6 rows per device the middle group is split over the two processes
    ids=["whole_groups", "split_groups"],
)
def test_two_processes_equal_one(folder, two_processes, rows, block_size):
    (one,), weights_one = _run(folder, f"one{rows}", 1, 2 * rows, block_size)
    two, weights_two = two_processes(rows, block_size)
    assert len(one["rewards"]) == 2 and np.shape(one["rewards"][0]) == (2 * rows, 2)
    assert np.std(one["rewards"]) > 0.1, "the script must make unequal rewards"
    for step in range(2):
        for state in two:
            np.testing.assert_allclose(state["rewards"][step], one["rewards"][step], atol=1e-6)
        advantages = two[0]["advantages"][step] + two[1]["advantages"][step]
        np.testing.assert_allclose(advantages, one["advantages"][step], atol=1e-5)
    np.testing.assert_allclose(two[0]["losses"], one["losses"], atol=1e-5)
    for name, value in weights_one.items():
        torch.testing.assert_close(weights_two[name], value, atol=1e-6, rtol=0)
    assert set(one["moved"]) == set(weights_one), "full fine-tuning moves every parameter"
    timing = two[0]["timing"]
    assert timing == two[1]["timing"] and two[0]["logged_timing"] == two[1]["logged_timing"], "means over processes"
    assert all(timing["seconds"][name] > 0 for name in ("data", "rollout", "reward", "reference_logps", "update"))
    assert timing["seconds"]["weight_sync"] == timing["seconds"]["save"] == 0


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("rows", "block_size"),
    [(16, 4), (6, 3)],
    ids=["whole_groups", "split_groups"],
)
def test_prefix_sharing_on_two_processes_changes_nothing(folder, two_processes, rows, block_size):
    plain, weights_plain = two_processes(rows, block_size)
    shared, weights_shared = _run(folder, f"shared{rows}", 2, rows, block_size, "on")
    for ours, theirs in zip(shared, plain, strict=True):
        assert ours["packed_calls"] == 4 and theirs["packed_calls"] == 0  # reference and policy, twice
        assert ours["rewards"] == theirs["rewards"] and ours["advantages"] == theirs["advantages"]
        np.testing.assert_allclose(ours["losses"], theirs["losses"], atol=1e-5)
        assert ours["moved"] == theirs["moved"]
    for name, value in weights_plain.items():
        torch.testing.assert_close(weights_shared[name], value, atol=1e-6, rtol=0)
