"""Metrics that need no weights: always there, on the CPU, in float64, offline.

The functions are imported when the first picture is scored, so that a list of metrics, or of what is missing, comes
without torch. With `gt` they measure fidelity, with `lq` agreement with the input, alone they describe the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from thurl.iqa.face_restoration.interface import FaceBatch, Metric, MetricContext, WeightFile, register_metric
from thurl.iqa.face_restoration.weights import has_brisque


if TYPE_CHECKING:
    import torch

__all__ = ["PRISTINE"]

PRISTINE = WeightFile(
    "pristine",
    ("pristine.npz",),
    "Fit it to undistorted photographs with `thurl faces fit-niqe DIR --output pristine.npz`, or convert the released "
    "NIQE model with `thurl faces convert niqe`.",
)
_UNBOUNDED = (0.0, math.inf)
_UNIT = (-1.0, 1.0)
_GT, _LQ = frozenset({"gt"}), frozenset({"lq"})


def _later(module: str, name: str) -> Callable[..., torch.Tensor]:
    """A function of a module that is imported on the first call."""
    return lambda *arguments: getattr(import_module(f"thurl.iqa.face_restoration.{module}"), name)(*arguments)


psnr, ssim, ms_ssim, colour_shift = (_later("similarity", n) for n in ("psnr", "ssim", "ms_ssim", "colour_shift"))
luma, box_downsample = (_later("similarity", n) for n in ("luma", "box_downsample"))


def _classic(
    name: str,
    function: Callable[[FaceBatch], torch.Tensor],
    *,
    needs: frozenset[str] = frozenset(),
    lower: bool | None = False,
    bounds: tuple[float, float] = _UNBOUNDED,
) -> None:
    attributes: dict[str, Any] = {
        "__doc__": f"`{name}`, see the page on face restoration.",
        "__module__": __name__,
        "name": name,
        "needs": needs,
        "lower_is_better": lower,
        "range": bounds,
        "tier": "classic",
        "score": lambda self, batch: function(batch),
    }
    register_metric(type(f"Classic_{name}", (Metric,), attributes))


def _restored(name: str) -> Callable[[FaceBatch], torch.Tensor]:
    function = _later("signal", name)
    return lambda batch: function(batch.pixels("restored"))


def _both(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], kind: str, grey: bool = False
) -> Callable[[FaceBatch], torch.Tensor]:
    def score(batch: FaceBatch) -> torch.Tensor:
        a, b = batch.pixels("restored"), batch.pixels(kind)
        return function(luma(a), luma(b)) if grey else function(a, b)

    return score


def _consistency(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], factor: int
) -> Callable[[FaceBatch], torch.Tensor]:
    def score(batch: FaceBatch) -> torch.Tensor:
        restored, lq = batch.pixels("restored"), batch.pixels("lq")
        size = (restored.shape[-2], restored.shape[-1])
        return function(box_downsample(restored, factor), box_downsample(lq, factor, size))

    return score


_classic("psnr", _both(psnr, "gt"), needs=_GT)
_classic("psnr_y", _both(psnr, "gt", grey=True), needs=_GT)
_classic("ssim", _both(ssim, "gt", grey=True), needs=_GT, bounds=_UNIT)
_classic("ms_ssim", _both(ms_ssim, "gt", grey=True), needs=_GT, bounds=(0.0, 1.0))
_classic("lq_psnr_8", _consistency(psnr, 8), needs=_LQ)
_classic("lq_psnr_16", _consistency(psnr, 16), needs=_LQ)
_classic("lq_ssim_8", _consistency(ssim, 8), needs=_LQ, bounds=_UNIT)
_classic("lq_ssim_16", _consistency(ssim, 16), needs=_LQ, bounds=_UNIT)
_classic("colour_shift", _both(colour_shift, "lq"), needs=_LQ, lower=True)
_classic("tenengrad", _restored("tenengrad"), lower=None)
_classic("laplacian_variance", _restored("laplacian_variance"), lower=None)
_classic("noise_sigma", _restored("noise_sigma"), lower=True)
_classic("blockiness", _restored("blockiness"), lower=True)
_classic("colourfulness", _restored("colourfulness"), lower=None)
_classic("clipping", _restored("clipping"), lower=True, bounds=(0.0, 1.0))


class _Pristine(Metric):
    lower_is_better = True
    range = _UNBOUNDED
    requires = (PRISTINE,)
    tier = "classic"
    # Without a model that the user has fitted there is nothing to measure against.
    explicit = True

    def __init__(self, context: MetricContext):
        from thurl.iqa.face_restoration.pristine import load_pristine, pristine_digest

        super().__init__(context)
        path = context.require(PRISTINE)
        self.model = load_pristine(path)
        self._digest = pristine_digest(path)

    def fingerprint(self) -> str:
        return self._digest


@register_metric
class NiqeFitted(_Pristine):
    """NIQE against a user's pristine model."""

    name = "niqe_fitted"

    def score(self, batch: FaceBatch) -> torch.Tensor:
        from thurl.iqa.face_restoration.naturalness import niqe_distance, niqe_features

        return niqe_distance(niqe_features(batch.pixels("restored"))[0], self.model)


@register_metric
class BrisqueFitted(_Pristine):
    """Distance of BRISQUE features from those of a user's pristine pictures."""

    name = "brisque_fitted"

    @classmethod
    def missing(cls, context: MetricContext) -> list[str]:
        messages = super().missing(context)
        path = context.find(PRISTINE)
        if path is not None and not has_brisque(path):
            messages.append(
                f"{path} has no BRISQUE features (it was converted from NIQE's release, or is no pristine "
                "model). Fit one with `thurl faces fit-niqe`."
            )
        return messages

    def score(self, batch: FaceBatch) -> torch.Tensor:
        from thurl.iqa.face_restoration.naturalness import brisque_distance, brisque_features

        return brisque_distance(brisque_features(batch.pixels("restored")), self.model)
