"""The one-class method's model: a face encoder with five linear heads.

"Self-Supervised Learning for Detecting AI-Generated Faces as Anomalies", arXiv 2501.02207, with the official code
(GitHub `MZMMSEC/AIGFD_EXIF`) for what the paper leaves open. The heads only train the encoder; a detector reads its
raw features.

Deliberate difference: the heads are named after what they rank. In the released weights the labels of two settings are
swapped, so that `fc_et` ranks the focal length and `fc_fl` the exposure time; `thurl.forensics.exif.official` puts
them right.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from thurl.forensics.exif.config import ExifOrdinalConfig
from thurl.forensics.exif.encoder import ExifEncoder
from thurl.forensics.exif.losses import HEADS, gathered_labels, ordinal_terms, present_tasks, total_loss
from thurl.forensics.exif.outputs import ExifOutput


__all__ = ["ExifOrdinalModel"]


class ExifOrdinalModel(PreTrainedModel):
    """Faces to features and five scores: higher ISO, f-number, exposure time, focal length; logit of manipulated."""

    config_class = ExifOrdinalConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    unit_length = False
    """Whether a detector takes the features at length 1."""

    def __init__(self, config: ExifOrdinalConfig):
        super().__init__(config)
        self.visual = ExifEncoder._from_config(config.encoder_config)
        width = config.encoder_config.feature_size
        self.heads = nn.ModuleDict({task: nn.Linear(width, 1) for task in HEADS})
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: Mapping[str, torch.Tensor] | None = None, **_: object
    ) -> ExifOutput:
        """One batch.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: as `compute_terms` takes them; None computes no loss.
        """
        features = self.visual(pixel_values).features
        scores = torch.cat([self.heads[task](features) for task in HEADS], dim=1)
        output = ExifOutput(scores=scores, features=features)
        if labels is not None:
            # Pairs of all processes, and a mean over all rows that have a label.
            everything, known = gathered_labels(scores, labels)
            output.terms = self.compute_terms(everything, known)
            output.present = present_tasks(known, output.terms)
            output.loss = total_loss(output.terms)
        return output

    def compute_terms(self, scores: torch.Tensor, labels: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Named losses of scores that may come from several processes: see `thurl.forensics.exif.losses`.

        Args:
            scores: (N, 5), the `scores` of one or several outputs one below the other.
            labels: theirs.
        """
        return ordinal_terms(scores, labels, rank_scale=self.config.rank_scale)

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, d) features for a detector, raw as officially."""
        return self.visual(pixel_values).features

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
