"""A-FINE in training: the three stages, what each of them trains, and its loss on a batch of triplets.

Paper: arXiv 2503.11221, section on training. Stage `naturalness` ranks raw naturalness and trains tower and head;
`fidelity` ranks raw fidelity and trains alpha and beta; `adapter` ranks D and trains k and the two bounded maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from thurl.errors import UsageError
from thurl.iqa.afine.losses import stage_terms
from thurl.iqa.afine.model import AFineModel
from thurl.iqa.afine.outputs import AFineOutput
from thurl.messages import nearest
from thurl.training.gather import gather_with_gradient
from thurl.training.method_output import MethodOutput


__all__ = ["STAGES", "TRAINED", "AFineStageModel", "score_groups"]

STAGES = ("naturalness", "fidelity", "adapter")

TRAINED = {
    "naturalness": ("vision", "naturalness_head"),
    "fidelity": ("fidelity_head",),
    "adapter": ("adapter", "naturalness_map", "fidelity_map"),
}
"""Parts of the model that each stage trains; everything else is frozen."""

# The tower's class output is not used, and a parameter without a gradient stops DDP.
_UNUSED = "vision.post_layernorm."


@dataclass
class _Scores:
    """What a stage compares, (B,) each; `reference` in the first stage only."""

    first: torch.Tensor
    second: torch.Tensor
    reference: torch.Tensor | None


class AFineStageModel(AFineModel):
    """`AFineModel` with the losses of its training; the files it saves are those of an `AFineModel`.

    Call `begin_stage` before training. Without labels it scores images instead, as `AFineModel` does.
    """

    main_input_name = "g12"
    stage: str | None = None

    def begin_stage(self, stage: str) -> None:
        """Choose the loss, and freeze what the stage does not train.

        Raises:
            UsageError: unknown stage.
        """
        if stage not in STAGES:
            raise UsageError(f"stage {stage!r} is none of {', '.join(STAGES)}{nearest(stage, STAGES)}")
        self.stage = stage
        for name, parameter in self.named_parameters():
            trained = name.split(".", 1)[0] in TRAINED[stage] and not name.startswith(_UNUSED)
            parameter.requires_grad_(trained)

    def forward(
        self,
        ref: Any = None,
        dis: Any = None,
        groups: list[dict[str, torch.Tensor]] | None = None,
        g12: torch.Tensor | None = None,
        g1r: torch.Tensor | None = None,
        g2r: torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
        **more: Any,
    ) -> MethodOutput:
        """Loss terms of a batch of triplets, or with `groups` alone the scores of its images, (B,) in their order.

        Args:
            ref, dis: as in `AFineModel`, instead of `groups`.
            groups, g12, g1r, g2r: of `thurl.iqa.afine.triplet_pictures.collate_pictures`.
            scores: (B, 5) raw naturalness of reference, first and second image, raw fidelity of first and second;
                stage `adapter` then needs no `groups`.

        Raises:
            UsageError: labels, but no stage has begun.
        """
        if scores is not None:
            return self._adapted(scores, g12)
        if groups is None:
            return super().forward(ref, dis, **more)
        if g12 is None:
            return score_groups(self, groups)
        if self.stage is None:
            raise UsageError("no training stage has begun; call `begin_stage` first")
        rows = torch.cat([group["rows"] for group in groups])
        parts = [self._compared(group) for group in groups]
        columns = [torch.cat([part.first for part in parts]), torch.cat([part.second for part in parts])]
        labels = [g12[rows]]
        if self.stage == "naturalness":
            if g1r is None or g2r is None:
                raise UsageError("stage naturalness needs the labels g1r and g2r")
            columns.append(torch.cat([part.reference for part in parts if part.reference is not None]))
            labels += [g1r[rows], g2r[rows]]
        gathered = gather_with_gradient(*columns, *labels)
        u1, u2, *rest = gathered
        if self.stage == "naturalness":
            terms, present = stage_terms(u1, u2, *rest)
        else:
            terms, present = stage_terms(u1, u2, None, *rest)
        return MethodOutput(terms=terms, present=present)

    def _adapted(self, scores: torch.Tensor, g12: torch.Tensor | None) -> MethodOutput:
        if self.stage != "adapter" or g12 is None:
            raise UsageError(f"scores and labels are for stage adapter; the stage is {self.stage}")
        reference, *columns = scores.unbind(1)
        one, two = (self.combine(reference, columns[i], columns[i + 2]).afine for i in (0, 1))
        one, two, labels = gather_with_gradient(one, two, g12)
        terms, present = stage_terms(one, two, None, labels)
        return MethodOutput(terms=terms, present=present)

    def _compared(self, group: dict[str, torch.Tensor]) -> _Scores:
        first, second, reference = group["first"], group["second"], group["reference"]
        if self.stage == "naturalness":
            raw = self.naturalness_raw(group["pixels"])
            return _Scores(raw[first], raw[second], raw[reference])
        with torch.no_grad():  # the tower is frozen from here on
            found = self.features(group["pixels"])
        known = found[reference]
        if self.stage == "fidelity":
            return _Scores(self.fidelity_raw(known, found[first]), self.fidelity_raw(known, found[second]), None)
        with torch.no_grad():
            raw = self.naturalness_raw(found)
            fidelity = [self.fidelity_raw(known, found[index]) for index in (first, second)]
        one, two = (
            self.combine(raw[reference], raw[index], value).afine
            for index, value in zip((first, second), fidelity, strict=True)
        )
        return _Scores(one, two, None)

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers; the configuration names `AFineModel`, which is what the folder holds."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        self.config.architectures = [AFineModel.__name__]
        if is_main_process:
            self.config.save_pretrained(save_directory)


def score_groups(model: AFineModel, groups: list[dict[str, torch.Tensor]]) -> AFineOutput:
    """Scores of the images of `thurl.iqa.afine.triplet_pictures.collate_pictures`, (B,) in the order of its items.

    A reference goes through the tower once for all its images of the batch.

    Args:
        model: any A-FINE model.
        groups: on its device.
    """
    outputs = []
    for group in groups:
        found = model.features(group["pixels"])
        raw = model.naturalness_raw(found)
        reference, image = group["reference"], group["first"]
        fidelity = model.fidelity_raw(found[reference], found[image])
        outputs.append(model.combine(raw[reference], raw[image], fidelity))
    order = torch.cat([group["rows"] for group in groups]).argsort()
    return AFineOutput(**{name: torch.cat([out[name] for out in outputs])[order] for name in outputs[0]})
