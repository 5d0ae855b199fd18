"""Tiny classifiers of every kind and pictures, as files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import save_for_hf
from transformers import (
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ...continual.tiny_encoders import SMALL, WIDE, save_encoder, timm_vit
from .edit_files import NAMES, scaled


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("edit")
    generator = np.random.default_rng(0)
    (root / "others").mkdir()
    for index in range(12):
        pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / (f"{index}.png" if index < 4 else f"others/{index}.png"))
    torch.manual_seed(0)
    save_for_hf(scaled(timm_vit()), root / "timm", safe_serialization=True, model_config={"label_names": NAMES})
    config = ViTConfig(**WIDE, id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)})
    scaled(ViTForImageClassification(config)).save_pretrained(root / "vit")
    sizes = {**SMALL, "num_labels": 5, "mlp_ratio": 2, "use_swiglu_ffn": True}
    scaled(DeiTForImageClassification(DeiTConfig(**WIDE, num_labels=5))).save_pretrained(root / "deit")
    scaled(Dinov2ForImageClassification(Dinov2Config(**sizes))).save_pretrained(root / "dinov2")
    for kind in ("vit", "deit", "dinov2"):
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / kind)
    save_encoder("clip", root / "clip")
    scaled(CLIPModel.from_pretrained(root / "clip")).save_pretrained(root / "clip")
    (root / "names.txt").write_text("red bird\nblue sign\ngreen drawing\n")
    return root
