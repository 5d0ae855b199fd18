"""From tables of features to detectors.

One-class: a mixture on photographs alone. Binary: the perceptron on photographs and generated faces; how the official
one was trained is not published, so optimizer, epochs and loss are ours: cross-entropy, AdamW at 1e-3, weight decay
1e-4, 20 epochs over cached features, constant rate.

A third-party summary of the BLADES paper says that photographs of low likelihood join the generated class as
pseudo-outliers; `pseudo_outlier_quantile` does that and is off by default.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset
from transformers import PrinterCallback, TrainingArguments

from thurl.errors import DataError, UsageError
from thurl.forensics.exif.calibration import in_sample_threshold
from thurl.forensics.exif.config import FaceHeadConfig
from thurl.forensics.exif.detector import Detector
from thurl.forensics.exif.features import FeatureTable
from thurl.forensics.exif.head import FaceHead
from thurl.forensics.exif.mixture import fit_mixture
from thurl.training.finite import FiniteTrainer
from thurl.training.state_files import random_states, set_random_states


__all__ = ["fit_binary", "fit_one_class"]

logger = logging.getLogger(__name__)

_OFFICIAL_RATES = (0.01, 0.05)


def fit_one_class(
    photographs: FeatureTable,
    *,
    unit_length: bool,
    components: int = 10,
    covariance: str = "full",
    pca: int | None = None,
    fallback: str = "tied",
    seed: int = 2024,
    training: Mapping[str, Any] | None = None,
) -> Detector:
    """Fit a mixture to photographs. The detector still needs `Detector.calibrated` with other photographs.

    Args:
        photographs: raw features; bad rows are left out.
        unit_length: True for BLADES, False for the one-class paper (a model's `unit_length` says which).
        components: 10 for BLADES, 12 for the one-class paper.
        covariance, pca, fallback, seed: as `fit_mixture` takes them.
        training: further entries of the description in the file, JSON values.

    Raises:
        DataError, UsageError, MissingRequirementError: as `fit_mixture`.
    """
    features = photographs.usable
    rows = features.double()
    if unit_length:
        rows = torch.nn.functional.normalize(rows, dim=-1, eps=1e-6)
    mixture = fit_mixture(rows, components=components, covariance=covariance, pca=pca, fallback=fallback, seed=seed)
    detector = Detector(
        mixture,
        encoder=photographs.encoder,
        unit_length=unit_length,
        transform=dict(photographs.transform),
        training={
            "photographs": len(features),
            "components": components,
            "covariance_asked": covariance,
            "seed": seed,
            **(training or {}),
        },
    )
    scores = detector.scores(features)
    in_sample = {rate: in_sample_threshold(scores, rate) for rate in _OFFICIAL_RATES}
    return Detector(**{**_fields(detector), "in_sample": in_sample})


def fit_binary(
    photographs: FeatureTable,
    generated: FeatureTable,
    *,
    hidden_size: int | None = None,
    epochs: int = 20,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    batch_size: int = 256,
    seed: int = 2024,
    pseudo_outlier_quantile: float = 0.0,
    one_class: Detector | None = None,
    use_cpu: bool = False,
    training: Mapping[str, Any] | None = None,
) -> Detector:
    """Train the perceptron on cached features.

    Without calibration it decides as the official one does, at a probability of 0.5.

    Args:
        photographs, generated: raw features from one encoder; bad rows are left out.
        hidden_size: of the perceptron; twice the features' width when None.
        epochs, learning_rate, weight_decay, batch_size: of AdamW.
        seed: of the start and of the order of the batches.
        pseudo_outlier_quantile: this share of the photographs, those with the lowest scores of `one_class`, are
            trained as generated ones; in [0, 1).
        one_class: a one-class detector of the same encoder, for `pseudo_outlier_quantile`.
        use_cpu: leave a GPU alone.
        training: further entries of the description in the file, JSON values.

    Raises:
        DataError: no usable features on a side, or features of different encoders.
        UsageError: a quantile outside [0, 1), or above 0 without `one_class`.
    """
    real, fake = photographs.usable, generated.usable
    if not len(real) or not len(fake):
        raise DataError(f"{len(real)} usable photographs and {len(fake)} generated faces; both are needed")
    if photographs.encoder != generated.encoder or real.shape[1] != fake.shape[1]:
        raise DataError("photographs and generated faces come from different encoders; extract both with one")
    labels = torch.cat([torch.zeros(len(real), dtype=torch.long), torch.ones(len(fake), dtype=torch.long)])
    outliers = _outliers(photographs, real, pseudo_outlier_quantile, one_class)
    labels[outliers] = 1
    features = torch.cat([real, fake])
    config = FaceHeadConfig(feature_size=features.shape[1], hidden_size=hidden_size or 2 * features.shape[1])
    settings: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "seed": seed,
        "pseudo_outlier_quantile": pseudo_outlier_quantile,
    }
    head = _trained(config, features, labels, settings, use_cpu)
    return Detector(
        head,
        encoder=photographs.encoder,
        unit_length=True,
        transform=dict(photographs.transform),
        training={
            "photographs": len(real),
            "generated": len(fake),
            "pseudo_outliers": int(len(outliers)),
            **settings,
            **(training or {}),
        },
    )


def _fields(detector: Detector) -> dict[str, Any]:
    return {name: getattr(detector, name) for name in detector.__dataclass_fields__}


def _outliers(
    table: FeatureTable, features: torch.Tensor, quantile: float, one_class: Detector | None
) -> torch.Tensor:
    """Rows of the photographs with the lowest scores."""
    if not 0 <= quantile < 1:
        raise UsageError(f"pseudo_outlier_quantile={quantile}: a share from 0 up to, but not including, 1 is needed")
    if quantile == 0:
        return torch.empty(0, dtype=torch.long)
    if one_class is None or one_class.kind != "oc":
        raise UsageError("pseudo_outlier_quantile needs a one-class detector, which ranks the photographs")
    if one_class.encoder != table.encoder:
        raise DataError("the one-class detector was made with another encoder than the photographs' features")
    order = np.argsort(one_class.scores(features), kind="stable")
    return torch.from_numpy(order[: int(len(features) * quantile)].copy())


def _trained(
    config: FaceHeadConfig, features: torch.Tensor, labels: torch.Tensor, settings: Mapping[str, Any], use_cpu: bool
) -> FaceHead:
    before = random_states()
    try:
        torch.manual_seed(settings["seed"])
        head = FaceHead(config)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=settings["epochs"],
                per_device_train_batch_size=settings["batch_size"],
                learning_rate=settings["learning_rate"],
                weight_decay=settings["weight_decay"],
                lr_scheduler_type="constant",
                seed=settings["seed"],
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=use_cpu,
            )
            data = TensorDataset(features, labels)
            trainer = FiniteTrainer(head, arguments, train_dataset=data, data_collator=_collate)
            trainer.remove_callback(PrinterCallback)  # a library leaves the terminal to the command line
            trainer.train()
    finally:
        set_random_states(before)
    return head.cpu().eval()


def _collate(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"features": torch.stack([row for row, _ in rows]), "labels": torch.stack([label for _, label in rows])}
