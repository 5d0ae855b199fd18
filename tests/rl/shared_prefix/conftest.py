"""A tiny model, a batch as the trainer has it, and both ways to its log-probabilities."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from trl.trainer import utils as trl_utils

from thurl.rl.shared_prefix import PrefixSharing
from thurl.rl.tiny import build_tiny_qwen2_5_vl


K, WIDTH = 3, 6
# Two pictures in the third prompt; the first and the last prompt differ only in their pixels.
SIZES = [[(56, 56)], [(84, 56)], [(56, 84), (56, 56)], [(56, 56)]]
LENGTHS = [6, 2, 1, 3, 0, 5, 4, 4, 2, 0, 1, 6]


def model(**sizes):
    model, processor = build_tiny_qwen2_5_vl(0, hidden=64, heads=4, kv_heads=2, **sizes)
    trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model, processor


def batch(processor, sizes=SIZES, lengths=LENGTHS, k=K, width=WIDTH):
    """What `_compute_loss` hands on: prompts of several lengths padded on the left, ragged completions."""
    rng = np.random.default_rng(0)
    texts, images = [], []
    for row_sizes in sizes:
        pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in row_sizes]
        content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": "Rate the quality."}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        texts += [text] * k
        images += [pictures] * k
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    rows = len(texts)
    ids = torch.randint(300, 330, (rows, width), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = ids.masked_fill(mask == 0, processor.tokenizer.pad_token_id)
    return {
        "input_ids": torch.cat([inputs["input_ids"], ids], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], mask], dim=1),
        "logits_to_keep": width,
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
        "num_images": [len(pictures) for pictures in images],
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1),
    }


def shared(model, batch, batch_size=None, mode="on"):
    arguments = {name: batch[name] for name in ("input_ids", "attention_mask", "logits_to_keep")}
    multimodal = {name: value for name, value in batch.items() if name not in arguments}
    sharing = PrefixSharing(mode, 0, nullcontext)
    return sharing.log_probs(model, **arguments, batch_size=batch_size, multimodal=multimodal)


@pytest.fixture(scope="session")
def prefix():
    """The functions and numbers of this file: with `importlib`, tests cannot import from one another."""
    return SimpleNamespace(model=model, batch=batch, shared=shared, K=K, WIDTH=WIDTH, SIZES=SIZES, LENGTHS=LENGTHS)


@pytest.fixture(scope="module")
def tiny():
    tiny_model, processor = model()
    return tiny_model, batch(processor)
