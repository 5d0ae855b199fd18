"""Configuration of the joint embedding of faces and the sentences of a label graph."""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig

from thurl.forensics.deepfake.graph import LabelGraph, graph_from, load_graph
from thurl.forensics.deepfake.prompts import tokenized
from thurl.forensics.joint_embedding import prompt_problem


__all__ = ["DeepFakeConfig"]


class DeepFakeConfig(PreTrainedConfig):
    """CLIP ViT-B/32 and the graph of FaceForensics++ by default (arXiv 2408.16305).

    Args:
        vision_config, text_config: the two towers.
        projection_dim: width of the embedding.
        graph: label graph, kept whole in the file: a name or path that `load_graph` takes, or its plain data.
        prompt_ids: token ids of the graph's sentences with start and end, without padding. Known for the shipped
            graphs.
        normalize: bring the features of both towers to length 1. The official code does not.
        scale: of the product of features, at the start if it is learned; 1/10 officially.
        learn_scale: whether the scale is a weight.
        fidelity_eps: added inside the roots of the fidelity loss; 1e-8 officially.
        cross_entropy, likelihood: shares of these two in the loss, see `thurl.forensics.deepfake.losses`.
        folded: the text tower is gone, its features are constants of the model (`DeepFakeModel.fold_text`).

    Raises:
        ValueError: values outside their range, and prompts that do not fit.
        UsageError: a label graph that cannot be used.
    """

    model_type = "thurl_deepfake"
    sub_configs = {"vision_config": CLIPVisionConfig, "text_config": CLIPTextConfig}

    vision_config: dict | CLIPVisionConfig | None = None
    text_config: dict | CLIPTextConfig | None = None
    projection_dim: int = 512
    graph: dict | str = "ffpp"
    prompt_ids: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    normalize: bool = False
    scale: float = 0.1
    learn_scale: bool = False
    fidelity_eps: float = 0.0
    cross_entropy: float = 0.0
    likelihood: float = 0.0
    folded: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, CLIPVisionConfig):
            self.vision_config = CLIPVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, CLIPTextConfig):
            self.text_config = CLIPTextConfig(**(self.text_config or {}))
        graph = load_graph(self.graph) if isinstance(self.graph, str) else graph_from(self.graph)
        self.graph = graph.plain()
        given = tokenized(graph) if self.prompt_ids is None else self.prompt_ids
        self.prompt_ids = [list(ids) for ids in given]
        if problem := prompt_problem(self.prompt_ids, self.text_config, len(graph.names)):
            raise ValueError(problem)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale={self.scale}: a positive number is needed")
        if not (math.isfinite(self.fidelity_eps) and self.fidelity_eps >= 0):
            raise ValueError(f"fidelity_eps={self.fidelity_eps}: 0 or a small positive number is needed")
        shares = (self.cross_entropy, self.likelihood)
        if not (min(shares) >= 0 and sum(shares) <= 1):
            raise ValueError(
                f"cross_entropy={self.cross_entropy} and likelihood={self.likelihood}: shares of the loss, 0 or more "
                "and together at most 1"
            )
        super().__post_init__(**kwargs)

    @property
    def label_graph(self) -> LabelGraph:
        """The graph as an object."""
        return graph_from(self.graph)
