"""The binary detector's perceptron: features of length 1 to "photographic" and "generated" (arXiv 2507.22824).

Official code: `fc1` 768 to 1536, ReLU, `fc2` 1536 to 2, no dropout, no normalisation layer; class 1 is generated. How
it was trained is not published; `thurl.forensics.exif.binary` is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init

from thurl.forensics.exif.config import FaceHeadConfig
from thurl.forensics.joint_embedding import unit_features
from thurl.training.method_output import MethodOutput


__all__ = ["FaceHead", "FaceHeadOutput"]


@dataclass
class FaceHeadOutput(MethodOutput):
    """Result of one batch.

    Attributes:
        loss: cross-entropy, scalar; None without labels.
        terms: the loss under its name.
        logits: (B, 2), photographic and generated.
    """

    logits: torch.FloatTensor | None = None


class FaceHead(PreTrainedModel):
    """Features to two logits."""

    config_class = FaceHeadConfig
    main_input_name = "features"

    def __init__(self, config: FaceHeadConfig):
        super().__init__(config)
        self.fc1 = nn.Linear(config.feature_size, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None, **_: object) -> FaceHeadOutput:
        """One batch.

        Args:
            features: (B, d) of any length, brought to length 1 here.
            labels: (B,) 0 photographic, 1 generated; None computes no loss.
        """
        unit = unit_features(features).to(self.fc1.weight.dtype)
        logits = self.fc2(functional.relu(self.fc1(unit)))
        loss = None if labels is None else functional.cross_entropy(logits.float(), labels)
        return FaceHeadOutput(loss=loss, terms=None if loss is None else {"cross_entropy": loss}, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
