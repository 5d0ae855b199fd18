"""Tiny models to edit and the golden files."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.layers import SwiGLUPacked
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from thurl.editing.official import official_vit


GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
         "num_labels": 5}  # fmt: skip
WIDE = {**SMALL, "intermediate_size": 24}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9,
        "max_position_embeddings": 8, "eos_token_id": 8}  # fmt: skip


def small_timm(name="vit_tiny_patch16_224", **options):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 5}
    return timm.create_model(name, **{**sizes, "mlp_ratio": 1.5, **options})


MODELS = {
    "timm": small_timm,
    "timm averages": lambda: small_timm(global_pool="avg"),
    "timm swiglu": lambda: small_timm(mlp_layer=SwiGLUPacked, mlp_ratio=3.0),
    "timm distilled": lambda: small_timm("deit_tiny_distilled_patch16_224"),
    "vit": lambda: ViTForImageClassification(ViTConfig(**WIDE)),
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**WIDE)),
    "deit teacher": lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**WIDE)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**SMALL, mlp_ratio=2)),
    "dinov2 swiglu": lambda: Dinov2ForImageClassification(Dinov2Config(**SMALL, mlp_ratio=2, use_swiglu_ffn=True)),
    "clip": lambda: CLIPForImageClassification(
        CLIPConfig(text_config=TEXT, vision_config=WIDE, projection_dim=8, num_labels=5)
    ),
}


def small_model(name, seed=0):
    """Eval mode, weights of the scale of a trained model, so that pictures differ and an edit can succeed."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return model


def pictures(count, side=16, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def golden(name):
    return load_file(GOLDEN / f"vitedit_{name}.safetensors")


def golden_model(library):
    return official_vit(golden("tiny_vit_weights"), 3, library)
