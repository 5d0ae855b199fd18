"""Folders of tiny encoders of every kind, with random weights."""

from __future__ import annotations

import timm
import torch
from timm.models import save_for_hf
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from thurl.continual.encoders import MLPEncoder, MLPEncoderConfig


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
WIDE = {**SMALL, "intermediate_size": 48}
WORDS = ("a", "photo", "of", "sign", "bird", "the", "drawing", "s", "red", "green", "blue", ".", *"0123456789")


def tokenizer():
    """Every word of `WORDS` is one token; letters are the others."""
    letters = [chr(code) for code in range(97, 123)]
    pieces = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in [*letters, *"0123456789", "."])])
    merges = []
    for word in sorted(WORDS):
        held = [*word[:-1], f"{word[-1]}</w>"]
        while len(held) > 1:
            merges.append((held[0], held[1]))
            held[:2] = [held[0] + held[1]]
            pieces[held[0]] = None
    ends = ("<|startoftext|>", "<|endoftext|>")
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *ends])}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=24)


def clip(vocabulary):
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": vocabulary, "max_position_embeddings": 24, "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=WIDE, projection_dim=8))


def timm_vit(**options):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options})


KINDS = {
    "mlp": lambda: MLPEncoder(MLPEncoderConfig(side=6, hidden_sizes=[24, 12])),
    "vit": lambda: ViTModel(ViTConfig(**WIDE), add_pooling_layer=False),
    "vit pooler": lambda: ViTModel(ViTConfig(**WIDE)),
    "vit classifier": lambda: ViTForImageClassification(ViTConfig(**WIDE)),
    "deit": lambda: DeiTModel(DeiTConfig(**WIDE)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**{**SMALL, "image_size": 32})),
    "dinov2 swiglu": lambda: Dinov2Model(Dinov2Config(**SMALL, use_swiglu_ffn=True)),
    "clip": lambda: clip(len(tokenizer())),
    "clip projected": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**WIDE, projection_dim=8)),
    "clip vision": lambda: CLIPVisionModel(CLIPVisionConfig(**WIDE)),
    "timm": timm_vit,
    "timm averages": lambda: timm_vit(global_pool="avg", num_classes=0),
}


def save_encoder(kind, folder, seed=0):
    """A model of `kind` in evaluation mode, saved with all that belongs to it."""
    torch.manual_seed(seed)
    model = KINDS[kind]().eval()
    if kind.startswith("timm"):
        save_for_hf(model, folder, safe_serialization=True)
        return model
    model.save_pretrained(folder)
    if kind.startswith("clip"):
        CLIPImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
        if kind == "clip":
            tokenizer().save_pretrained(folder)
    elif kind != "mlp":
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return model
