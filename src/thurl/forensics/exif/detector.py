"""A detector: what turns an encoder's features into decisions, in one safetensors file.

| kind | score, higher is more photographic | paper |
|---|---|---|
| `oc` | log-likelihood of a Gaussian mixture, nats | arXiv 2501.02207 and 2507.22824 |
| `bc` | log odds of "photographic" of a two-layer perceptron | arXiv 2507.22824 |

The file holds tensors (`gmm.*` or `head.*`, `calibration.scores`, `calibration.rates`, `calibration.thresholds`, the
same behind `calibration.domain.NAME.` for other kinds of photographs) and, as JSON in its metadata, what the numbers
depend on: how features are brought to length, the input transform, the SHA-256 of the encoder's weights, a description
of the training set. Nothing in it is executed, and everything in it is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.exif.calibration import DEFAULT_RATES, Calibration
from thurl.forensics.exif.config import FaceHeadConfig
from thurl.forensics.exif.encoder import ExifEncoder, encoder_fingerprint
from thurl.forensics.exif.head import FaceHead
from thurl.forensics.exif.mixture import Mixture
from thurl.hub.fetch import hub_file
from thurl.messages import nearest


__all__ = ["FORMAT", "KINDS", "Detector", "load_detector", "save_detector"]

FORMAT = 1
"""Version of the file layout; a reader refuses a newer one."""

KINDS = ("oc", "bc")

_KEY = "thurl_exif_detector"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DOMAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SMALLEST_NORM = 1e-6
_SETTINGS = ("format", "kind", "covariance", "unit_length", "encoder", "transform", "training", "in_sample")


@dataclass(frozen=True)
class Detector:
    """Mixture or perceptron with its calibrations.

    Attributes:
        scorer: what scores features.
        encoder: SHA-256 of the encoder it was made with, from `encoder_fingerprint`.
        unit_length: whether features are brought to length 1 first (BLADES) or taken raw (the one-class paper). The
            perceptron does it in any case.
        transform: settings of the image processor it was made with, JSON values.
        calibrations: name of a kind of photographs to its calibration; "" is the default one.
        training: description of the features it was fitted to, JSON values.
        in_sample: rate to the official threshold, from the scores of the fitted features; for comparisons only.
    """

    scorer: Mixture | FaceHead
    encoder: str
    unit_length: bool
    transform: Mapping[str, Any] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    in_sample: Mapping[float, float] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return "oc" if isinstance(self.scorer, Mixture) else "bc"

    @property
    def width(self) -> int:
        """Columns of the features it takes."""
        return self.scorer.width if isinstance(self.scorer, Mixture) else int(self.scorer.config.feature_size)

    def to(self, device: torch.device | str) -> Detector:
        """The same with its tensors on another device."""
        if isinstance(self.scorer, Mixture):
            return dataclasses.replace(self, scorer=self.scorer.to(device))
        head = FaceHead(self.scorer.config)
        head.load_state_dict(self.scorer.state_dict())
        return dataclasses.replace(self, scorer=head.to(device).eval())

    def scores(self, features: torch.Tensor | np.ndarray) -> np.ndarray:
        """(N,) float64 scores, higher is more photographic, NaN for a row that is not finite.

        Computed in float64; a row's score does not depend on the other rows.

        Args:
            features: (N, width), raw or of length 1, any floating dtype.

        Raises:
            DataError: another number of columns.
        """
        rows = torch.as_tensor(features)
        if rows.dim() != 2 or rows.shape[1] != self.width:
            raise DataError(
                f"features of shape {tuple(rows.shape)}: this detector takes (N, {self.width}); use the encoder it "
                "was made with"
            )
        if isinstance(self.scorer, Mixture):
            return self.scorer.log_likelihood(self.prepared(rows)).cpu().numpy()
        return _log_odds(self.scorer, rows)

    def prepared(self, features: torch.Tensor) -> torch.Tensor:
        """Features as the mixture takes them: float64, at length 1 where `unit_length` says so."""
        rows = features.to(torch.float64)
        return torch.nn.functional.normalize(rows, dim=-1, eps=_SMALLEST_NORM) if self.unit_length else rows

    def calibration(self, domain: str = "") -> Calibration | None:
        """The calibration for a kind of photographs, None for a detector without any.

        Raises:
            UsageError: there are calibrations, but none of this name.
        """
        if domain in self.calibrations:
            return self.calibrations[domain]
        if not domain:
            return None
        names = sorted(name for name in self.calibrations if name)
        known = f"; there are {', '.join(names)}" if names else "; it has no others than the default one"
        raise UsageError(f"no calibration for the domain {domain!r}{nearest(domain, names)}{known}")

    def calibrated(
        self, scores: Sequence[float] | np.ndarray, rates: Sequence[float] = DEFAULT_RATES, *, domain: str = ""
    ) -> Detector:
        """The detector with a calibration more, or another one.

        Args:
            scores: its scores of photographs that were not used in training, at least 1 / rate; NaN are refused.
            rates: false-alarm rates whose thresholds are stored.
            domain: name of the kind of photographs, letters, digits, `_` and `-`; the default one when empty.

        Raises:
            DataError: too few scores, or scores that are not finite.
            UsageError: a rate or a name that is not allowed.
        """
        if domain and not _DOMAIN.fullmatch(domain):
            raise UsageError(f"domain {domain!r}: 1 to 64 letters, digits, `_` and `-` are possible")
        return dataclasses.replace(self, calibrations={**self.calibrations, domain: Calibration.of(scores, rates)})

    def check_encoder(self, encoder: ExifEncoder) -> None:
        """Raise if another encoder made the features this detector knows.

        Raises:
            DataError: the fingerprints differ.
        """
        found = encoder_fingerprint(encoder)
        if found != self.encoder:
            raise DataError(
                f"the detector was made with the encoder {self.encoder[:12]}..., this one is {found[:12]}... "
                f"({encoder.dtype}): its likelihoods would mean nothing. Load the encoder it was made with, in its "
                "precision, or fit and calibrate a detector for this one."
            )


def save_detector(detector: Detector, path: str | os.PathLike[str]) -> None:
    """Write a detector in one step: nobody ever reads half a file.

    Args:
        detector: what to write.
        path: `.safetensors` file; folders are made.
    """
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(detector.scorer, Mixture):
        names = {"pca_mean": "pca.mean", "pca_components": "pca.components"}
        tensors |= {names.get(name, f"gmm.{name}"): tensor for name, tensor in detector.scorer.tensors().items()}
    else:
        tensors |= {f"head.{name}": tensor for name, tensor in detector.scorer.state_dict().items()}
    for domain, calibration in detector.calibrations.items():
        prefix = _prefix(domain)
        thresholds = [calibration.threshold(rate) for rate in calibration.rates]
        tensors[f"{prefix}scores"] = torch.from_numpy(calibration.scores.copy())
        tensors[f"{prefix}rates"] = torch.tensor(calibration.rates, dtype=torch.float64)
        tensors[f"{prefix}thresholds"] = torch.tensor(thresholds, dtype=torch.float64)
    settings = {
        "format": FORMAT,
        "kind": detector.kind,
        "covariance": detector.scorer.covariance if isinstance(detector.scorer, Mixture) else None,
        "unit_length": detector.unit_length,
        "encoder": detector.encoder,
        "transform": dict(detector.transform),
        "training": dict(detector.training),
        "in_sample": {repr(rate): threshold for rate, threshold in detector.in_sample.items()},
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        metadata = {_KEY: json.dumps(settings, sort_keys=True, allow_nan=False)}
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def load_detector(path: str | os.PathLike[str], *, encoder: ExifEncoder | None = None) -> Detector:
    """Read a detector and check it.

    Args:
        path: file that `save_detector` wrote, or `owner/name` on the Hub, for its `detector.safetensors`.
        encoder: compared with the one the detector was made with.

    Raises:
        MissingRequirementError: no such file.
        DataError: a truncated file, a file of another kind or a newer layout, tensors that are missing, left over, of
            another shape or dtype or not finite, a mixture that is no density, thresholds that do not follow from the
            calibration scores, or another encoder.
    """
    path = hub_file(path, "detector.safetensors")
    if not os.path.isfile(path):
        raise MissingRequirementError(f"{path}: no such detector file; fit one first")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error}); copy the detector again") from None
    try:
        settings = _settings(metadata)
        detector = _assemble(settings, tensors)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if encoder is not None:
        detector.check_encoder(encoder)
    return detector


def _log_odds(head: FaceHead, rows: torch.Tensor) -> np.ndarray:
    weight = head.fc1.weight
    unit = torch.nn.functional.normalize(rows.to(weight.device, torch.float64), dim=-1, eps=_SMALLEST_NORM)
    with torch.no_grad():
        hidden = torch.relu(unit @ weight.double().T + head.fc1.bias.double())
        logits = hidden @ head.fc2.weight.double().T + head.fc2.bias.double()
        return (logits[:, 0] - logits[:, 1]).where(unit.isfinite().all(dim=1), torch.nan).cpu().numpy()


def _prefix(domain: str) -> str:
    return f"calibration.domain.{domain}." if domain else "calibration."


def _settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    if _KEY not in metadata:
        raise DataError("not a detector of thurl: its metadata lacks the settings; give the file that fitting wrote")
    try:
        settings = json.loads(metadata[_KEY])
    except ValueError as error:
        raise DataError(f"the settings in its metadata are not JSON ({error}); copy the detector again") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("format"), int):
        raise DataError("the settings in its metadata lack a format number; copy the detector again")
    if settings["format"] > FORMAT:
        raise DataError(f"layout {settings['format']}, this thurl reads up to {FORMAT}; use a newer thurl")
    problems = [f"`{name}` is missing" for name in _SETTINGS if name not in settings]
    if not problems:
        wanted = {"kind": str, "unit_length": bool, "encoder": str, "transform": dict, "training": dict,
                  "in_sample": dict}  # fmt: skip
        problems += [f"`{name}` is no {kind.__name__}" for name, kind in wanted.items()
                     if not isinstance(settings[name], kind)]  # fmt: skip
    if not problems and settings["kind"] not in KINDS:
        problems.append(f"`kind` {settings['kind']!r} is none of {', '.join(KINDS)}")
    if not problems and not _SHA256.fullmatch(settings["encoder"]):
        problems.append("`encoder` is no SHA-256")
    if problems:
        raise DataError("settings in the metadata: " + "; ".join(problems))
    return settings


def _assemble(settings: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Detector:
    known = {"oc": ("gmm.", "pca."), "bc": ("head.",)}[settings["kind"]]
    if lost := sorted(name for name in tensors if not name.startswith((*known, "calibration."))):
        raise DataError(f"tensors that no detector of the kind `{settings['kind']}` has: {', '.join(lost[:3])}")
    scorer = _mixture(settings, tensors) if settings["kind"] == "oc" else _perceptron(tensors)
    try:
        in_sample = {float(rate): float(threshold) for rate, threshold in settings["in_sample"].items()}
    except (TypeError, ValueError):
        raise DataError(f"in_sample {settings['in_sample']!r}: rates and thresholds are numbers") from None
    return Detector(
        scorer,
        encoder=settings["encoder"],
        unit_length=settings["unit_length"],
        transform=settings["transform"],
        calibrations=_calibrations({name: t for name, t in tensors.items() if name.startswith("calibration.")}),
        training=settings["training"],
        in_sample=in_sample,
    )


def _mixture(settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Mixture:
    own = {"gmm.weights": "weights", "gmm.means": "means", "gmm.precisions_cholesky": "precisions_cholesky",
           "pca.mean": "pca_mean", "pca.components": "pca_components"}  # fmt: skip
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith("calibration.")}
    if lost := sorted(set(given) - set(own)):
        raise DataError(f"tensors that no mixture has: {', '.join(lost[:3])}")
    return Mixture.from_tensors(str(settings["covariance"]), {own[name]: tensor for name, tensor in given.items()})


def _perceptron(tensors: Mapping[str, torch.Tensor]) -> FaceHead:
    state = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
    first = state.get("fc1.weight")
    if first is None or first.dim() != 2 or not first.numel():
        raise DataError("head.fc1.weight is missing or no matrix")
    head = FaceHead(FaceHeadConfig(feature_size=first.shape[1], hidden_size=first.shape[0]))
    wanted = head.state_dict()
    problems = [f"head.{name} is missing" for name in wanted if name not in state]
    problems += [f"head.{name} has no place" for name in state if name not in wanted]
    for name, tensor in state.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            problems.append(f"head.{name} has the shape {tuple(tensor.shape)}, {tuple(wanted[name].shape)} is needed")
        elif not tensor.is_floating_point() or not tensor.isfinite().all():
            problems.append(f"head.{name} holds values that are no finite numbers")
    if problems:
        raise DataError("; ".join(problems))
    head.load_state_dict(state)
    return head.eval()


def _calibrations(tensors: Mapping[str, torch.Tensor]) -> dict[str, Calibration]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in sorted(tensors):
        stem, kind = name.rsplit(".", 1)
        domain = stem.removeprefix("calibration").removeprefix(".domain.")
        if kind not in ("scores", "rates", "thresholds") or (domain and not _DOMAIN.fullmatch(domain)):
            raise DataError(f"{name} is no tensor of a calibration")
        found.setdefault(domain, {})[kind] = tensors[name]
    return {domain: _calibration(domain, parts) for domain, parts in found.items()}


def _calibration(domain: str, parts: Mapping[str, torch.Tensor]) -> Calibration:
    where = _prefix(domain).removesuffix(".")
    if lacking := [kind for kind in ("scores", "rates", "thresholds") if kind not in parts]:
        raise DataError(f"{where} lacks {', '.join(lacking)}")
    for kind, tensor in parts.items():
        if tensor.dtype != torch.float64 or tensor.dim() != 1 or not tensor.isfinite().all():
            raise DataError(f"{where}.{kind} is no list of finite float64 numbers")
    scores = parts["scores"].numpy().copy()
    if not scores.size or (np.diff(scores) < 0).any():
        raise DataError(f"{where}.scores are not in ascending order")
    try:
        calibration = Calibration.of(scores, parts["rates"].tolist())
    except UsageError as error:
        raise DataError(f"{where}.rates: {error}") from None
    thresholds = [calibration.threshold(rate) for rate in calibration.rates]
    if parts["thresholds"].tolist() != thresholds or parts["rates"].tolist() != list(calibration.rates):
        raise DataError(f"{where}.thresholds do not follow from its scores and rates; the file was changed")
    return calibration
