"""Augmentations and the data set: pure functions of their numbers, the same in every process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from thurl.errors import DataError, UsageError
from thurl.forensics.deepfake.augmentations import KINDS, Augmentation, augment, draw_augmentation
from thurl.forensics.deepfake.dataset import LabelledFaces
from thurl.forensics.deepfake.drawn_faces import draw_face, write_drawn_faces
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.processing import FaceImageProcessor


GRAPH = load_graph("ffpp")
FACE = draw_face(2, size=64).pixels


@pytest.mark.parametrize("kind", KINDS)
def test_augmentations_are_pure_and_stronger_at_level_two(kind):
    before = FACE.copy()
    changes = []
    for level in (1, 2):
        spoilt = [augment(FACE, Augmentation(kind, level, seed)) for seed in range(4)]
        assert all(picture.shape == FACE.shape and picture.dtype == np.uint8 for picture in spoilt)
        assert (augment(FACE, Augmentation(kind, level, 0)) == spoilt[0]).all()
        changes.append(np.mean([np.abs(picture.astype(int) - FACE).mean() for picture in spoilt]))
    assert 0 < changes[0] < changes[1] and (FACE == before).all()


def test_augmentations_have_the_official_strengths():
    flat = np.full((512, 300, 3), 90, np.uint8)
    # Blocks: 16 squares of 8 pixels, fewer only where they overlap.
    grey = (augment(flat, Augmentation("blocks", 1, 0)) == 128).all(-1).sum()
    assert 14 * 64 < grey <= 16 * 64
    large = (augment(np.full((600, 600, 3), 90, np.uint8), Augmentation("blocks", 2, 0)) == 128).all(-1).sum()
    assert 55 * 64 < large <= 64 * 64
    for level, variance in ((1, 0.001), (2, 0.002)):
        noise = augment(flat, Augmentation("noise", level, 0)).astype(float) - 90
        luma = noise @ (0.299, 0.587, 0.114) / 255
        assert luma.var() == pytest.approx(variance, rel=0.05)
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 255
    blurred = augment(edge, Augmentation("blur", 1, 0))[32, :, 0]
    assert (blurred[:29] == 0).all() and (blurred[35:] == 255).all() and 0 < blurred[30] < blurred[33] < 255


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (48, 48)])
def test_augmentations_take_any_size(kind, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    assert augment(picture, Augmentation(kind, 2, 1)).shape == picture.shape


def test_drawing_takes_the_same_numbers_whatever_comes_out():
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    found = [draw_augmentation(first, 0.3) for _ in range(4000)]
    assert all(draw_augmentation(second, 0.0) is None for _ in range(4000))
    assert first.random() == second.random()
    hit = [item for item in found if item]
    assert len(hit) / 4000 == pytest.approx(0.3, abs=0.03)
    assert {(item.kind, item.level) for item in hit} == {(kind, level) for kind in KINDS for level in (1, 2)}
    assert {item.kind for item in (draw_augmentation(first, 1.0, ["jpeg"]) for _ in range(9))} == {"jpeg"}
    with pytest.raises(UsageError, match="did you mean `blur`.*\n.*level is 3"):
        Augmentation("blurr", 3)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_drawn_faces(tmp_path_factory.mktemp("drawn"), GRAPH, people={"train": 3}, frames=2)


def processor():
    return FaceImageProcessor(size=32)


def test_items_are_a_function_of_seed_epoch_and_index(items):
    data = LabelledFaces(items, processor(), augmentation=0.5, seed=1)
    first = [data[index]["pixel_values"] for index in range(len(data))]
    assert first[0].shape == (3, 32, 32) and first[0].dtype == torch.float32
    assert data[0]["labels"].dtype == torch.int8 and data[0]["labels"].tolist() == [0] * 10
    kept = LabelledFaces(items, processor(), augmentation=0.5, seed=1, keep_mib=1)
    for _ in range(2):
        assert all((kept[index]["pixel_values"] == first[index]).all() for index in range(len(data)))
    clean = LabelledFaces(items, processor(), augmentation=0.0)
    differ = [not (clean[index]["pixel_values"] == first[index]).all() for index in range(len(data))]
    assert 0 < sum(differ) < len(data)
    data.set_epoch(1)
    assert any(not (data[index]["pixel_values"] == first[index]).all() for index in range(len(data)))
    batch = next(iter(DataLoader(clean, batch_size=6)))
    assert batch["pixel_values"].shape == (6, 3, 32, 32) and (batch["labels"] == clean.labels()).all()


def test_boxes_are_cut_out_and_bad_items_are_named(items):
    boxed = LabelledFaces([replace(items[0], box=(10.0, 10.0, 30.0, 30.0))], processor(), augmentation=0)
    assert boxed.face(0).shape == (26, 26, 3)
    bad = [replace(items[0], path="none.png", row=7, source="list"), replace(items[0], box=(90, 90, 95, 95))]
    data = LabelledFaces(bad, processor())
    with pytest.raises(DataError, match="^list row 7: none.png: no such file"):
        data[0]
    with pytest.raises(DataError, match="outside the picture"):
        data[1]
    with pytest.raises(UsageError, match="empty"):
        LabelledFaces([], processor())
    with pytest.raises(UsageError, match="different numbers of labels.*\n.*augmentation is 2"):
        LabelledFaces([items[0], replace(items[1], labels=(0,))], processor(), augmentation=2)
