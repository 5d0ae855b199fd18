"""Sizes against the real classes: parameters exactly, patches and operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from thurl.errors import UsageError
from thurl.rl.plan.shape import RELEASED, ModelShape, picture_patches, released_shape
from thurl.rl.tiny import build_tiny_qwen2_5_vl


def configuration(shape: ModelShape) -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "intermediate_size": shape.intermediate,
            "vocab_size": shape.vocabulary,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "hidden_size": shape.vision_hidden,
            "depth": shape.vision_layers,
            "intermediate_size": shape.vision_intermediate,
            "out_hidden_size": shape.hidden,
        },
        tie_word_embeddings=shape.tied,
    )


# Published on the model pages and, for 7B, in Table 5 of arXiv 2505.14460 (8.29 B).
BILLIONS = {"Qwen2.5-VL-3B": 3.75, "Qwen2.5-VL-7B": 8.29, "Qwen2.5-VL-32B": 33.45, "Qwen2.5-VL-72B": 73.41}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_the_parameters_of_the_real_class(name):
    shape = RELEASED[name]
    config = configuration(shape)
    assert shape.heads * 128 == shape.hidden
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.vision_parameters == sum(parameter.numel() for parameter in model.model.visual.parameters())
    assert shape.parameters / 1e9 == pytest.approx(BILLIONS[name], abs=0.01)
    assert ModelShape.from_config(config.to_dict()) == shape


def test_configurations_of_transformers_4_are_flat():
    shape = RELEASED["Qwen2.5-VL-7B"]
    new = configuration(shape).to_dict()
    flat = {**new.pop("text_config"), **new, "model_type": "qwen2_5_vl"}
    assert "text_config" not in flat and ModelShape.from_config(flat) == shape


def test_names_of_released_models():
    assert released_shape("Qwen/Qwen2.5-VL-3B-Instruct") == RELEASED["Qwen2.5-VL-3B"]
    assert released_shape("TianheWu/VisualQuality-R1-7B") == RELEASED["Qwen2.5-VL-7B"]
    assert released_shape("somebody/else") is None
    with pytest.raises(UsageError, match="'llama'.*qwen2_5_vl"):
        ModelShape.from_config({"model_type": "llama"})
    with pytest.raises(UsageError, match="hidden_size"):
        ModelShape.from_config({"model_type": "qwen2_5_vl"})


@pytest.mark.parametrize("size", [(512, 384), (1024, 768), (28, 28), (30, 900), (4000, 3000), (57, 91)])
@pytest.mark.parametrize("area", [(3136, 12_845_056), (3136, 200_704), (50_176, 100_352)])
def test_patches_are_those_of_the_processor(size, area):
    shape = RELEASED["Qwen2.5-VL-7B"]
    height, width = smart_resize(size[1], size[0], factor=28, min_pixels=area[0], max_pixels=area[1])
    assert picture_patches(*size, shape, *area) == height * width // 14**2


def test_operations_of_a_forward_pass():
    """Against torch's counter, on a model with grouped keys; norms and activations are not matrix products."""
    model, processor = build_tiny_qwen2_5_vl(0, hidden=128, layers=3, heads=4, kv_heads=2, vision_depth=3)
    shape = ModelShape.from_config(model.config.to_dict())
    rows, patches, prompt = 2, 64, 80
    ids = torch.full((rows, prompt), 40)
    ids[:, 5 : 5 + patches // 4] = model.config.image_token_id
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(rows * patches, shape.patch_values),
        "image_grid_thw": torch.tensor([[1, 8, 8]] * rows),
        "mm_token_type_ids": (ids == model.config.image_token_id).long(),
    }
    model.set_attn_implementation("eager")  # the counter does not know the fused kernel of a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    predicted = shape.language_flops(rows, prompt, rows * prompt) + shape.vision_flops(rows, patches)
    skipped = rows * prompt * shape.layers * 2 * shape.hidden * prompt  # eager attention computes both halves
    assert counter.get_total_flops() == pytest.approx(predicted + skipped, rel=0.01)
