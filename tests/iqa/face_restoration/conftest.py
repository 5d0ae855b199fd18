"""Procedural pictures, sets of files, and a small recognition network."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from thurl.iqa.face_restoration import interface
from thurl.iqa.face_restoration.report import per_image_csv
from thurl.iqa.face_restoration.settings import EvaluationSettings


QUICK = ("psnr", "tenengrad", "lq_psnr_8")
"""Metrics that take no time."""


def procedural(seed, side=192):
    """A smooth coloured scene with edges and texture, (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * np.pi * (x * rng.uniform(-3, 3) + y * rng.uniform(-3, 3) + rng.uniform())) for _ in range(3)]
    scene = 0.5 + 0.18 * np.stack(waves, -1)
    for _ in range(6):
        cx, cy, radius = rng.uniform(0.1, 0.9, 2).tolist() + [rng.uniform(0.05, 0.2)]
        scene[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] += rng.uniform(-0.2, 0.2, 3)
    scene += rng.normal(0, 0.04, (side, side, 1))
    return (np.clip(scene, 0.02, 0.98) * 255).round().astype(np.uint8)


def blurred(pixels, sigma):
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def noisy(pixels, sigma, seed=0):
    rng = np.random.default_rng(seed)
    return np.clip(pixels + rng.normal(0, sigma, pixels.shape), 0, 255).round().astype(np.uint8)


def as_tensor(*pictures):
    """(B, 3, H, W) float64 in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(torch.float64) / 255


def write(path, pixels, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory):
    place = tmp_path_factory.mktemp("drawn")
    for dataset in ("CelebA", "Wider-Test"):
        for number in range(3):
            scene = procedural(number + 10 * (dataset == "CelebA"))
            write(place / "gt" / dataset / f"{number}.png", scene)
            write(place / "lq" / dataset / f"{number}.png", blurred(scene, 3))
            write(place / "restored" / dataset / f"{number}.png", blurred(scene, 1))
    return place


@pytest.fixture
def faces(drawn_faces, tmp_path):
    """Folders gt, lq and restored with two data sets of three pictures each; a copy that a test may spoil."""
    return shutil.copytree(drawn_faces, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def small_adaface(tmp_path_factory):
    """Folder of an AdaFace with one narrow block per stage."""
    from thurl.iqa.face_restoration.adaface import AdaFaceConfig, AdaFaceModel

    torch.manual_seed(0)
    model = AdaFaceModel(AdaFaceConfig(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), embedding_size=32))
    folder = tmp_path_factory.mktemp("weights") / "adaface"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def registry(monkeypatch):
    """The registry, put back as it was after the test."""
    interface.metric_names()
    monkeypatch.setattr(interface, "_registry", dict(interface._registry))
    return interface._registry


def settings(folder, **changes):
    values = {"restored": folder / "restored", "lq": folder / "lq", "gt": folder / "gt", "metrics": QUICK}
    return EvaluationSettings(**values | changes)


def rows_of(evaluation):
    return list(csv.DictReader(io.StringIO(per_image_csv(evaluation))))
