"""Pools from folders, arrays and data sets; splits and hashes that depend on content; bad pools with all problems."""

from __future__ import annotations

import dataclasses
import json
import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from thurl.continual.contamination import knn_accuracy, zero_shot_accuracy
from thurl.continual.encoders import MLPEncoder, MLPEncoderConfig
from thurl.continual.encoding import flat_input
from thurl.continual.features import encode
from thurl.continual.pool import ClassPool, Sample, make_pool, read_pool
from thurl.continual.pool_data import class_data, class_data_from_features
from thurl.continual.pool_sources import array_samples, difference_hash, folder_samples, hub_samples, read_picture
from thurl.errors import DataError, UsageError
from thurl.training.fingerprint import fingerprint
from thurl.vision_models.clip_text import clip_text_features

from .conftest import blobs


def picture(seed, size=24):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """Three classes of eight pictures in `birds`."""
    for label, name in enumerate(("crow", "jay", "owl")):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for index in range(8):
            picture(100 * label + index).save(tmp_path / "birds" / name / f"{index}.png")
    return tmp_path / "birds"


def samples(uid, count, first=0):
    dataset, _, name = uid.partition("/")
    return [Sample(dataset, name, f"{i}.png", f"{uid}/{i}.png", f"{uid}-{i + first}") for i in range(count)]


def test_a_folder_becomes_a_pool_and_comes_back_from_its_manifest(folder):
    pool = make_pool(folder_samples(folder, root=folder.parent), folder.parent)
    assert pool.classes == ("birds/crow", "birds/jay", "birds/owl")
    assert pool.counts()["birds/jay"] == {"train": 4, "val": 2, "test": 2}
    pool.save(folder.parent / "pool.jsonl")
    again = read_pool(folder.parent / "pool.jsonl")
    assert again.hash == pool.hash and again.images == pool.images
    row = json.loads((folder.parent / "pool.jsonl").read_text().splitlines()[0])
    assert row["class_uid"] == "birds/crow" and row["image"].startswith("birds/crow/")


def test_splits_depend_on_names_alone(folder, tmp_path):
    found = folder_samples(folder)
    pool = make_pool(found, folder)
    assert make_pool(reversed(found), folder).images == pool.images
    assert make_pool(found, folder, seed=1).hash != pool.hash
    # One more picture moves hardly any other: each keeps its rank.
    picture(999).save(folder / "crow" / "new.png")
    grown = {item.sha256: item.split for item in make_pool(folder_samples(folder), folder).images}
    kept = [item for item in pool.images if grown[item.sha256] == item.split]
    assert len(kept) >= len(pool.images) - 2


def test_the_hash_is_that_of_the_content(folder, tmp_path):
    pool = make_pool(folder_samples(folder), folder)
    elsewhere = [dataclasses.replace(item, image="x/" + item.image) for item in pool.images]
    assert ClassPool(elsewhere, tmp_path).hash == pool.hash
    other = [dataclasses.replace(pool.images[0], sha256="0" * 64), *pool.images[1:]]
    assert ClassPool(other, folder).hash != pool.hash


def test_caps_and_whole_numbers():
    found = samples("a/x", 50) + samples("a/y", 40)
    assert make_pool(found, ".", caps=(10, 3, None)).counts()["a/x"] == {"train": 10, "val": 3, "test": 10}
    assert make_pool(found, ".", sizes=(20, 5, 9)).counts()["a/y"] == {"train": 20, "val": 5, "test": 9}
    with pytest.raises(DataError, match="a/y: 40 of 40 .* needs 45"):
        make_pool(found, ".", sizes=(30, 5, 10))


def test_small_classes_are_named_or_left_out(caplog):
    found = samples("a/one", 1) + samples("a/two", 2) + samples("a/three", 3) + samples("a/many", 9)
    with pytest.raises(DataError) as caught:
        make_pool(found, ".")
    assert "a/one: 1 of 1" in str(caught.value) and "a/two: 2 of 2" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        pool = make_pool(found, ".", on_small="skip")
    assert pool.classes == ("a/many", "a/three") and "2 classes left out" in caplog.text
    assert pool.counts()["a/three"] == {"train": 1, "val": 1, "test": 1}
    with pytest.raises(DataError, match="no picture"):
        make_pool([], ".")


def test_classes_called_alike_are_aliases_and_never_the_same():
    found = samples("a/Great Owl", 4) + samples("b/great_owl", 4) + samples("b/jay", 4)
    pool = make_pool(found, ".")
    assert pool.aliases == {"greatowl": ("a/Great Owl", "b/great_owl")}
    assert pool.groups[0] == pool.groups[1] != pool.groups[2]
    assert make_pool(found, ".", share_names=False).aliases == {}
    joined = make_pool(found, ".", aliases={"bird": ["a/Great Owl", "b/jay"]})
    assert joined.aliases == {"bird": ("a/Great Owl", "b/great_owl", "b/jay")}
    with pytest.raises(UsageError, match="b/kite"):
        make_pool(found, ".", aliases={"bird": ["b/kite"]})


