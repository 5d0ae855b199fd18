"""The base model of the golden files, as a ViT of transformers."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

from thurl.editing.classifier import Classifier, as_classifier


GOLDEN = Path(__file__).parents[1] / "golden"
_BLOCK = {
    "attention_norm": "layernorm_before",
    "ffn_norm": "layernorm_after",
    "attn.query": "attention.q_proj",
    "attn.key": "attention.k_proj",
    "attn.value": "attention.v_proj",
    "attn.out": "attention.o_proj",
    "ffn.fc1": "mlp.fc1",
    "ffn.fc2": "mlp.fc2",
}


def official_classifier() -> Classifier:
    """12 blocks, D=24, M=40, 3 heads, pictures of 32 pixels, patches of 16, 7 classes."""
    state = load_file(GOLDEN / "vitedit_tiny_vit_weights.safetensors")
    embeddings, encoder = "backbone.transformer.embeddings.", "backbone.transformer.encoder."
    values = {f"vit.embeddings.{name}": state[embeddings + name] for name in ("cls_token", "position_embeddings")}
    for kind in ("weight", "bias"):
        values[f"vit.embeddings.patch_embeddings.projection.{kind}"] = state[f"{embeddings}patch_embeddings.{kind}"]
        values[f"vit.layernorm.{kind}"] = state[f"{encoder}encoder_norm.{kind}"]
        values[f"classifier.{kind}"] = state[f"head.{kind}"]
        for block in range(12):
            for theirs, ours in _BLOCK.items():
                values[f"vit.layers.{block}.{ours}.{kind}"] = state[f"{encoder}layer.{block}.{theirs}.{kind}"]
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=32,
        patch_size=16,
        num_labels=7,
        layer_norm_eps=1e-6,
    )
    model = ViTForImageClassification(config)
    model.load_state_dict(values)
    return as_classifier(model)
