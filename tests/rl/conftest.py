"""A tiny model folder and rated pictures, shared by the tests of the reinforcement-learning package."""

import numpy as np
import pytest
from PIL import Image

from thurl.data.records import RatedImage
from thurl.rl.tiny import build_tiny_qwen2_5_vl


SIZES = [(56, 56), (84, 112), (200, 60), (112, 112), (28, 300)]


def pictures(n: int = 5, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    sizes = [SIZES[i % len(SIZES)] for i in range(n)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def tiny():
    return build_tiny_qwen2_5_vl(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder with model and processor of the default tiny Qwen2.5-VL, seed 0. Do not write into it."""
    path = tmp_path_factory.mktemp("tiny")
    model, processor = build_tiny_qwen2_5_vl(0)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def rated_images(tmp_path_factory):
    """24 grey pictures of two sizes in two datasets of 12, with different rating scales."""
    path = tmp_path_factory.mktemp("pictures")
    records = []
    for index in range(24):
        file = path / f"{index}.png"
        Image.fromarray(np.full((56 + 28 * (index % 2), 56, 3), 10 * index, np.uint8)).save(file)
        five = index < 12
        records.append(
            RatedImage(str(file), 1 + index / 6 if five else 4.0 * index, dataset="five" if five else "hundred")
        )
    return records
