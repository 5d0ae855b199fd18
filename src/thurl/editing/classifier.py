"""What is edited: an image classifier on a vision transformer that can be cut before any of its blocks.

The part in front of the first edited block does not change during an edit. `prefix` computes it once, without
gradients, `suffix` goes on from there; together they are the model.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from thurl.editing.units import Unit, default_layers, resolve_ffn
from thurl.errors import UsageError
from thurl.training.fingerprint import FingerprintCache
from thurl.vit import final_norm, transformer_blocks


__all__ = ["Classifier", "TimmClassifier", "TransformersClassifier", "as_classifier"]

# Logits of the parts against those of the whole, relative to the largest.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_HALF_TOLERANCE = 0.05


class _CutError(Exception):
    """Ends a forward pass at the block whose input is wanted."""


class Classifier(nn.Module, ABC):
    """Base class. A subclass says what comes after the last block: `head`, and `feature` where it is no class token.

    The model is put into eval mode; its weights are only read.

    Args:
        model: holds the parameters under the names of the units. Called with pictures it gives logits [B, C], as a
            tensor or as `logits` of its output.
        classes: number of classes C.
        units: what an edit may change, in the order of a mask's rows; default: the feed-forward networks of
            `default_layers`.

    Raises:
        UsageError: no vision transformer, fewer than two classes, units of several sizes or not of this model.
    """

    def __init__(self, model: nn.Module, classes: int, units: Sequence[Unit] | None = None) -> None:
        super().__init__()
        if classes < 2:
            raise UsageError(f"{type(model).__name__} has {classes} classes; a classifier has two or more")
        self.model = model.eval()
        self.classes = classes
        self.depth = len(transformer_blocks(model))
        self.units = tuple(resolve_ffn(model, default_layers(model)) if units is None else units)
        self._checked = False
        self._fingerprint = FingerprintCache()
        _check_units(model, self.units)

    def with_units(self, units: Sequence[Unit]) -> Classifier:
        """The same model, to be edited elsewhere.

        Raises:
            UsageError: as the constructor.
        """
        _check_units(self.model, units)
        other = copy.copy(self)
        other.units = tuple(units)
        return other

    @property
    def mask_shape(self) -> tuple[int, int]:
        """T units and M neurons of each: the shape of a mask."""
        return len(self.units), self.units[0].size

    @property
    def first_layer(self) -> int:
        """The first block with a unit: where an edit cuts the model."""
        return min(unit.layer for unit in self.units)

    @property
    def linear(self) -> dict[str, nn.Linear]:
        """The layers that hold the units' weights, by the name of the weight."""
        return {unit.parameter: _layer_of(self.model, unit) for unit in self.units}

    def whole(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of pictures by the model's own forward pass."""
        output = self.model(pixel_values)
        return output if isinstance(output, torch.Tensor) else output.logits

    @abstractmethod
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] from the output [B, N, D] of the last block."""

    def feature(self, hidden: torch.Tensor) -> torch.Tensor:
        """Class token [B, D] after the final norm from the output [B, N, D] of the last block."""
        return final_norm(self.model)(hidden)[:, 0]

    def forward(self, inputs: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        """Logits [B, C] from pictures, or from what enters a block where `layer` is given.

        One function for both, so that `torch.func.functional_call(classifier, {"model." + name: weight}, ...)` gives
        those of a changed model.
        """
        if layer is None:
            return self.whole(inputs)
        hidden = inputs
        for block in transformer_blocks(self.model)[layer:]:
            hidden = _through(block, hidden)
        return self.head(hidden)

    def logits(self, pixel_values: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """[B, C] by the model's own forward pass.

        Args:
            pixel_values: [B, channels, H, W], preprocessed pictures.
            weights: by full name, in place of those of the model; gradients flow into them.
        """
        return self._call((pixel_values,), weights)

    def suffix(
        self, hidden: torch.Tensor, layer: int, weights: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits [B, C] from what enters block `layer`; `weights` as for `logits`."""
        return self._call((hidden, layer), weights)

    @torch.no_grad()
    def prefix(self, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
        """What enters block `layer` of 0..depth - 1, [B, N, D] without gradient.

        The first call also compares both parts with the whole, for one picture.

        Raises:
            UsageError: no such layer; the parts do not give the logits of the whole.
        """
        if not 0 <= layer < self.depth:
            raise UsageError(f"layer {layer}: {type(self.model).__name__} has the layers 0 to {self.depth - 1}")
        if not self._checked:
            self._check(pixel_values[:1], layer)
        return self._input_of(transformer_blocks(self.model)[layer], pixel_values)

    @torch.no_grad()
    def class_token(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, D] of the last block, after the final norm.

        Of a model that averages its tokens, it is the average.
        """
        last = transformer_blocks(self.model)[-1]
        return self.feature(_through(last, self._input_of(last, pixel_values)))

    def fingerprint(self) -> str:
        """Of the weights as they are now: an edit of another model is not applied to this one.

        Kept until a weight is changed or replaced, see `FingerprintCache`.
        """
        return self._fingerprint.of(self.model)

    def _call(self, inputs: tuple[Any, ...], weights: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
        if not weights:
            return self(*inputs)
        return functional_call(self, {f"model.{name}": weight for name, weight in weights.items()}, inputs)

    def _input_of(self, block: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = []

        def cut(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            kept.append(arguments[0] if arguments else named["hidden_states"])
            raise _CutError

        with _hook(block.register_forward_pre_hook(cut, with_kwargs=True)):
            try:
                self.whole(pixel_values)
            except _CutError:
                return kept[0]
        raise UsageError(f"{type(self.model).__name__} does not call its blocks on pictures; wrap it so that it does")

    def _check(self, picture: torch.Tensor, layer: int) -> None:
        whole = self.logits(picture)
        parts = self.suffix(self._input_of(transformer_blocks(self.model)[layer], picture), layer)
        tolerance = _TOLERANCE.get(whole.dtype, _HALF_TOLERANCE) * max(1.0, float(whole.abs().max()))
        if parts.shape != whole.shape or not torch.allclose(parts, whole, rtol=0, atol=tolerance, equal_nan=True):
            raise UsageError(
                f"{type(self.model).__name__} computes its logits in another way than its blocks and head one after "
                "another; such a model cannot be edited"
            )
        self._checked = True


class TimmClassifier(Classifier):
    """A `VisionTransformer` of timm, distilled ones too."""

    def __init__(self, model: Any, units: Sequence[Unit] | None = None) -> None:
        super().__init__(model, model.num_classes, units)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.forward_head(self.model.norm(hidden))

    def feature(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.model.global_pool == "token":
            return self.model.norm(hidden)[:, 0]
        return self.model.forward_head(self.model.norm(hidden), pre_logits=True)


class TransformersClassifier(Classifier):
    """ViT, DeiT (also with the teacher's head), DINOv2 or CLIP of transformers, each `...ForImageClassification`."""

    def __init__(self, model: Any, units: Sequence[Unit] | None = None) -> None:
        super().__init__(model, model.config.num_labels, units)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        kind = self.model.config.model_type
        if kind == "clip":  # it averages the patches, and no norm comes between
            return self.model.classifier(hidden[:, 1:].mean(dim=1))
        tokens = final_norm(self.model)(hidden)
        if kind == "dinov2":
            return self.model.classifier(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))
        if hasattr(self.model, "cls_classifier"):
            return (self.model.cls_classifier(tokens[:, 0]) + self.model.distillation_classifier(tokens[:, 1])) / 2
        return self.model.classifier(tokens[:, 0])


def as_classifier(model: nn.Module, units: Sequence[Unit] | None = None) -> Classifier:
    """The classifier around a model of timm or transformers.

    Args:
        model: timm `VisionTransformer` with a head, or a ViT, DeiT, DINOv2 or CLIP `...ForImageClassification`.
        units: as `Classifier`.

    Raises:
        UsageError: another model, or one without a classifier.
    """
    if hasattr(model, "forward_head") and hasattr(model, "num_classes"):
        return TimmClassifier(model, units)
    if hasattr(model, "config") and (hasattr(model, "classifier") or hasattr(model, "cls_classifier")):
        return TransformersClassifier(model, units)
    raise UsageError(
        f"{type(model).__name__} is no image classifier that can be edited; known are timm's VisionTransformer with a "
        "head and ViT, DeiT, DINOv2 and CLIP for image classification of transformers"
    )


def _through(block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    # CLIP's blocks ask for a mask, those of timm and DINOv2 take none; pictures have none.
    return block(hidden, None) if hasattr(block, "self_attn") else block(hidden)


def _check_units(model: nn.Module, units: Sequence[Unit]) -> None:
    sizes = {unit.label: unit.size for unit in units}
    parameters = {unit.parameter for unit in units}
    if len(set(sizes.values())) != 1 or len(sizes) < len(units) or len(parameters) < len(units):
        found = ", ".join(f"{unit.label} {unit.size}" for unit in units) or "none"
        raise UsageError(f"neurons of the units: {found}; a mask needs units of one size, each once")
    for unit in units:
        _layer_of(model, unit)


def _layer_of(model: nn.Module, unit: Unit) -> nn.Linear:
    try:
        module = model.get_submodule(unit.parameter.rpartition(".")[0])
    except AttributeError:
        raise UsageError(f"{type(model).__name__} has no {unit.parameter}; the units are of another model") from None
    if not isinstance(module, nn.Linear) or module.weight.shape[unit.axis] != unit.groups * unit.size:
        raise UsageError(
            f"{unit.parameter} of {type(model).__name__} is no linear layer with {unit.groups * unit.size} "
            f"{'columns' if unit.axis else 'rows'}; the units are of another model"
        )
    return module


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
