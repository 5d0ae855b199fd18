"""A small joint embedding for pictures of a few dozen pixels, from a few numbers."""

from __future__ import annotations

from typing import Any

from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig

from thurl.forensics.deepfake.config import DeepFakeConfig
from thurl.forensics.deepfake.graph import LabelGraph, load_graph
from thurl.forensics.deepfake.prompts import tokenized
from thurl.forensics.joint_embedding import compact_prompts


__all__ = ["tiny_config"]


def tiny_config(
    graph: str | LabelGraph = "ffpp",
    *,
    image_size: int = 48,
    patch_size: int = 8,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 2,
    **options: Any,
) -> DeepFakeConfig:
    """Two towers of equal size; the vocabulary is the tokens that the graph's sentences use.

    Args:
        graph: name, path, or a graph whose sentences are known.
        image_size, patch_size: in pixels.
        hidden, layers, heads: of both towers; the embedding is `hidden` wide.
        **options: other settings of `DeepFakeConfig`.
    """
    graph = load_graph(graph) if isinstance(graph, str) else graph
    prompt_ids, vocabulary = compact_prompts(tokenized(graph))
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": hidden,
    }
    return DeepFakeConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=image_size, patch_size=patch_size),
        text_config=CLIPTextConfig(**sizes, **vocabulary),
        projection_dim=hidden,
        graph=graph.plain(),
        prompt_ids=prompt_ids,
        **options,
    )
