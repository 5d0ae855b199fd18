"""Features of one's own reference pictures, for FID and KID where the statistics of FFHQ do not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch

from thurl.data.images import ImageError
from thurl.errors import DataError, MissingRequirementError
from thurl.iqa.face_restoration.frechet import feature_moments
from thurl.iqa.face_restoration.inception import fid_network, inception_features, torchvision_network
from thurl.iqa.face_restoration.interface import MetricContext
from thurl.iqa.face_restoration.pictures import read_picture
from thurl.iqa.face_restoration.set_metrics import FID_WEIGHTS, TORCHVISION_WEIGHTS
from thurl.iqa.face_restoration.statistics import FeatureStatistics
from thurl.training.released_files import read_checkpoint


__all__ = ["NETWORKS", "reference_statistics"]

NETWORKS = {
    "fid": (fid_network, FID_WEIGHTS, "fid_inception"),
    "torchvision": (torchvision_network, TORCHVISION_WEIGHTS, "torchvision_inception"),
}


def reference_statistics(
    paths: Sequence[str | os.PathLike[str]],
    network: str,
    context: MetricContext,
    *,
    batch_size: int = 16,
    progress: Callable[[], None] = lambda: None,
) -> tuple[FeatureStatistics, list[str]]:
    """Features and moments of picture files.

    Args:
        paths: files, of any sizes.
        network: one of `NETWORKS`.
        context: weights and device.
        batch_size: pictures of one size that are computed together.
        progress: called after each file.

    Returns:
        the statistics with features in the order of the paths, and a message for each file that was left out.

    Raises:
        MissingRequirementError: the network's weights are not there.
        DataError: fewer than two usable pictures.
    """
    build, weights, name = NETWORKS[network]
    path = context.find(weights)
    if path is None:
        raise MissingRequirementError(f"{context.expected(weights)} is not there. {weights.where}")
    model = build(read_checkpoint(path)).to(context.device)
    rows: list[np.ndarray] = []
    problems: list[str] = []
    waiting: list[np.ndarray] = []

    def compute() -> None:
        if waiting:
            pixels = torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2).to(context.device).float() / 255
            rows.append(inception_features(model, (pixels - 0.5) / 0.5).cpu().numpy())
            waiting.clear()

    for file in paths:
        try:
            pixels = read_picture(file).pixels
        except ImageError as error:
            problems.append(str(error))
        else:
            if waiting and waiting[0].shape != pixels.shape:
                compute()
            waiting.append(pixels)
            if len(waiting) >= batch_size:
                compute()
        progress()
    compute()
    if sum(map(len, rows)) < 2:
        raise DataError(f"{sum(map(len, rows))} usable pictures; two or more are needed")
    features = np.concatenate(rows)
    mean, cov = feature_moments(features)
    return FeatureStatistics(mean, cov, len(features), name, "own pictures", features), problems
