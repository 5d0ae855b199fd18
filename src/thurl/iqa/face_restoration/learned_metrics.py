"""Metrics with weights: the identity check, and the no-reference metrics of the challenge.

The challenge takes NIQE, CLIPIQA, MANIQA, MUSIQ and Q-Align from the package pyiqa. Its licence allows non-commercial
use only, so thurl neither depends on it nor copies from it: who has it installed can use it here. Its networks are
given their weights by path and are run on one picture at a time, as the official script does; draws inside them
(MANIQA's random crops) are seeded by the picture's content, where the official script does not seed.
"""

from __future__ import annotations

import hashlib
import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from thurl.iqa.face_restoration.alignment import CROP, fit_alignment, warp_affine
from thurl.iqa.face_restoration.interface import (
    FaceBatch,
    Metric,
    MetricContext,
    Package,
    WeightFile,
    register_metric,
)
from thurl.iqa.face_restoration.weights import weights_digest


if TYPE_CHECKING:
    import torch

__all__ = ["ADAFACE", "PYIQA", "identity_similarity", "picture_seed"]

ADAFACE = WeightFile(
    "adaface",
    ("adaface_ir50", "adaface_ir50_ms1mv2.ckpt"),
    "Get adaface_ir50_ms1mv2.ckpt from the AdaFace release (github.com/mk-minchul/AdaFace), as it is or converted "
    "with `thurl faces convert adaface`.",
    size="about 170 MB of float32 weights when converted",
)

PYIQA = Package(
    "pyiqa",
    "Install it yourself with `pip install pyiqa`: its licence allows non-commercial use only, so thurl does not "
    "depend on it.",
)

_RELEASE = "Get it from the weights of IQA-PyTorch (github.com/chaofengc/IQA-PyTorch)."


