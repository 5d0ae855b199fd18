"""Metrics of a whole set: FID against FFHQ, as the challenge computes it, and the kernel distance."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from thurl.errors import DataError
from thurl.iqa.face_restoration.frechet import frechet_bootstrap, kernel_distance
from thurl.iqa.face_restoration.interface import (
    FaceBatch,
    MetricContext,
    SetMetric,
    SetResult,
    WeightFile,
    register_metric,
)
from thurl.iqa.face_restoration.statistics import FeatureStatistics, load_statistics
from thurl.iqa.face_restoration.weights import weights_digest


if TYPE_CHECKING:
    import torch

__all__ = ["FID_REFERENCE", "FID_WEIGHTS", "KID_REFERENCE", "MAX_PICTURES", "FeatureDistance", "FrechetMetric"]

MAX_PICTURES = 3000
"""The official code takes the first 3,000 pictures in the order of their paths."""

FID_WEIGHTS = WeightFile(
    "fid_inception",
    ("pt_inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05.pth"),
    "Get it from the release `fid_weights` of github.com/mseitzer/pytorch-fid.",
    size="about 95 MB",
    sha256="begins with 6726825d",
)
TORCHVISION_WEIGHTS = WeightFile(
    "torchvision_inception",
    ("inception_v3_google-0cc3c7bd.pth",),
    "Get torchvision's weights `Inception_V3_Weights.IMAGENET1K_V1`.",
)
FID_REFERENCE = WeightFile(
    "fid_reference",
    ("inception_FFHQ_512.npz",),
    "Get inception_FFHQ_512.pth from the release of VQFR (github.com/TencentARC/VQFR) and turn it into .npz with "
    "`thurl faces convert statistics`, or write one of your own pictures with `thurl faces features`.",
)
TORCHVISION_REFERENCE = WeightFile(
    "torchvision_reference",
    ("torchvision_reference.npz",),
    "Write it from your own reference pictures with `thurl faces features --network torchvision`.",
)
KID_REFERENCE = WeightFile(
    "kid_reference",
    ("reference_features.npz",),
    "KID needs the features of the reference pictures, which the released FFHQ file does not have: write them with "
    "`thurl faces features`.",
)


class FeatureDistance(SetMetric):
    """A distance between the features of the restored pictures and a reference. Subclasses say which network."""

    lower_is_better = True
    extractor: ClassVar[str] = "fid_inception"

    def __init__(self, context: MetricContext):
        super().__init__(context)
        self.reference = self.load_reference()
        if self.reference.extractor != self.extractor:
            raise DataError(
                f"{self.name}: {self.reference.source} holds features of the network {self.reference.extractor!r}, "
                f"{self.extractor!r} is needed"
            )
        self.network = self.load_network().to(context.device)
        self._rows: list[np.ndarray] = []

    @property
    def feature_name(self) -> str:
        return f"features {self.extractor}"

    @abstractmethod
    def load_network(self) -> torch.nn.Module:
        """The network, in evaluation mode."""

    @abstractmethod
    def load_reference(self) -> FeatureStatistics:
        """Statistics of the reference set."""

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, D) features of (B, 3, H, W) RGB pictures in [-1, 1]."""
        from thurl.iqa.face_restoration.inception import inception_features

        return inception_features(self.network, pictures)

    def features(self, batch: FaceBatch) -> torch.Tensor:
        import torch

        pixels = batch.pixels("restored", torch.float32, self.context.device)
        with torch.no_grad():
            return self.embed((pixels - 0.5) / 0.5).float().cpu()

    def update(self, features: np.ndarray) -> None:
        self._rows.append(np.asarray(features, dtype=np.float32))

    def rows(self) -> np.ndarray:
        """(N, D) features so far, at most the first `MAX_PICTURES`."""
        if not self._rows:
            return np.empty((0, self.reference.mean.shape[0]), dtype=np.float32)
        return np.concatenate(self._rows)[:MAX_PICTURES]


