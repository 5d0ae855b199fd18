"""CLIP as a classifier by the names of classes: text features, computed once, are its fixed head.

Only the vision tower is edited. The model is the whole CLIP, so that an edit fits it whatever the classes are, and an
edited one is saved as a plain CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from thurl.editing.classifier import Classifier
from thurl.editing.units import Unit
from thurl.errors import UsageError
from thurl.vit import final_norm


__all__ = ["ZeroShotClassifier"]


class ZeroShotClassifier(Classifier):
    """Scaled cosines of a picture with the text features of classes.

    Args:
        model: transformers `CLIPModel`.
        text_features: float [C, P], of any length; see `thurl.vision_models.clip_text.clip_text_features`.
        units: as `Classifier`; of the vision tower.

    Raises:
        UsageError: features of another width, and what `Classifier` raises.
    """

    def __init__(self, model: Any, text_features: torch.Tensor, units: Sequence[Unit] | None = None) -> None:
        width = model.config.projection_dim
        if text_features.dim() != 2 or text_features.shape[1] != width:
            raise UsageError(f"text features of shape {list(text_features.shape)}; this CLIP needs [classes, {width}]")
        super().__init__(model, len(text_features), units)
        self.register_buffer("text_features", functional.normalize(text_features.detach(), dim=-1))

    def whole(self, pixel_values: torch.Tensor) -> torch.Tensor:
        output = self.model.get_image_features(pixel_values=pixel_values)
        return self._cosines(output if isinstance(output, torch.Tensor) else output.pooler_output)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._cosines(self.model.visual_projection(final_norm(self.model)(hidden[:, 0])))

    def _cosines(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.logit_scale.exp() * functional.normalize(features, dim=-1) @ self.text_features.T
