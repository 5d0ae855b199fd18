"""vLLM always has every adapter, whatever the mask of the step: read from the engine itself; `make test-vllm`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

EXACT = 1e-5  # of weights of order 0.1, float32
SAME = 1e-3  # nats


@pytest.fixture(scope="module", params=["merged", "adapter"])
def run(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("coto") / "seen.json"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("coto_vllm_runs.py")), request.param, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, json.loads(out.read_text())


def test_the_engine_holds_base_plus_every_adapter(run):
    way, seen = run
    assert len(seen["syncs"]) == 3
    for sync in seen["syncs"]:
        assert sync["compared"] == sync["adapted"] == 3 * 7
        assert sync["all"] < EXACT
        # The mask of the open step leaves adapters out, which would be seen.
        assert not all(sync["mask"]) and sync["active"] > 100 * EXACT and sync["base"] > 100 * EXACT


def test_the_mask_is_in_force_in_the_update_and_nowhere_else(run):
    _, seen = run
    for gates, sync in zip(seen["gates"], seen["syncs"], strict=True):
        assert sum(not off for off in gates) == 7 * sum(sync["mask"])
    assert len(seen["whole"]) == 3 and max(seen["whole"]) < SAME  # vLLM draws from the whole policy
    assert min(seen["masked"]) > 20 * SAME  # which is not the one that is updated
    assert max(seen["ratio"]) < SAME  # and whose update is on policy


def test_merging_leaves_the_base_weights_as_they_were(run):
    way, seen = run
    assert seen["base_moved"] == 0 if way == "adapter" else seen["base_moved"] < 1e-6
