"""Faces and the sentences of a label graph in one embedding, and the joint distribution of all answers.

"Semantics-Oriented Multitask Learning for DeepFake Detection: A Joint Embedding Approach" (arXiv 2408.16305; GitHub
`MZMMSEC/SJEDD`): both towers of CLIP are trained; the energy of node j is the product of the face's and its sentence's
features over 10, not normalised; `thurl.forensics.deepfake.marginals` makes probabilities of the energies.

Deliberate differences: a face is encoded once per forward (the official code encodes it once per task), marginals are
computed in logarithms, and losses are means over known labels, of all processes together. After training the features
of the sentences are constants, so that the text tower can be dropped (`fold_text`).

Weights have the names of transformers' `CLIPModel`, so that its files start a model.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModel, PreTrainedModel
from transformers import initialization as init

from thurl.errors import UsageError
from thurl.forensics.deepfake.config import DeepFakeConfig
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.losses import known_tasks, task_terms
from thurl.forensics.deepfake.marginals import log_marginals, map_state
from thurl.forensics.joint_embedding import KeptFeatures, joint_logits, padded_prompts
from thurl.training.gather import gather_with_gradient
from thurl.training.method_output import MethodOutput


__all__ = ["DeepFakeModel", "DeepFakeOutput"]


@dataclass
class DeepFakeOutput(MethodOutput):
    """Result of one batch. Several processes have their own rows, and the losses of all rows together.

    Attributes:
        loss: sum of the terms, scalar; None without labels.
        terms: task (binary, global, local) to loss, scalars; None without labels.
        present: task to whether the batch has labels for it.
        logits: (B, n), the energies of the nodes, float32 or better.
        marginals: (B, n) float32 in [0, 1], the probability that each node is on; column 0 is the detection score.
        log_odds: (B, n) float32, `log p / (1 - p)` of the marginals: the same order without ties at 1.
        states: (B, n) bool, the most probable legal state.
    """

    logits: torch.FloatTensor | None = None
    marginals: torch.FloatTensor | None = None
    log_odds: torch.FloatTensor | None = None
    states: torch.BoolTensor | None = None


class DeepFakeModel(PreTrainedModel):
    """Faces to the probabilities of the nodes of a label graph."""

    config_class = DeepFakeConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "CLIPVisionEmbeddings"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DeepFakeConfig):
        super().__init__(config)
        self.graph: LabelGraph = config.label_graph
        vision: Any = config.vision_config
        text: Any = config.text_config
        width = config.projection_dim
        self.vision_model = CLIPVisionModel._from_config(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)
        if config.folded:
            self.register_buffer("sentence_features", torch.zeros(len(self.graph.names), width))
        else:
            self.text_model = CLIPTextModel._from_config(text)
            self.text_projection = nn.Linear(text.hidden_size, width, bias=False)
        if config.learn_scale:
            self.logit_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self._kept = KeptFeatures()
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: object) -> DeepFakeOutput:
        """One batch.

        Args:
            pixel_values: (B, 3, H, W), normalised as the image processor does it.
            labels: (B, n) integers, 1, 0 and negative where unknown; None computes no loss.

        Raises:
            UsageError: a folded model in training.
        """
        if self.config.folded and self.training and labels is not None:
            raise UsageError(
                "this model has no text tower any more (`fold_text`), so its sentences cannot be trained; train the "
                "model it was made from and fold the result"
            )
        logits = joint_logits(
            self.image_features(pixel_values), self.text_features(), scale=self.scale, normalize=self.config.normalize
        )
        states = self.graph.states.to(logits.device)
        log_p, log_not_p = log_marginals(logits, states)
        output = DeepFakeOutput(
            logits=logits,
            marginals=log_p.exp().float(),
            log_odds=(log_p - log_not_p).float(),
            states=map_state(logits, states),
        )
        if labels is not None:
            # A mean over all labels that are known, on all processes.
            everything, known = gather_with_gradient(logits, labels.to(logits.device))
            output.terms = self.compute_terms(everything, known)
            output.present = known_tasks(known, self.graph.tasks)
            output.loss = torch.stack(list(output.terms.values())).sum()
        return output

    def compute_terms(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss per task of energies that may come from several processes, float32.

        Args:
            logits: (N, n), the `logits` of one or several outputs one below the other.
            labels: (N, n), theirs.
        """
        config = self.config
        terms = task_terms(
            logits,
            labels,
            self.graph.states.to(logits.device),
            self.graph.tasks,
            eps=config.fidelity_eps,
            cross_entropy=config.cross_entropy,
            likelihood=config.likelihood,
        )
        return {task: term.to(logits.dtype) for task, term in terms.items()}

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, projection_dim) features of faces, not normalised."""
        return self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output)

    def text_features(self) -> torch.Tensor:
        """(n, projection_dim) features of the sentences, not normalised.

        Computed anew whenever a gradient may be wanted. Otherwise kept, until a weight of the text side changes.
        """
        if self.config.folded:
            return self.sentence_features
        weights = [*self.text_model.parameters(), *self.text_projection.parameters()]
        return self._kept.get(weights, self._encode_prompts, training=self.training)

    @property
    def scale(self) -> torch.Tensor | float:
        """What the products of features are multiplied by."""
        return self.logit_scale.exp() if self.config.learn_scale else self.config.scale

    def fold_text(self) -> DeepFakeModel:
        """A model with the same scores that holds the features of the sentences instead of the text tower.

        It is in evaluation mode and cannot be trained. CLIP ViT-B/32: 88 million weights are left of 151.

        Raises:
            UsageError: folded already.
        """
        if self.config.folded:
            raise UsageError("this model has no text tower any more; it is folded already")
        was_training = self.training
        try:
            with torch.no_grad():
                features = self.eval().text_features().detach().clone()
            # The towers are not part of what is copied, so that memory holds the text tower once.
            text = {name: self._modules.pop(name) for name in ("text_model", "text_projection")}
            try:
                folded = copy.deepcopy(self)
            finally:
                self._modules.update(text)
        finally:
            self.train(was_training)
        folded.config.folded = True
        folded.register_buffer("sentence_features", features)
        return folded.eval()

    def _encode_prompts(self) -> torch.Tensor:
        ids = padded_prompts(self.config.prompt_ids, self.text_projection.weight.device)
        return self.text_projection(self.text_model(input_ids=ids).pooler_output)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """CLIP's start; the towers know their own."""
        projections = [self.visual_projection, *([] if self.config.folded else [self.text_projection])]
        if isinstance(module, nn.Linear) and any(module is projection for projection in projections):
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif module is self and self.config.learn_scale:
            init.constant_(self.logit_scale, math.log(self.config.scale))
        if module is self and self.config.folded:
            init.zeros_(self.sentence_features)
