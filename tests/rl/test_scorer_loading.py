"""Scorers from folders: round trip, presets, layouts of keys, adapters, and what is missing."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from thurl.errors import DataError, MissingRequirementError
from thurl.rl.prompts import PRESETS, PromptPreset, save_prompt
from thurl.rl.scorer import QualityScorer
from thurl.rl.tiny import build_tiny_qwen2_5_vl

from .conftest import pictures


@pytest.fixture
def folder(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_from_pretrained_round_trip(tiny, folder):
    loaded = QualityScorer.from_pretrained(folder, device="cpu")
    original = QualityScorer(*tiny)
    assert loaded.preset == PRESETS["thurl"] and loaded.tokenizer.padding_side == "left"
    assert loaded.score(pictures(3), mode="expected") == original.score(pictures(3), mode="expected")


def test_prompt_beside_the_model_is_used(folder):
    save_prompt(folder, PromptPreset(question="How good?", name="own"))
    assert QualityScorer.from_pretrained(folder, device="cpu").preset.question == "How good?"
    assert QualityScorer.from_pretrained(folder, device="cpu", preset="official").preset.name == "official"


def test_released_checkpoint_gets_the_official_preset(folder, tmp_path):
    target = tmp_path / "VisualQuality-R1-7B"
    folder.rename(target)
    assert QualityScorer.from_pretrained(target, device="cpu").preset == PRESETS["official"]


def test_key_layout_of_transformers_4_49_gives_identical_logits(tiny, folder):
    model, processor = tiny
    path = folder / "model.safetensors"
    old = {}
    for key, value in model.state_dict().items():
        key = key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        old[key] = value.contiguous().clone()
    assert any(key.startswith("visual.blocks.0.attn.qkv") for key in old)
    assert "model.layers.0.self_attn.q_proj.weight" in old and "lm_head.weight" in old
    assert not any(key.startswith(("model.visual", "model.language_model")) for key in old)
    save_file(old, path, metadata={"format": "pt"})
    loaded = QualityScorer.from_pretrained(folder, device="cpu")
    original = QualityScorer(model, processor)
    for a, b in zip(
        loaded._forced_logits(pictures(3), [""] * 3, [0]),
        original._forced_logits(pictures(3), [""] * 3, [0]),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_parameter_without_a_value_is_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights.pop(next(key for key in weights if key.endswith("mlp.up_proj.weight")))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match="no value"):
        QualityScorer.from_pretrained(folder, device="cpu")


def test_peft_adapter_folder(tiny, folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = build_tiny_qwen2_5_vl(0)[0]
    config = LoraConfig(target_modules=r".*language_model.*\.q_proj", r=2, init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = QualityScorer(adapted, tiny[1]).score(pictures(2), mode="expected")
    loaded = QualityScorer.from_pretrained(tmp_path / "adapter", device="cpu")
    results = loaded.score(pictures(2), mode="expected")
    plain = QualityScorer(*tiny).score(pictures(2), mode="expected")
    for a, b, c in zip(results, expected, plain, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-6) and abs(a.score - c.score) > 1e-4
    assert loaded.score(pictures(1), max_new_tokens=3)[0].text

    moved = tmp_path / "moved"
    folder.rename(moved)
    with pytest.raises(MissingRequirementError, match="base_model"):
        QualityScorer.from_pretrained(tmp_path / "adapter", device="cpu")
    assert QualityScorer.from_pretrained(tmp_path / "adapter", device="cpu", base_model=str(moved))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", ""])
def test_missing_folder(name):
    with pytest.raises(MissingRequirementError, match="not a folder"):
        QualityScorer.from_pretrained(name)


def test_hub_name_without_network_fails_at_once(monkeypatch):
    import httpx
    from huggingface_hub import HfApi

    def refuse(*args, **kwargs):
        raise httpx.ConnectError("no network in this test")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(MissingRequirementError, match="hf download nobody/nothing"):
        QualityScorer.from_pretrained("nobody/nothing")


def test_folder_without_weights_or_processor(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingRequirementError, match="safetensors"):
        QualityScorer.from_pretrained(folder, device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingRequirementError, match="empty"):
        QualityScorer.from_pretrained(tmp_path / "empty", device="cpu")


def test_pixel_limits_reach_the_processor(folder):
    small = QualityScorer.from_pretrained(folder, device="cpu", min_pixels=28 * 28, max_pixels=56 * 56)
    grid = small._encode([Image.new("RGB", (500, 500))], "think")["image_grid_thw"][0].tolist()
    assert grid == [1, 4, 4]
    assert small.settings()["image_size"]["longest_edge"] == 56 * 56
