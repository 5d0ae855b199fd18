"""Pictures that are read when they are asked for: the same numbers, bounded memory, no changed picture unnoticed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.continual import picture_inputs
from thurl.continual.class_data import ClassData
from thurl.continual.features import features_key
from thurl.continual.picture_inputs import PictureInputs
from thurl.continual.pool import ClassPool, make_pool, read_pool
from thurl.continual.pool_data import class_data
from thurl.continual.pool_sources import array_samples, folder_samples
from thurl.continual.vision_encoders import load_encoder
from thurl.errors import DataError, UsageError
from thurl.training.fingerprint import fingerprint

from .conftest import blobs
from .tiny_encoders import save_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    save_encoder("vit", folder)
    return load_encoder(str(folder))


@pytest.fixture
def pool(tmp_path):
    """Two classes of six pictures."""
    generator = np.random.default_rng(0)
    for name in ("crow", "jay"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "birds" / name / f"{index}.png")
    return make_pool(folder_samples(tmp_path / "birds", root=tmp_path), tmp_path)


@pytest.fixture
def counted(monkeypatch):
    """References of the pictures read."""
    asked = []
    read = picture_inputs.read_picture

    def counting(image, root, sha256):
        asked.append(image)
        return read(image, root, sha256)

    monkeypatch.setattr(picture_inputs, "read_picture", counting)
    return asked


def test_rows_are_those_of_a_tensor_in_any_order(pool, encoder):
    inputs = PictureInputs(pool, encoder.preprocess)
    whole = inputs[torch.arange(12)]
    assert whole.shape == (12, 3, 16, 16) and whole.dtype == torch.float32 and len(inputs) == 12
    for rows in ([3], [5, 1, 5, 0], [], [11, 11]):
        wanted = whole[torch.tensor(rows, dtype=torch.int64)]
        assert torch.equal(inputs[torch.tensor(rows, dtype=torch.int64)], wanted) and torch.equal(inputs[rows], wanted)
        assert torch.equal(PictureInputs(pool, encoder.preprocess, memory=0)[rows], wanted)
    whole.zero_()
    assert bool(inputs[[2]].any())


@pytest.mark.parametrize("memory, reads", [(0, 24), (3 * 768, 24), (2**20, 12)])
def test_memory_is_bounded_and_what_is_kept_is_not_read_again(pool, encoder, counted, memory, reads):
    inputs = PictureInputs(pool, encoder.preprocess, memory)
    for _ in range(2):
        for rows in torch.arange(12).split(4):
            inputs[rows]
            assert sum(kept.numel() for kept in inputs._kept.values()) <= memory
    assert len(counted) == reads
    with pytest.raises(UsageError, match="0 or more"):
        PictureInputs(pool, encoder.preprocess, -1)


def test_what_is_asked_for_last_is_kept(pool, encoder, counted):
    inputs = PictureInputs(pool, encoder.preprocess, memory=2 * 768)
    for row, read in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        inputs[[row]]
        assert len(counted) == read


def test_it_is_pickled_without_the_pictures_and_says_what_it_is(pool, encoder, tmp_path):
    inputs = PictureInputs(pool, encoder.preprocess)
    empty = len(ForkingPickler.dumps(inputs))
    whole = inputs[range(12)]
    assert abs(len(ForkingPickler.dumps(inputs)) - empty) < 500
    again = ForkingPickler.loads(ForkingPickler.dumps(inputs))
    assert torch.equal(again[range(12)], whole) and again.identity == inputs.identity
    save_encoder("clip", tmp_path / "clip")
    clip = load_encoder(str(tmp_path / "clip"))
    assert PictureInputs(pool, clip.preprocess).identity != inputs.identity
    pool.save(tmp_path / "pool.jsonl")
    lines = (tmp_path / "pool.jsonl").read_text().splitlines()
    less = [line for line in lines if json.loads(line)["image"] != pool.images[0].image]
    (tmp_path / "less.jsonl").write_text("\n".join(less))
    assert PictureInputs(read_pool(tmp_path / "less.jsonl"), encoder.preprocess).identity != inputs.identity
    assert PictureInputs(read_pool(tmp_path / "pool.jsonl"), encoder.preprocess).identity == inputs.identity


def test_samples_of_a_picture_encoder(pool, encoder, tmp_path, counted):
    before = fingerprint(encoder.model)
    data = class_data(pool, encoder.model, encoder.preprocess, cache=tmp_path / "features", memory=0, device="cpu")
    assert isinstance(data.inputs, PictureInputs) and len(counted) == 12
    with torch.no_grad():
        wanted = encoder.model(data.read(torch.arange(12)))
    torch.testing.assert_close(data.features, wanted)
    assert (
        data.encoder == features_key(encoder.model, encoder.preprocess.name) and fingerprint(encoder.model) == before
    )
    asked = len(counted)
    again = class_data(pool, encoder.model, encoder.preprocess, cache=tmp_path / "features")
    assert len(counted) == asked and torch.equal(again.features, data.features) and again.identity == data.identity


@pytest.mark.gpu
def test_features_from_a_gpu_are_on_the_cpu_and_the_encoder_comes_back(pool, encoder):
    there = class_data(pool, encoder.model, encoder.preprocess, device="cuda")
    here = class_data(pool, encoder.model, encoder.preprocess)
    assert there.features.device.type == "cpu"
    torch.testing.assert_close(there.features, here.features, atol=1e-3, rtol=1e-3)
    assert {parameter.device.type for parameter in encoder.model.parameters()} == {"cpu"}


def test_the_identity_of_samples_includes_their_inputs():
    class Lazy:
        def __init__(self, identity):
            self.identity = identity

        def __getitem__(self, rows):
            return torch.zeros(len(rows), 4)

    first, same, other = (blobs(inputs=Lazy(text)) for text in ("a", "a", "b"))
    assert isinstance(first, ClassData) and first.identity == same.identity
    assert len({first.identity, other.identity, blobs().identity, blobs(inputs=None).identity}) == 4
    assert first.read(torch.tensor([1, 2])).shape == (2, 4)
    with pytest.raises(UsageError, match="`identity`"):
        blobs(inputs=[0] * 152)
    with pytest.raises(UsageError, match="12 inputs for 152 labels"):
        blobs(inputs=torch.zeros(12, 3))


def test_pictures_that_change_after_the_pool_was_made_are_named(pool, encoder):
    inputs = PictureInputs(pool, encoder.preprocess, memory=0)
    inputs[range(12)]
    paths = [pool.root / item.image for item in pool.images]
    Image.new("RGB", (20, 20)).save(paths[0])
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[2].unlink()
    with pytest.raises(DataError) as caught:
        inputs[range(12)]
    assert str(caught.value).count("another picture than when the pool was made") == 2
    assert "cannot be read" in str(caught.value) and all(path.name in str(caught.value) for path in paths[:3])
    assert inputs[[3, 4]].shape == (2, 3, 16, 16)
    # A manifest may hold the digest of a picture that never was one.
    broken = paths[1].read_bytes()
    item = dataclasses.replace(pool.images[1], sha256=hashlib.sha256(broken).hexdigest())
    other = ClassPool([item, *pool.images[2:], pool.images[0]], pool.root)
    with pytest.raises(DataError, match=f"{paths[1].name}: .*(truncated|decoded|broken)"):
        PictureInputs(other, encoder.preprocess)[[other.images.index(item)]]


def test_a_pool_of_arrays_that_are_no_pictures_is_refused(encoder, tmp_path):
    for name, images in (("flat", np.zeros((6, 64))), ("far", np.full((6, 8, 8), 7.0))):
        images = images + np.arange(6).reshape(6, *[1] * (images.ndim - 1)) / 100
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.array([0, 0, 0, 1, 1, 1]))
        pool = make_pool(array_samples(tmp_path / f"{name}.npz"), tmp_path)
        with pytest.raises(DataError, match="no picture"):
            class_data(pool, encoder.model, encoder.preprocess)
    np.savez(
        tmp_path / "good.npz", images=np.random.default_rng(0).random((6, 8, 8)), labels=np.array([0, 0, 0, 1, 1, 1])
    )
    pool = make_pool(array_samples(tmp_path / "good.npz"), tmp_path)
    assert class_data(pool, encoder.model, encoder.preprocess).features.shape == (6, 32)
