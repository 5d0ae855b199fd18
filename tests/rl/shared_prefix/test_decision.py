"""When prompts are shared, and what is said when they are not."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from thurl.errors import UsageError
from thurl.rl.shared_prefix import PrefixSharing, unsupported
from thurl.rl.shared_prefix.attention import packed_attention
from thurl.rl.shared_prefix.cost import estimate_speedup, packed_call, plain_call
from thurl.rl.shared_prefix.layout import pack_rows


def _fall_back(model, batch, caplog, **changes):
    sharing = PrefixSharing("auto", 0, nullcontext)
    batch = {**batch, **changes}
    arguments = {name: batch.pop(name) for name in ("input_ids", "attention_mask", "logits_to_keep")}
    aux = batch.pop("compute_aux_loss", False)
    with caplog.at_level(logging.WARNING, logger="thurl"):
        for _ in range(2):
            assert (
                sharing.log_probs(model, **arguments, batch_size=None, multimodal=batch, compute_aux_loss=aux) is None
            )
    with pytest.raises(UsageError, match="`prefix_sharing: on` is not possible"):
        PrefixSharing("on", 0, nullcontext).log_probs(
            model, **arguments, batch_size=None, multimodal=batch, compute_aux_loss=aux
        )
    assert len(caplog.messages) == 1
    return caplog.messages[0]


def test_what_cannot_be_packed_falls_back_with_one_warning(tiny, caplog):
    model, batch = tiny
    nothing = {"pixel_values": None, "image_grid_thw": None, "num_images": None, "mm_token_type_ids": None}
    assert "text alone is not packed" in _fall_back(model, batch, caplog, **nothing)


def test_unknown_inputs_and_the_auxiliary_loss_fall_back(tiny, caplog):
    model, batch = tiny
    assert "image_sizes" in _fall_back(model, batch, caplog, image_sizes=torch.ones(1))
    caplog.clear()
    assert "auxiliary loss" in _fall_back(model, batch, caplog, compute_aux_loss=True)
    caplog.clear()
    markers = batch["mm_token_type_ids"].clone()
    markers[0, -1] = 1
    assert "completions hold pictures" in _fall_back(model, batch, caplog, mm_token_type_ids=markers)


def test_models_that_cannot_be_packed_are_named(prefix):
    model, _ = prefix.model(layers=1)
    assert unsupported(model) is None
    model.model.language_model.config.layer_types = ["sliding_attention"]
    assert "sliding_attention" in unsupported(model)
    model.model.language_model.config.layer_types = ["full_attention"]
    model.model.language_model.config._attn_implementation_internal = "flash_attention_2"
    assert "flash_attention_2 knows no packed rows" in unsupported(model)
    model.model.language_model.config._attn_implementation_internal = "sdpa"
    model.config.model_type = "qwen9_vl"
    assert "qwen9_vl is not one of qwen2_5_vl" in unsupported(model)
    assert "architecture Linear" in unsupported(torch.nn.Linear(2, 2))


def test_adapters_with_tokens_of_their_own_are_not_packed(prefix):
    model, _ = prefix.model(layers=1)
    model.peft_config = {"default": SimpleNamespace(is_prompt_learning=True)}
    assert "tokens of its own" in unsupported(model)


def test_auto_packs_only_where_it_is_less_work(prefix, tiny):
    model, batch = tiny
    assert prefix.shared(model, batch, mode="auto") is not None
    single = prefix.batch(prefix.model()[1], [[(56, 56)], [(56, 56)]], [prefix.WIDTH] * 2, k=1)
    assert prefix.shared(model, single, mode="auto") is None  # groups of one without padding: nothing to save


def _estimate(prompt, answer, k, *, patches=0, vision_weight=1.0, groups=8, **sizes):
    """Of equal completions, for the sizes of Qwen2.5-VL-7B or those given."""
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32}
    config = SimpleNamespace(
        text_config=SimpleNamespace(num_hidden_layers=28, **{**text, **sizes}), vision_config=SimpleNamespace(**vision)
    )
    rows = groups * k
    members = [list(range(group * k, group * k + k)) for group in range(groups)]
    plan = packed_attention(pack_rows([prompt] * rows, [answer] * rows, members, prompt), [answer] * rows)
    plain, packed = plain_call(rows, prompt + answer, k * patches), packed_call(plan, patches)
    return estimate_speedup(config, [plain], [packed], vision_weight)


def test_the_estimate_for_a_large_model_is_the_ratio_of_tokens():
    ratio = 6 * 1152 / (1023 + 6 * 129)
    assert 0.95 * ratio < _estimate(1024, 128, 6) <= 1.05 * ratio


def test_the_estimate_knows_what_packing_costs():
    assert _estimate(256, 64, 1) < 1 + 1e-6  # nothing is shared
    narrow = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    assert _estimate(16, 2048, 6, **narrow) < 1  # little to share, and the mask skips no pair
    tiny = {**narrow, "groups": 1}
    assert _estimate(30, 8, 2, **tiny) < 1.1 < _estimate(300, 80, 2, **tiny)  # a call so small is all overhead
    assert _estimate(64, 32, 6) < _estimate(256, 32, 6) < _estimate(1024, 32, 6) < 6
    assert _estimate(256, 128, 2) < _estimate(256, 128, 6) < _estimate(256, 128, 12)
    with_tower = _estimate(256, 128, 6, patches=8 * 4 * 250)
    without_backward = _estimate(256, 128, 6, patches=8 * 4 * 250, vision_weight=1 / 3)
    assert _estimate(256, 128, 6) < without_backward < with_tower < 6
