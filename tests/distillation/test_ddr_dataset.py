"""A file as a torch data set, as a Hugging Face data set, and on the Hub."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from thurl.distillation import ddr
from thurl.distillation.dataset_card import dataset_card, plain_bits
from thurl.distillation.ddr_dataset import DdrDataset
from thurl.distillation.integer import decode_images
from thurl.errors import UsageError


@pytest.fixture
def loaded(coded, tmp_path):
    ddr.write(replace(coded, hints={"lr": 0.01, "network": "convnet3"}), tmp_path / "x.ddr")
    return ddr.load(tmp_path / "x.ddr")


def test_samples_are_pictures_and_labels(coded, loaded):
    wanted = np.concatenate([decode_images(part) for part in coded.slices])
    assert len(loaded) == 5 and loaded.classes == ("a", "b", "c")
    for i, (image, label) in enumerate(loaded):
        assert image.dtype == torch.uint8 and image.shape == (3, 9, 12)
        assert (image.numpy() == wanted[i]).all()
        assert label == [0, 0, 1, 1, 2][i] and isinstance(label, int)
    image, label = loaded[-1]
    assert (image.numpy() == wanted[-1]).all() and label == 2
    with pytest.raises(IndexError):
        loaded[5]
    assert loaded.hints == {"lr": 0.01, "network": "convnet3"}
    rate = loaded.rate()
    assert set(rate) == {"latents", "nets", "labels", "header", "total_bits", "bpc"}
    assert rate["bpc"] == rate["total_bits"] / 3


def test_it_loads_in_batches_and_normalises(loaded):
    loader = torch.utils.data.DataLoader(loaded, batch_size=5)
    ((images, labels),) = list(loader)
    assert images.shape == (5, 3, 9, 12) and labels.tolist() == [0, 0, 1, 1, 2]
    expected = (images.float() / 255 - 0.5) / 0.25
    assert torch.allclose(loaded.normalised(), expected)


def test_a_transform_is_applied(coded):
    found = DdrDataset(ddr.decode(ddr.encode(coded)), transform=lambda image: image.float().mean().item())
    assert found[0][0] == pytest.approx(found.images[0].float().mean().item())


@pytest.mark.parametrize("soft", [False, True])
def test_as_a_hugging_face_data_set_without_loss(coded, soft):
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    found = DdrDataset(ddr.decode(ddr.encode(replace(coded, soft_labels=logits if soft else None))))
    table = found.to_huggingface()
    assert table.features["label"].names == ["a", "b", "c"]
    assert table["label"] == [0, 0, 1, 1, 2]
    for i in range(5):
        assert (np.asarray(table[i]["image"]).transpose(2, 0, 1) == found.images[i].numpy()).all()
    assert ("logits" in table.column_names) == soft
    if soft:
        assert np.allclose(np.array(table["logits"]), logits.astype(np.float32))
        assert torch.equal(found.soft_labels, torch.from_numpy(logits.astype(np.float32)))


def test_the_card_tells_all_bits(loaded):
    rate = loaded.rate()
    text = dataset_card(loaded.coded, rate, name="tiny | set\n# no heading", license="cc-by-4.0")
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "cc-by-4.0" and metadata["task_categories"] == ["image-classification"]
    assert metadata["configs"][0]["data_files"][0]["path"] == "data/*.parquet"
    for part in ("latents", "nets", "labels", "header"):
        assert f"| {part} | {rate[part]:,} |" in body
    assert f"{rate['total_bits'] // 8:,} bytes" in body and f"{rate['bpc']:,.0f} bits per class" in body
    values = 5 * 3 * 9 * 12
    assert plain_bits(loaded.coded) == {"fp32": 32 * values, "fp16": 16 * values, "8 bits": 8 * values}
    assert f"| 8 bits | {8 * values:,} | {8 * values / rate['total_bits']:.1f} |" in body
    assert "| lr | 0.01 |" in body and '| network | "convnet3" |' in body
    assert "# tiny \\| set # no heading\n" in body
    without = dataset_card(replace(loaded.coded, hints={}), rate, name="x")
    assert "says nothing of the training" in without


def test_what_is_saved_loads_again(loaded, tmp_path):
    import datasets

    folder = loaded.save_pretrained(tmp_path / "set", name="tiny")
    assert (folder / "data.ddr").read_bytes() == (tmp_path / "x.ddr").read_bytes()
    again = ddr.load(folder / "data.ddr")
    assert torch.equal(again.images, loaded.images) and again.rate() == loaded.rate()
    table = datasets.Dataset.from_parquet(str(next((folder / "data").iterdir())), cache_dir=str(tmp_path / "cache"))
    assert table.features["label"].names == ["a", "b", "c"]
    assert (np.asarray(table[3]["image"]).transpose(2, 0, 1) == loaded.images[3].numpy()).all()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="this is a file"):
        loaded.save_pretrained(tmp_path / "file")


def test_what_is_saved_is_what_a_push_takes(loaded, tmp_path):
    """The push itself: tests/hub."""
    from thurl.hub.files import run_files

    found = run_files(loaded.save_pretrained(tmp_path / "set", license="cc-by-4.0"))
    assert found.repo_type == "dataset"
    assert set(found.files) == {"data.ddr", "data/train-00000-of-00001.parquet"}
    assert 'ddr.load("USER/NAME")' in (tmp_path / "set" / "README.md").read_text()
