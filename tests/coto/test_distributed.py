"""Two processes with DDP train what one process trains, under the same masks; differences between them are refused."""

import json
import os
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ..rl.forked_worlds import command


SCRIPT = Path(__file__).with_name("distributed_coto.py")


@pytest.mark.distributed
def test_two_processes_train_as_one(tmp_path):
    spec = spec_from_file_location("distributed_coto", SCRIPT)
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    masks, none, weights = script.train(str(tmp_path / "one"), 4)
    output = tmp_path / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command(2, SCRIPT, output),
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    two = [json.loads(Path(f"{output}.{rank}.json").read_text()) for rank in range(2)]
    copies = [load_file(f"{output}.{rank}.safetensors") for rank in range(2)]
    assert two[0]["masks"] == two[1]["masks"] == masks and len(masks) == 6 and any(not all(mask) for mask in masks)
    for found in (none, two[0]["none"], two[1]["none"]):  # None, not zero, also behind DDP
        assert found == [[not on for on in mask] for mask in masks]
    start = dict(script.build().named_parameters())
    for name, value in weights.items():
        assert torch.equal(copies[0][name], copies[1][name]), name
        torch.testing.assert_close(copies[0][name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(value, start[name]) == ("lora" not in name), name
    for record in two:
        assert "processes [1] have other settings" in record["other_seed"]
        assert "processes [1] have other settings" in record["other_layers"]
        assert record["same"] == "" and record["checkpointing"] == ""
        assert "ddp_find_unused_parameters: true" in record["find_unused"]