def test_duplicates(folder, caplog):
    with pytest.raises(DataError, match="one class spelled differently"):
        make_pool(samples("a/Owl", 4) + samples("a/owl", 4, first=9), ".")
    (folder / "owl" / "0.png").write_bytes((folder / "jay" / "3.png").read_bytes())
    with pytest.raises(DataError, match="birds/jay and birds/owl"):
        make_pool(folder_samples(folder), folder)
    pool = make_pool(folder_samples(folder), folder, on_duplicate="drop")
    assert [sum(counts.values()) for counts in pool.counts().values()] == [8, 7, 7]
    (folder / "owl" / "0.png").write_bytes((folder / "owl" / "1.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        pool = make_pool(folder_samples(folder), folder)
    assert sum(pool.counts()["birds/owl"].values()) == 7 and "1 copies and near-duplicates" in caplog.text


def test_near_duplicates_are_left_out_before_the_split(folder):
    smooth = picture(5, 8).resize((64, 64), Image.Resampling.BICUBIC)
    smooth.save(folder / "jay" / "a.png")
    smooth.save(folder / "jay" / "b.jpg", quality=60)
    kept = make_pool(folder_samples(folder, near_duplicates=False), folder).counts()["birds/jay"]
    dropped = make_pool(folder_samples(folder), folder).counts()["birds/jay"]
    assert sum(kept.values()) == 10 and sum(dropped.values()) == 9
    assert difference_hash(Image.new("RGB", (9, 9))) is None  # plain pictures are not compared


def test_unreadable_pictures(folder, caplog):
    (folder / "crow" / "1.png").write_bytes((folder / "crow" / "1.png").read_bytes()[:200])
    (folder / "owl" / "2.png").write_text("no picture")
    with pytest.raises(DataError) as caught:
        folder_samples(folder)
    assert "crow/1.png" in str(caught.value) and "owl/2.png" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        found = folder_samples(folder, on_corrupt="skip")
    assert len(found) == 22 and "2 of 24" in caplog.text
    with pytest.raises(DataError, match="no such folder"):
        folder_samples(folder / "none")
    with pytest.raises(DataError, match="class folders"):
        folder_samples(folder / "crow")


def test_arrays(tmp_path):
    generator = np.random.default_rng(0)
    images, labels = generator.random((30, 4, 4), dtype=np.float32), np.arange(30) % 3
    np.savez(tmp_path / "tiny.npz", images=images, labels=labels, class_names=["x", "y", "z"])
    pool = make_pool(array_samples(tmp_path / "tiny.npz"), tmp_path)
    assert pool.classes == ("tiny/x", "tiny/y", "tiny/z")
    item = pool.images[7]
    row = int(item.image.rpartition("#")[2])
    np.testing.assert_array_equal(read_picture(item.image, tmp_path, item.sha256), images[row])
    images[row] += 1
    np.savez(tmp_path / "tiny.npz", images=images, labels=labels)
    from thurl.continual import pool_sources

    pool_sources._arrays.clear()
    with pytest.raises(DataError, match="another picture than when the pool was made"):
        read_picture(item.image, tmp_path, item.sha256)
    images[3, 0, 0] = np.nan
    np.savez(tmp_path / "bad.npz", images=images, labels=labels)
    with pytest.raises(DataError, match="row 3: NaN"):
        array_samples(tmp_path / "bad.npz")
    np.savez(tmp_path / "object.npz", images=np.array([{}], dtype=object), labels=np.array([0]))
    with pytest.raises(DataError, match="not an .npz file"):
        array_samples(tmp_path / "object.npz")


def test_a_saved_data_set(tmp_path):
    rows = {"image": [picture(i) for i in range(12)], "label": [i % 2 for i in range(12)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "pets")
    pool = make_pool(hub_samples(str(tmp_path / "pets")), tmp_path)
    assert pool.classes == ("pets/cat", "pets/dog")
    pool.save(tmp_path / "pool.jsonl")
    item = read_pool(tmp_path / "pool.jsonl").images[0]
    assert read_picture(item.image, tmp_path, item.sha256).size == (24, 24)
    with pytest.raises(DataError, match="no column kind"):
        hub_samples(str(tmp_path / "pets"), label="kind")


def test_a_manifest_is_not_trusted(folder, tmp_path):
    make_pool(folder_samples(folder), folder).save(folder / "pool.jsonl")
    lines = (folder / "pool.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    bad = [
        "not json",
        json.dumps({**row, "split": "dev"}),
        json.dumps({**row, "image": "../../secret.png"}),
        json.dumps({**row, "class_uid": "birds/kite"}),
        json.dumps({**row, "sha256": 5}),
    ]
    (folder / "pool.jsonl").write_text("\n".join([*lines, *bad]))
    with pytest.raises(DataError) as caught:
        read_pool(folder / "pool.jsonl")
    for words in ("line 25: JSONDecodeError", "'dev'", "outside the manifest", "birds/kite", "must be a text"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match="twice"):
        ClassPool([*make_pool(folder_samples(folder), folder).images] * 2, folder)
    with pytest.raises(DataError, match="cannot be read as a pool"):
        read_pool(tmp_path / "none.jsonl")


def test_options_are_checked_together():
    with pytest.raises(UsageError) as caught:
        make_pool([], ".", sizes=(0.5, 0.5, 0.5), caps=(0, 1, 1), on_small="drop", on_duplicate="keep")
    assert len(caught.value.problems) == 4


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return MLPEncoder(MLPEncoderConfig(side=6, hidden_sizes=[12, 5])).eval()


def test_features_are_computed_once_and_keyed_by_encoder_and_picture(folder, encoder, tmp_path):
    pool = make_pool(folder_samples(folder), folder)
    data = class_data(pool, encoder, lambda image: flat_input(image, 6), cache=tmp_path / "features")
    assert data.features.shape == (len(pool.images), 5) and data.pool_hash == pool.hash
    with torch.no_grad():
        wanted = encoder(data.inputs).pooler_output
    torch.testing.assert_close(data.features, wanted)
    asked = []

    def inputs(rows):
        asked.extend(rows)
        return data.inputs[list(rows)]

    digests = [item.sha256 for item in pool.images]
    assert torch.equal(encode(encoder, digests, inputs, folder=tmp_path / "features"), data.features) and not asked
    assert len(
        encode(encoder, [*digests, "new"], lambda rows: torch.ones(len(rows), 36), folder=tmp_path / "features")
    )
    other = MLPEncoder(MLPEncoderConfig(side=6, hidden_sizes=[12, 5])).eval()
    assert fingerprint(other) != fingerprint(encoder)
    assert not torch.equal(encode(other, digests, inputs, folder=tmp_path / "features"), data.features)
    assert len(asked) == len(digests)
    turned = encode(encoder, digests, lambda rows: data.inputs[rows].flip(1), folder=tmp_path / "features",
                    preprocessing="turned")  # fmt: skip
    assert not torch.equal(turned, data.features)
    assert torch.equal(encode(encoder, digests, inputs, folder=tmp_path / "features"), data.features)
    file = tmp_path / "features" / f"{fingerprint(encoder)}.safetensors"
    assert torch.equal(class_data_from_features(pool, file).features, data.features)
    with pytest.raises(UsageError, match="made with encoder"):
        class_data_from_features(pool, file, encoder="other")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        encode(encoder, digests, inputs, folder=tmp_path / "features")


def test_features_of_another_pool_and_undefined_ones_are_refused(folder, encoder, tmp_path):
    pool = make_pool(folder_samples(folder), folder)
    encode(encoder, ["x"], lambda rows: torch.ones(1, 36), folder=tmp_path)
    with pytest.raises(DataError, match="no features"):
        class_data_from_features(pool, tmp_path / f"{fingerprint(encoder)}.safetensors")
    with torch.no_grad():
        encoder.layers[0].weight.fill_(float("inf"))
    with pytest.raises(DataError, match="NaN or infinite"):
        class_data(pool, encoder, lambda image: flat_input(image, 6))


def test_a_saved_encoder_has_the_same_fingerprint(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "encoder")
    assert fingerprint(MLPEncoder.from_pretrained(tmp_path / "encoder")) == fingerprint(encoder)


def test_contamination():
    known, unknown = blobs(spread=0.02), blobs(features=torch.randn(8 * 19, 6, generator=torch.manual_seed(0)))
    assert set(knn_accuracy(known).values()) == {1.0}
    assert np.mean(list(knn_accuracy(unknown).values())) < 0.4
    with pytest.raises(UsageError, match="neighbours"):
        knn_accuracy(known, neighbours=0)
    centres = torch.stack([known.features[known.rows([i], "train")].mean(0) for i in range(8)])
    assert set(zero_shot_accuracy(known, centres).values()) == {1.0}
    assert zero_shot_accuracy(known, centres.roll(1, 0))["blobs/00"] == 0.0
    with pytest.raises(UsageError, match="text features"):
        zero_shot_accuracy(known, centres[:3])


def test_the_majority_of_neighbours_wins_and_the_nearer_of_equals():
    votes = blobs(classes=2, dimension=2, per_split=(3, 1, 1))
    votes.features[votes.rows([0], "train")] = torch.tensor([[1.0, 0.05], [1.0, 0.5], [1.0, 0.6]])
    votes.features[votes.rows([1], "train")] = torch.tensor([[1.0, 0.1], [1.0, 0.2], [-1.0, 0.0]])
    votes.features[votes.rows([0, 1], "val")] = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert list(knn_accuracy(votes, neighbours=3).values()) == [0.0, 1.0]
    assert list(knn_accuracy(votes, neighbours=2).values()) == [1.0, 0.0]


def test_text_features_of_a_clip_model():
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 39},
        vision_config={**small, "image_size": 8, "patch_size": 4},
        projection_dim=6,
    )
    seen = []

    def tokenizer(texts, **options):
        seen.extend(texts)
        ids = torch.tensor([[len(text) % 38, 39] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    features = clip_text_features(CLIPModel(config).eval(), tokenizer, ["birds/snowy_owl", "birds/jay"])
    assert features.shape == (2, 6) and bool(features.isfinite().all())
    assert seen == ["a photo of a snowy owl.", "a photo of a jay."]
