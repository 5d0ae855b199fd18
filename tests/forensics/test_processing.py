"""Crop and input transform against the official ones, and the processor's own file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from thurl.data.images import ImageError, open_image
from thurl.forensics.crop import central_box, face_square, official_crop
from thurl.forensics.processing import FaceImageProcessor


GOLDEN = Path(__file__).parents[1] / "golden"
TRANSFORM = np.load(GOLDEN / "exif_input_transform.npz")
CROPS = json.loads((GOLDEN / "exif_face_crop.json").read_text(encoding="utf-8"))
SHAPES = ("100x90", "224x224", "300x260")


def noise(height=30, width=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("case", CROPS, ids=str)
def test_crops_match_the_official_ones(case):
    box = official_crop(case["bbox_fraction"], (case["width"], case["height"]), scale=case["scale"])
    assert list(box) == case["crop_xyxy_exclusive"]


def test_crops_are_squares_inside_the_picture_and_cut_at_its_borders():
    assert face_square((40, 30, 60, 50), (100, 100)) == (37, 27, 63, 53)
    assert face_square((0, 0, 20, 20), (100, 100)) == (0, 0, 26, 26)
    assert face_square((90, 10, 110, 30), (100, 100)) == (87, 7, 100, 33)
    for box in ((5, 5, 5, 9), (9, 5, 5, 9), (0, 0, np.nan, 5), (300, 300, 400, 400), (1, 2, 3)):
        with pytest.raises(ValueError, match="box is"):
            face_square(box, (100, 100))
    with pytest.raises(ValueError, match="scale"):
        face_square((0, 0, 5, 5), (100, 100), scale=0)


def test_the_central_box_gives_the_whole_picture_back():
    for size in ((40, 40), (128, 128), (224, 224), (40, 60)):
        left, top, right, bottom = face_square(central_box(size), size)
        assert left <= 1 and top <= 1 and (right >= size[0] - 2 or bottom >= size[1] - 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("antialias", [False, True])
def test_the_input_matches_the_official_one(shape, antialias):
    name = "modern_antialias" if antialias else "legacy_noantialias"
    golden = TRANSFORM[f"{name}_{shape}_stride7"]
    pixels = FaceImageProcessor(antialias=antialias)(TRANSFORM[f"img_{shape}"])["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224) and pixels.dtype == torch.float32
    assert np.abs(pixels[0, :, ::7, ::7].numpy() - golden).max() < 1e-5


def test_antialiasing_matters_for_large_faces_only():
    for shape, differs in zip(SHAPES, (False, False, True), strict=True):
        one, two = (FaceImageProcessor(antialias=a)(TRANSFORM[f"img_{shape}"])["pixel_values"] for a in (False, True))
        assert (float((one - two).abs().max()) > 0.1) == differs


def test_bicubic_is_that_of_torchvision_on_pictures(tmp_path):
    """The official transform of the DeepFake method; not square pictures are forced to a square."""
    pixels = noise(60, 50)
    expected = transforms.Compose(
        [
            transforms.Resize((24, 24), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ]
    )(Image.fromarray(pixels))
    processor = FaceImageProcessor(size=24, resample="bicubic")
    torch.testing.assert_close(processor(pixels)["pixel_values"][0], expected, rtol=0, atol=1e-6)
    processor.save_pretrained(tmp_path)
    assert FaceImageProcessor.from_pretrained(tmp_path).resample == "bicubic"
    # Files of the other kind are as they were before there was a choice.
    assert "resample" not in FaceImageProcessor().to_dict() and FaceImageProcessor().resample == "bilinear"
    with pytest.raises(ValueError, match="resample is 'nearest'; it must be one of bilinear, bicubic"):
        FaceImageProcessor(resample="nearest")


def test_all_kinds_of_pictures_agree(tmp_path):
    pixels = noise()
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    processor = FaceImageProcessor(size=24)
    expected = processor(pixels)["pixel_values"]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for source in (path, str(path), path.read_bytes(), Image.fromarray(pixels), tensor, [pixels], pixels[None]):
        assert torch.equal(processor(source)["pixel_values"], expected)
    batch = processor([pixels, noise(50, 50, 1), path])["pixel_values"]
    assert batch.shape == (3, 3, 24, 24) and torch.equal(batch[0], batch[2]) and torch.equal(batch[:1], expected)
    assert isinstance(processor(pixels, return_tensors="np")["pixel_values"], np.ndarray)


def test_boxes_are_cut_out():
    pixels = noise(60, 60)
    processor = FaceImageProcessor(size=24, crop_scale=1.5)
    batch = processor([pixels, pixels], boxes=[(20, 20, 30, 30), None])["pixel_values"]
    assert torch.equal(batch[0], processor(pixels[18:33, 18:33])["pixel_values"][0])
    assert torch.equal(batch[1], processor(pixels)["pixel_values"][0])
    with pytest.raises(ValueError, match="1 boxes for 2 pictures"):
        processor([pixels, pixels], boxes=[None])


def test_orientation_is_ignored_unless_asked_for(tmp_path):
    pixels = noise(20, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    assert np.array_equal(FaceImageProcessor().cut(path), pixels)
    assert np.array_equal(FaceImageProcessor(upright=True).cut(path), np.rot90(pixels, -1))
    assert open_image(path, upright=False).size == (40, 20) and open_image(path).size == (20, 40)
    assert open_image(path.read_bytes(), upright=False).size == (40, 20)
    assert not open_image(path, upright=False).info


def test_the_processor_is_saved_beside_the_model(tmp_path):
    processor = FaceImageProcessor(size=40, image_mean=[0.5] * 3, antialias=True, crop_scale=1.1, upright=True)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {k: saved[k] for k in ("size", "image_mean", "antialias", "crop_scale", "upright")} == {
        "size": 40,
        "image_mean": [0.5] * 3,
        "antialias": True,
        "crop_scale": 1.1,
        "upright": True,
    }
    again = FaceImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    large = noise(90, 80)
    assert torch.equal(again(large)["pixel_values"], processor(large)["pixel_values"])
    other = FaceImageProcessor.from_pretrained(tmp_path, antialias=False)
    assert not torch.equal(other(large)["pixel_values"], processor(large)["pixel_values"])


def test_wrong_settings_and_pictures():
    for options in (
        {"size": 0},
        {"size": {"height": 2}},
        {"image_std": [1, 0, 1]},
        {"image_mean": [0.5]},
        {"crop_scale": 0},
    ):
        with pytest.raises(ValueError, match="must be|three numbers"):
            FaceImageProcessor(**options)
    processor = FaceImageProcessor()
    for wrong in (noise().astype(np.float32), noise()[..., :1], torch.zeros(3, 4, 4)):
        with pytest.raises(ValueError, match="must be uint8"):
            processor(wrong)
    with pytest.raises(ImageError):
        processor(b"nothing")
    with pytest.raises(ValueError, match="do_rescale"):
        processor(noise(), do_rescale=False)
