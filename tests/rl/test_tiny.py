from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from thurl.errors import UsageError
from thurl.rl import tiny


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny.build_tiny_qwen2_5_vl(0)


def picture(side: int = 56, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def chat(processor, text: str = tiny.TINY_QUESTION, **options) -> str:
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    return processor.apply_chat_template([turn], add_generation_prompt=True, **options)


@pytest.mark.parametrize("text", tiny._CORPUS)
def test_prompt_strings_survive_and_stay_short(model_and_processor, text):
    tokenizer = model_and_processor[1].tokenizer
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert len(ids) <= 2 * len(text.split()) + 4


def test_tags_are_single_tokens_kept_by_decoding(model_and_processor):
    tokenizer = model_and_processor[1].tokenizer
    text = "<think>strong blur</think><answer>3.25</answer>"
    ids = tokenizer(text + "<|im_end|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *["<think>", "strong", "Ġblur", "</think>", "<answer>", "3", ".", "2", "5", "</answer>", "<|im_end|>"]
    ]


def test_any_text_decodes_to_itself(model_and_processor):
    tokenizer = model_and_processor[1].tokenizer
    for text in ("Größe: 4,5 \u2212 \u4f60\u597d", "  two  spaces\n\n", "x<answer> -1.0 </answer>"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_chat_template_follows_the_qwen_layout(model_and_processor):
    processor = model_and_processor[1]
    plain = chat(processor, "Q")
    assert plain == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>Q<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat(processor, "Q", add_vision_id=True) == plain.replace("<|vision_start|>", "Picture 1: <|vision_start|>")
    own = processor.apply_chat_template([{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}])
    assert own == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"


def test_pictures_of_different_size_are_padded_left(model_and_processor):
    processor = model_and_processor[1]
    batch = processor(
        text=[chat(processor)] * 2, images=[picture(56), picture(112)], padding=True, return_tensors="pt"
    )
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all()
    is_image = batch["input_ids"] == processor.image_token_id
    assert is_image.sum(1).tolist() == [4, 16]
    assert torch.equal(is_image.long(), batch["mm_token_type_ids"])


def test_same_seed_same_weights_and_global_random_state_untouched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, _ = tiny.build_tiny_qwen2_5_vl(3)
    assert torch.equal(torch.rand(3), expected)
    again, _ = tiny.build_tiny_qwen2_5_vl(3)
    other, _ = tiny.build_tiny_qwen2_5_vl(4)
    pairs = list(zip(first.state_dict().items(), again.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert 2e5 < sum(p.numel() for p in first.parameters()) < 6e5


def test_round_trip_through_the_auto_classes(model_and_processor, tmp_path):
    model, processor = model_and_processor
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, Qwen2_5_VLForConditionalGeneration)
    assert loaded_processor.tokenizer.padding_side == "left"
    assert chat(loaded_processor) == chat(processor)
    inputs = {"text": [chat(processor)], "images": [picture(70)], "return_tensors": "pt"}
    batch, loaded_batch = processor(**inputs), loaded_processor(**inputs)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, loaded(**loaded_batch).logits)


def test_impossible_widths_are_refused_together():
    with pytest.raises(UsageError, match="head size") as caught:
        tiny.build_tiny_qwen2_5_vl(0, hidden=60, heads=2, vision_hidden=62, vision_heads=4)
    assert len(caught.value.problems) == 2


def test_other_sizes_build_and_run():
    model, processor = tiny.build_tiny_qwen2_5_vl(
        0, hidden=96, heads=3, kv_heads=1, vision_hidden=96, vision_heads=4, patch_size=8, tie_embeddings=True
    )
    batch = processor(text=[chat(processor)], images=[picture(64)], return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()
