"""BLADES: faces and fifty sentences about cameras and edits in one embedding.

"Bi-Level Optimization for Self-Supervised AI-Generated Face Detection", arXiv 2507.22824, with the official code
(GitHub `MZMMSEC/AIGFD_BLO`): `logits = exp(logit_scale) v t^T`, v the encoder's features and t the prompts' features
of CLIP's text tower behind a linear layer, both at length 1; softmax within each task only.

Deliberate differences, none of which changes a number: prompts are padded to the longest of them (17 tokens) and not
to 77, which the causal mask hides anyway; in evaluation the prompts are encoded once per set of weights. A zero
feature stays zero instead of becoming NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection, PreTrainedModel
from transformers import initialization as init

from thurl.forensics.exif.config import BladesConfig
from thurl.forensics.exif.encoder import ExifEncoder, unit_features
from thurl.forensics.exif.losses import blades_terms, gathered_labels, present_tasks, total_loss
from thurl.forensics.exif.outputs import ExifOutput


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
        self._cached: _CachedText | None = None
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: Mapping[str, torch.Tensor] | None = None, **_: object
    ) -> ExifOutput:
        """One batch.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: as `compute_terms` takes them; None computes no loss.
        """
        features = self.image_features(pixel_values)
        text = unit_features(self.text_features())
        # Under autocast the product would be rounded to half precision, too coarse for pairs of expected levels.
        with torch.autocast(features.device.type, enabled=False):
            logits = self.logit_scale.to(features.dtype).exp() * features @ text.to(features.dtype).T
        output = ExifOutput(scores=logits, features=features)
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
        # torch counts changes in place, except of tensors that were made in inference mode. `Module.to` gives a weight
        # other memory without counting.
        if self.training or torch.is_grad_enabled() or any(weight.is_inference() for weight in weights):
            self._cached = None
            return self._encode_prompts()
        kind = self.text_fc.weight.device.type
        state = (
            [(weight, weight._version, weight.data_ptr(), weight.dtype) for weight in weights],
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        )
        if self._cached is None or not self._cached.holds(*state):
            self._cached = _CachedText(*state, self._encode_prompts())
        return self._cached.features

    def __getstate__(self) -> dict:
        # A copy's weights count their changes anew, which could hide one from a copied cache.
        return {**self.__dict__, "_cached": None}

    def _encode_prompts(self) -> torch.Tensor:
        longest = max(map(len, self.config.prompt_ids))
        padded = [[*ids, *[0] * (longest - len(ids))] for ids in self.config.prompt_ids]
        ids = torch.tensor(padded, device=self.text_fc.weight.device)
        return self.text_fc(self.text(input_ids=ids).text_embeds)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.text_fc:
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif module is self:
            init.constant_(self.logit_scale, float(self.config.logit_scale_init))


class _CachedText:
    """Features of the prompts and what they were computed from. Holds the weights, so that no other object can take
    the place of one unnoticed."""

    def __init__(self, state: list[tuple[Any, ...]], autocast: torch.dtype | None, features: torch.Tensor):
        self.state, self.autocast, self.features = state, autocast, features

    def holds(self, state: list[tuple[Any, ...]], autocast: torch.dtype | None) -> bool:
        return self.autocast == autocast and all(
            mine[0] is yours[0] and mine[1:] == yours[1:] for mine, yours in zip(self.state, state, strict=True)
        )
