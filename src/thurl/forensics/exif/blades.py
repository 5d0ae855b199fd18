"""BLADES: faces and fifty sentences about cameras and edits in one embedding.

"Bi-Level Optimization for Self-Supervised AI-Generated Face Detection", arXiv 2507.22824, with the official code
(GitHub `MZMMSEC/AIGFD_BLO`): `logits = exp(logit_scale) v t^T`, v the encoder's features and t the prompts' features
of CLIP's text tower behind a linear layer, both at length 1 (`thurl.forensics.joint_embedding`); softmax within each
task only. Deliberate difference: a zero feature stays zero instead of becoming NaN.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection, PreTrainedModel
from transformers import initialization as init

from thurl.forensics.exif.config import BladesConfig
from thurl.forensics.exif.encoder import ExifEncoder
from thurl.forensics.exif.losses import blades_terms, gathered_labels, present_tasks, total_loss
from thurl.forensics.exif.outputs import ExifOutput
from thurl.forensics.joint_embedding import KeptFeatures, joint_logits, padded_prompts, unit_features


__all__ = ["BladesModel"]


class BladesModel(PreTrainedModel):
    """Faces to features of length 1 and to one logit per prompt."""

    config_class = BladesConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    unit_length = True
    """Whether a detector takes the features at length 1."""

    def __init__(self, config: BladesConfig):
        super().__init__(config)
        width = config.encoder_config.feature_size
        self.visual = ExifEncoder._from_config(config.encoder_config)
        self.text = CLIPTextModelWithProjection._from_config(config.text_config)
        self.text_fc = nn.Linear(config.text_config.projection_dim, width)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init)))
        self._kept = KeptFeatures()
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: Mapping[str, torch.Tensor] | None = None, **_: object
    ) -> ExifOutput:
        """One batch.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: as `compute_terms` takes them; None computes no loss.
        """
        raw = self.visual(pixel_values).features
        logits = joint_logits(raw, self.text_features(), scale=self.logit_scale.exp(), normalize=True)
        output = ExifOutput(scores=logits, features=unit_features(raw))
        if labels is not None:
            # Pairs of all processes, and a mean over all rows that have a label.
            everything, known = gathered_labels(logits, labels)
            output.terms = self.compute_terms(everything, known)
            output.present = present_tasks(known, output.terms)
            output.loss = total_loss(output.terms)
        return output

    def compute_terms(self, scores: torch.Tensor, labels: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Named losses of logits that may come from several processes: see `thurl.forensics.exif.losses`.

        Args:
            scores: (N, columns), the `scores` of one or several outputs one below the other.
            labels: theirs.
        """
        config = self.config
        return blades_terms(
            scores, labels, columns=config.columns, rank_scale=config.rank_scale, focal_gamma=config.focal_gamma
        )

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, d) features for a detector, of length 1, float32 or better."""
        return unit_features(self.visual(pixel_values).features)

    def text_features(self) -> torch.Tensor:
        """(columns, d) features of the prompts, not normalised.

        Computed anew whenever a gradient may be wanted. Otherwise kept, until a weight of the text side changes.
        """
        weights = [*self.text.parameters(), *self.text_fc.parameters()]
        return self._kept.get(weights, self._encode_prompts, training=self.training)

    def _encode_prompts(self) -> torch.Tensor:
        ids = padded_prompts(self.config.prompt_ids, self.text_fc.weight.device)
        return self.text_fc(self.text(input_ids=ids).text_embeds)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.text_fc:
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif module is self:
            init.constant_(self.logit_scale, float(self.config.logit_scale_init))
