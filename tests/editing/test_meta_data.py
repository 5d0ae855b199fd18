"""Random crops: seeded, of the right size and share; classifiers by name with their own preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from thurl.editing.classifier_files import load_classifier
from thurl.editing.meta_data import RandomCrops, _crop
from thurl.errors import DataError, MissingRequirementError, UsageError

from .editing_models import small_model, small_timm


HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_crops(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    first, again, other = (RandomCrops([tmp_path / "a.png"], 16, seed=seed, **HALF) for seed in (0, 0, 1))
    pixels = first[0]["pixel_values"]
    assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.float32 and pixels.abs().max() <= 1
    assert torch.equal(pixels, again[0]["pixel_values"]) and not torch.equal(pixels, other[0]["pixel_values"])
    first.set_epoch(1)
    assert not torch.equal(first[0]["pixel_values"], pixels)
    boxes = [_crop((60, 40), (0.25, 1.0), rng) for _ in range(500)]
    shares = [(right - left) * (lower - upper) / 2400 for left, upper, right, lower in boxes]
    assert all(0 <= left < right <= 60 and 0 <= upper < lower <= 40 for left, upper, right, lower in boxes)
    assert 0.22 < min(shares) < 0.3 and max(shares) > 0.8
    assert _crop((1000, 10), (0.9, 1.0), rng) == (495, 0, 505, 10)  # no box of that share fits
    with pytest.raises(UsageError, match="0 pictures"):
        RandomCrops([], 16, **HALF)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        RandomCrops([tmp_path / "b.png"], 16, **HALF)[0]


def test_classifiers_by_name(tmp_path: Path) -> None:
    model = small_model("vit")
    model.save_pretrained(tmp_path / "vit")
    with pytest.raises(MissingRequirementError, match="preprocessor"):
        load_classifier(str(tmp_path / "vit"))
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    found = load_classifier(str(tmp_path / "vit"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    pixels = found.preprocessing.scaled(found.preprocessing(picture)[None])
    torch.testing.assert_close(found.classifier.logits(pixels), model(pixels).logits)
    with pytest.raises(MissingRequirementError):
        load_classifier(str(tmp_path / "nothing here"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="holds a bert"):
        load_classifier(str(tmp_path / "bert"))


def test_timm_keeps_its_classifier(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = small_timm().eval()
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "mlp_ratio": 1.5}
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 16, 16), "num_classes": 5}
    timm.models.save_for_hf(model, tmp_path, model_args=sizes, safe_serialization=True)
    found = load_classifier(str(tmp_path))
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(found.classifier.logits(pixels), model(pixels))
