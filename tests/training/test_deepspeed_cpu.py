"""A group of processes for DeepSpeed on a CPU; training in it is in tests/rl/test_equivalence.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from thurl.training.deepspeed_cpu import prepare_deepspeed_on_cpu


SCRIPT = """
import deepspeed
from thurl.training.deepspeed_cpu import prepare_deepspeed_on_cpu

builder = deepspeed.accelerator.get_accelerator().create_op_builder("ShareMemCommBuilder")
assert deepspeed.ops.__compatible_ops__[builder.NAME], "or nothing would have to be prevented"
assert prepare_deepspeed_on_cpu({"train_batch_size": 1}, use_cpu=True, timeout=20)
assert prepare_deepspeed_on_cpu({"train_batch_size": 1}, use_cpu=True), "a second call finds it there"
assert deepspeed.comm.get_world_size() == 1 and deepspeed.comm.comm.cdb.shm_comm_op is None
import torch
assert torch.distributed.get_backend() == "gloo"
"""


def test_the_group_forms_without_a_compiler(tmp_path):
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "PATH": str(tmp_path),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "built" not in done.stdout and not (tmp_path / "extensions").exists()


@pytest.mark.parametrize(
    ("deepspeed", "use_cpu", "rank"), [(None, True, "0"), ("zero2.json", False, "0"), ("zero2.json", True, None)]
)
def test_nothing_happens_elsewhere(monkeypatch, deepspeed, use_cpu, rank):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert not prepare_deepspeed_on_cpu(deepspeed, use_cpu)
    assert "DS_ACCELERATOR" not in os.environ