def identity_similarity(model: torch.nn.Module, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
    """Cosine similarity of the identities of aligned faces.

    Args:
        model: an `AdaFaceModel` in evaluation mode.
        a, b: (B, 112, 112, 3) uint8 RGB from `align_face`.

    Returns:
        (B,) float64 in [-1, 1].
    """
    import torch

    from thurl.iqa.face_restoration.adaface import face_pixels

    device = next(model.parameters()).device
    with torch.no_grad():
        embeddings = model(face_pixels(np.concatenate([a, b])).to(device)).embedding
    first, second = embeddings.to(torch.float64).cpu().chunk(2)
    return (first * second).sum(dim=1).clamp(-1.0, 1.0)


def picture_seed(seed: int, digest: str) -> int:
    """Seed of what a metric draws for one picture: depends on the content, not on the place in the set."""
    return int.from_bytes(hashlib.sha256(f"{seed} {digest}".encode()).digest()[:8], "big") >> 1


class _Identity(Metric):
    """Cosine between the AdaFace embeddings of the restored face and of another version of it."""

    range = (-1.0, 1.0)
    requires = (ADAFACE,)
    _other: ClassVar[str] = ""

    def __init__(self, context: MetricContext):
        from thurl.iqa.face_restoration.checkpoints import load_adaface

        super().__init__(context)
        path = context.require(ADAFACE)
        self.model = load_adaface(path).to(context.device)
        self._digest = weights_digest(path)

    def score(self, batch: FaceBatch) -> torch.Tensor:
        return identity_similarity(self.model, _aligned(batch, "restored"), _aligned(batch, self._other))

    def fingerprint(self) -> str:
        return self._digest


@register_metric
class IdentityToInput(_Identity):
    """The challenge's identity check, against the degraded input."""

    name = "id_sim"
    needs = frozenset({"lq", "landmarks"})
    _other = "lq"


@register_metric
class IdentityToOriginal(_Identity):
    """Identity against the original, which unlike a degraded input can be recognised."""

    name = "id_sim_gt"
    needs = frozenset({"gt", "landmarks"})
    _other = "gt"


def _aligned(batch: FaceBatch, kind: str) -> np.ndarray:
    pictures = batch.pictures[kind].permute(0, 2, 3, 1).numpy()
    base = batch.pictures.get("lq", batch.pictures["restored"])
    # Landmarks are pixels of the input; the same place in a picture of another size.
    scale = np.array([pictures.shape[2] / base.shape[3], pictures.shape[1] / base.shape[2]])
    matrices = fit_alignment(np.asarray(batch.landmarks) * scale)
    return np.stack([warp_affine(image, matrix, CROP) for image, matrix in zip(pictures, matrices, strict=True)])


class _Pyiqa(Metric):
    """A network of pyiqa."""

    official: ClassVar[str] = ""
    weights: ClassVar[WeightFile | None] = None
    argument: ClassVar[str] = "pretrained_model_path"

    def __init__(self, context: MetricContext):
        import torch

        super().__init__(context)
        self._digest = ""
        options: dict[str, Any] = {}
        if self.weights is not None:
            path = context.require(self.weights)
            options[self.argument] = os.fspath(path)
            self._digest = weights_digest(path)
        pyiqa: Any = import_module("pyiqa")
        self.network = pyiqa.create_metric(self.official_name(), device=torch.device(context.device), **options)

    def official_name(self) -> str:
        """What pyiqa calls the network."""
        return self.official

    def score(self, batch: FaceBatch) -> torch.Tensor:
        import torch

        pixels = batch.pixels("restored", torch.float32)
        values = []
        for index, digest in enumerate(batch.digests):
            picture = pixels[index : index + 1].clone()  # some of its networks change their input
            devices = [self.context.device] if self.context.device.startswith("cuda") else []
            with torch.random.fork_rng(devices), torch.no_grad():
                torch.manual_seed(picture_seed(self.context.seed, digest))
                values.append(float(self.network(picture.to(self.context.device))))
        return torch.tensor(values, dtype=torch.float64)

    def fingerprint(self) -> str:
        try:
            release = version("pyiqa")
        except PackageNotFoundError:
            release = "unknown"
        return f"pyiqa {release}, weights {self._digest or 'its own'}, seed {self.context.seed}"


def _pyiqa(
    name: str,
    bounds: tuple[float, float],
    files: tuple[str, ...],
    *,
    lower: bool = False,
    argument: str = "pretrained_model_path",
    explicit: bool = False,
    where: str = _RELEASE,
) -> None:
    weights = WeightFile(name, files, where)
    attributes: dict[str, Any] = {
        "__doc__": f"pyiqa's `{name}`.",
        "__module__": __name__,
        "name": name,
        "official": name,
        "range": bounds,
        "lower_is_better": lower,
        "requires": (PYIQA, weights),
        "weights": weights,
        "argument": argument,
        "explicit": explicit,
    }
    register_metric(type(f"Pyiqa_{name}", (_Pyiqa,), attributes))


_pyiqa("niqe", (0.0, float("inf")), ("niqe_modelparameters.mat",), lower=True)
_pyiqa("musiq", (0.0, 100.0), ("musiq_koniq_ckpt-e95806b9.pth", "musiq_koniq.pth"))
_pyiqa("maniqa", (0.0, 1.0), ("ckpt_koniq10k.pt", "maniqa_koniq.pth"))
_pyiqa(
    "clipiqa",
    (0.0, 1.0),
    ("RN50.pt",),
    argument="backbone",
    where="Get CLIP's RN50.pt (github.com/openai/CLIP names the address).",
)
_pyiqa("topiq_nr", (0.0, 1.0), ("cfanet_nr_koniq_res50.pth",), explicit=True)


@register_metric
class QAlign(_Pyiqa):
    """pyiqa's `qalign`, in half precision, or in 8 or 4 bits (option `qalign`) where 15 GB do not fit."""

    name = "qalign"
    range = (1.0, 5.0)
    requires = (PYIQA,)

    _KINDS: ClassVar[dict[str, str]] = {"16bit": "qalign", "8bit": "qalign_8bit", "4bit": "qalign_4bit"}
    _REPOSITORY: ClassVar[str] = "q-future/one-align"

    @classmethod
    def missing(cls, context: MetricContext) -> list[str]:
        from huggingface_hub import try_to_load_from_cache

        messages = super().missing(context)
        if not isinstance(try_to_load_from_cache(cls._REPOSITORY, "config.json"), str):
            messages.append(
                f"the model {cls._REPOSITORY} is not in the cache of the Hub (size: about 15 GB, sha256: "
                f"unknown). Get it with `hf download {cls._REPOSITORY}`."
            )
        if not context.allow_remote_code:
            messages.append(
                f"{cls._REPOSITORY} is a model with code of its own, which pyiqa runs. Read it, then give "
                "--allow-remote-code."
            )
        kind = context.options.get("qalign", "16bit")
        if kind not in cls._KINDS:
            messages.append(f"precision {kind!r} of Q-Align is none of {', '.join(cls._KINDS)}")
        return messages

    def official_name(self) -> str:
        return self._KINDS[self.context.options.get("qalign", "16bit")]

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}, {self.official_name()}"
