"""Semantics-oriented multitask DeepFake detection by joint embedding (arXiv 2408.16305)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thurl.lazy import lazy_names


# name -> module. Resolved on first use, so that reading labels does not import torch.
_PUBLIC = {
    "DeepFakeConfig": "thurl.forensics.deepfake.config",
    "DeepFakeModel": "thurl.forensics.deepfake.model",
    "Explanation": "thurl.forensics.deepfake.explanations",
    "LabelGraph": "thurl.forensics.deepfake.graph",
    "convert_checkpoint": "thurl.forensics.deepfake.official",
    "explain_output": "thurl.forensics.deepfake.explanations",
    "load_graph": "thurl.forensics.deepfake.graph",
    "load_model": "thurl.forensics.deepfake.loading",
    "load_processor": "thurl.forensics.deepfake.loading",
}

__all__ = [
    "DeepFakeConfig",
    "DeepFakeModel",
    "Explanation",
    "LabelGraph",
    "convert_checkpoint",
    "explain_output",
    "load_graph",
    "load_model",
    "load_processor",
]

if TYPE_CHECKING:
    from thurl.forensics.deepfake.config import DeepFakeConfig
    from thurl.forensics.deepfake.explanations import Explanation, explain_output
    from thurl.forensics.deepfake.graph import LabelGraph, load_graph
    from thurl.forensics.deepfake.loading import load_model, load_processor
    from thurl.forensics.deepfake.model import DeepFakeModel
    from thurl.forensics.deepfake.official import convert_checkpoint

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