class FrechetMetric(FeatureDistance):
    """Frechet distance to the reference, with a bootstrap interval."""

    range = (0.0, math.inf)
    resamples: ClassVar[int] = 200

    def compute(self) -> SetResult:
        rows = self.rows()
        count, size = len(rows), self.reference.mean.shape[0]
        if count < 2:
            return SetResult(math.nan, {"count": count}, (f"{self.name}: {count} pictures, two or more are needed",))
        value, interval = frechet_bootstrap(
            rows, self.reference.mean, self.reference.cov, resamples=self.resamples, seed=self.context.seed
        )
        warnings = []
        if count <= size:
            warnings.append(
                f"{self.name}: {count} pictures for features of length {size}: biased upwards. Compare it with values "
                "of the same number of pictures only"
            )
        details = {
            "count": count,
            "reference_count": self.reference.count,
            "low": interval.low,
            "high": interval.high,
            "std": interval.std,
            "bootstrap_shift": interval.shift,
            "resamples": interval.resamples,
        }
        return SetResult(value, details, tuple(warnings))


@register_metric
class Fid(FrechetMetric):
    """FID of the challenge: pool3 of the TensorFlow Inception, against the statistics of FFHQ."""

    name = "fid"
    requires = (FID_WEIGHTS, FID_REFERENCE)

    def load_network(self) -> torch.nn.Module:
        return _fid_network(self.context)

    def load_reference(self) -> FeatureStatistics:
        return load_statistics(self.context.require(FID_REFERENCE))

    def fingerprint(self) -> str:
        return weights_digest(self.context.require(FID_WEIGHTS))


@register_metric
class TorchvisionFid(FrechetMetric):
    """The same distance with torchvision's Inception; not comparable with FID."""

    name = "fid_torchvision"
    extractor = "torchvision_inception"
    requires = (TORCHVISION_WEIGHTS, TORCHVISION_REFERENCE)
    explicit = True

    def load_network(self) -> torch.nn.Module:
        from thurl.iqa.face_restoration.inception import torchvision_network
        from thurl.training.released_files import read_checkpoint

        return torchvision_network(read_checkpoint(self.context.require(TORCHVISION_WEIGHTS)))

    def load_reference(self) -> FeatureStatistics:
        return load_statistics(self.context.require(TORCHVISION_REFERENCE))

    def fingerprint(self) -> str:
        return weights_digest(self.context.require(TORCHVISION_WEIGHTS))


@register_metric
class Kid(FeatureDistance):
    """Kernel distance to the features of reference pictures: unbiased, so small sets can be compared."""

    name = "kid"
    requires = (FID_WEIGHTS, KID_REFERENCE)
    explicit = True

    def load_network(self) -> torch.nn.Module:
        return _fid_network(self.context)

    def load_reference(self) -> FeatureStatistics:
        reference = load_statistics(self.context.require(KID_REFERENCE))
        if reference.features is None:
            raise DataError(f"kid: {reference.source} holds moments only. {KID_REFERENCE.where}")
        return reference

    def compute(self) -> SetResult:
        rows, reference = self.rows(), self.reference.features
        if len(rows) < 2 or reference is None or len(reference) < 2:
            return SetResult(math.nan, {"count": len(rows)}, ("kid: two pictures or more are needed on both sides",))
        value, spread = kernel_distance(rows, reference, seed=self.context.seed)
        return SetResult(value, {"count": len(rows), "reference_count": len(reference), "subset_std": spread})

    def fingerprint(self) -> str:
        return weights_digest(self.context.require(FID_WEIGHTS))


def _fid_network(context: MetricContext) -> torch.nn.Module:
    from thurl.iqa.face_restoration.inception import fid_network
    from thurl.training.released_files import read_checkpoint

    return fid_network(read_checkpoint(context.require(FID_WEIGHTS)))
