"""A small encoder, an image processor, simulated photographs and detectors made of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.forensics.exif.camera import fakes, photographs
from thurl.forensics.exif.config import ExifEncoderConfig
from thurl.forensics.exif.encoder import ExifEncoder
from thurl.forensics.exif.features import FeatureTower, extract_features
from thurl.forensics.exif.fitting import fit_binary, fit_one_class
from thurl.forensics.processing import FaceImageProcessor


SMALL = {
    "depths": (1, 1),
    "hidden_sizes": (8, 16),
    "block": "basic",
    "stem_channels": 8,
    "stem_kernel": 3,
    "stem_stride": 1,
    "stem_pool": False,
    "feature_size": 6,
}


@pytest.fixture(scope="session")
def encoder():
    torch.manual_seed(0)
    return ExifEncoder(ExifEncoderConfig(**SMALL)).eval()


@pytest.fixture(scope="session")
def processor():
    return FaceImageProcessor(size=24)


@pytest.fixture(scope="session")
def tower(encoder, processor):
    return FeatureTower(encoder, processor, batch_size=16)


@pytest.fixture(scope="session")
def tables(tower):
    """Features of photographs to fit (200), to calibrate (150), to test (60), and of fakes (60)."""
    pictures, _ = photographs(410, seed=1)
    noise = fakes("grid", 60, seed=2)
    parts = {"fit": pictures[:200], "calibrate": pictures[200:350], "test": pictures[350:], "fake": noise}
    return {name: extract_features(tower, list(part)) for name, part in parts.items()}


@pytest.fixture(scope="session")
def one_class(tables):
    detector = fit_one_class(tables["fit"], unit_length=True, components=2)
    return detector.calibrated(detector.scores(tables["calibrate"].features), [0.05, 0.1])


@pytest.fixture(scope="session")
def binary(tables):
    detector = fit_binary(tables["fit"], tables["fake"], epochs=30, learning_rate=1e-2, use_cpu=True, batch_size=64)
    return detector.calibrated(detector.scores(tables["calibrate"].features), [0.05, 0.1])


@pytest.fixture
def folder(tmp_path):
    """Six pictures in different modes, a text file and a truncated picture."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 40, 30, 3), dtype=np.uint8)
    where = tmp_path / "pictures"
    where.mkdir()
    Image.fromarray(pixels[0]).save(where / "a.png")
    Image.fromarray(pixels[1]).convert("L").save(where / "b.png")
    Image.fromarray(pixels[2]).convert("RGBA").save(where / "c.png")
    Image.fromarray(pixels[3]).convert("CMYK").save(where / "d.jpg")
    (where / "e.jpg").write_text("not a picture")
    Image.fromarray(pixels[4]).save(where / "f.jpg", quality=95)
    Image.fromarray(pixels[5]).save(where / "g.jpg")
    (where / "g.jpg").write_bytes((where / "g.jpg").read_bytes()[:400])
    return where
