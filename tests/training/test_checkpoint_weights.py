from __future__ import annotations

import inspect

import pytest
import torch
from transformers.core_model_loading import revert_weight_conversion

from thurl.errors import DataError
from thurl.rl.tiny import build_tiny_qwen2_5_vl
from thurl.training.checkpoint_weights import load_weights


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_all_weights_of_a_vision_language_model_come_back(tmp_path, tied, shard):
    """transformers alone finds one of 57, see `load_weights`."""
    model = build_tiny_qwen2_5_vl(0, hidden=32, heads=1, tie_embeddings=tied)[0]
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard == "100KB")
    other = build_tiny_qwen2_5_vl(1, hidden=32, heads=1, tie_embeddings=tied)[0]
    load_weights(other, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_weights_of_another_model_are_refused(tmp_path):
    build_tiny_qwen2_5_vl(0, hidden=32, heads=1)[0].save_pretrained(tmp_path)
    with pytest.raises(DataError, match="has no place in the model; .* more"):
        load_weights(build_tiny_qwen2_5_vl(0, hidden=48, heads=1)[0], tmp_path)
    with pytest.raises(DataError, match="layers.2.self_attn.q_proj.weight is missing"):
        load_weights(build_tiny_qwen2_5_vl(0, hidden=32, heads=1, layers=3)[0], tmp_path)


def test_transformers_still_translates_names_as_expected():
    assert list(inspect.signature(revert_weight_conversion).parameters) == ["model", "state_dict"]
