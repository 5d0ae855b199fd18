"""Sources: every layout in its released form, splits without overlap, and the ways in which files can be wrong."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.distillation.pictures import STATISTICS
from thurl.distillation.sources import (
    SUBSETS,
    load_cifar,
    load_digits,
    load_folder,
    load_idx,
    load_imagenet_subset,
    load_patches,
)
from thurl.errors import DataError, UsageError


RNG = np.random.default_rng(11)


def write_idx(path, array, compress=False):
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


def mnist(folder, parts=("train", "t10k"), count=40, compress=False):
    folder.mkdir(exist_ok=True)
    made = {}
    for part in parts:
        images, labels = RNG.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        ending = ".gz" if compress else ""
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images, compress)
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", labels, compress)
        made[part] = images
    return made


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_plain_and_gzipped(tmp_path, compress):
    made = mnist(tmp_path / "m", compress=compress)
    train, test = load_idx(tmp_path / "m")
    assert np.array_equal(train.images[:, 0].numpy(), made["train"])
    assert np.array_equal(test.images[:, 0].numpy(), made["t10k"])
    assert train.labels.tolist() == [i % 10 for i in range(40)]
    assert (train.mean, train.std) == (test.mean, test.std) == STATISTICS["mnist"]
    small, _ = load_idx(tmp_path / "m", size=(14, 14), name="fashion_mnist", train_per_class=2)
    assert small.images.shape == (20, 1, 14, 14) and small.mean != STATISTICS["fashion_mnist"][0]


def test_one_part_of_mnist_is_split(tmp_path):
    mnist(tmp_path / "m", parts=("t10k",))
    with pytest.raises(UsageError, match="only the part t10k is there"):
        load_idx(tmp_path / "m")
    train, test = load_idx(tmp_path / "m", train_per_class=3, test_per_class=1, seed=4)
    assert (len(train), len(test)) == (30, 10)
    rows = [{bytes(image.numpy()) for image in part.images} for part in (train, test)]
    assert not rows[0] & rows[1]
    again, _ = load_idx(tmp_path / "m", train_per_class=3, test_per_class=1, seed=4)
    other, _ = load_idx(tmp_path / "m", train_per_class=3, test_per_class=1, seed=5)
    assert torch.equal(train.images, again.images) and not torch.equal(train.images, other.images)


def test_wrong_idx_files_are_named(tmp_path):
    folder = tmp_path / "m"
    with pytest.raises(DataError, match="no train-images-idx3-ubyte"):
        load_idx(tmp_path)
    mnist(folder)
    labels, images = folder / "train-labels-idx1-ubyte", folder / "train-images-idx3-ubyte"
    good = images.read_bytes()
    for content, message in (
        (good[:-1], "but 31359 follow"),
        (good + b"1", "but 31361 follow"),
        (b"\0\0\x09\x03" + good[4:], "no IDX file of bytes"),
        (good[:7], "no IDX file of bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "but 0 follow"),
    ):
        images.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_idx(folder)
    images.write_bytes(good)
    write_idx(labels, np.arange(39) % 10)
    with pytest.raises(DataError, match="40 pictures, but 39 labels"):
        load_idx(folder)
    labels.unlink()
    with pytest.raises(DataError, match="pictures but no labels"):
        load_idx(folder)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"0" * 100)[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        load_idx(folder)
    with pytest.raises(UsageError, match="must be one of fashion_mnist, mnist"):
        load_idx(folder, name="kmnist")


def cifar10(folder, count=20):
    folder.mkdir(parents=True)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        rows = RNG.integers(0, 256, (count, 3073)).astype(np.uint8)
        rows[:, 0] = np.arange(count) % 10
        (folder / name).write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"c{i}" for i in range(10)) + "\n\n")


def test_cifar_10(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    cifar10(folder)
    train, test = load_cifar(tmp_path)
    assert train.images.shape == (100, 3, 32, 32) and len(test) == 20 and train.classes[3] == "c3"
    first = np.frombuffer((folder / "data_batch_1.bin").read_bytes()[:3073], np.uint8)
    # Red plane, green plane, blue plane, row after row.
    assert np.array_equal(train.images[0].flatten().numpy(), first[1:]) and train.labels[0] == first[0]
    assert (train.mean, train.std) == STATISTICS["cifar"]
    small, _ = load_cifar(folder, size=(16, 16), train_per_class=4)
    assert small.images.shape == (40, 3, 16, 16)


def test_cifar_100_takes_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):
        rows = RNG.integers(0, 256, (200, 3074)).astype(np.uint8)
        rows[:, 0], rows[:, 1] = np.arange(200) % 20, np.arange(200) % 100
        (folder / name).write_bytes(rows.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"f{i}" for i in range(100)))
    train, _ = load_cifar(folder)
    assert len(train.classes) == 100 and train.labels.tolist() == [i % 100 for i in range(200)]


def test_wrong_cifar_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="no data_batch_1.bin"):
        load_cifar(tmp_path)
    python = tmp_path / "python"
    python.mkdir()
    (python / "data_batch_1").write_bytes(b"\x80\x02")
    with pytest.raises(DataError, match="pickled and is not opened; take the binary version"):
        load_cifar(python)
    folder = tmp_path / "bin"
    cifar10(folder)
    (folder / "data_batch_2.bin").write_bytes(b"\x0a" * 3073)
    with pytest.raises(DataError, match="label 10 of 10 classes"):
        load_cifar(folder)
    (folder / "data_batch_2.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(DataError, match="3072 bytes are no multiple of 3073"):
        load_cifar(folder)
    (folder / "data_batch_2.bin").unlink()
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match="data_batch_2.bin, test_batch.bin missing"):
        load_cifar(folder)


def write_pictures(folder, count, size=(12, 10), tone=None):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        values = RNG.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        if tone is not None:
            values[:] = tone
        Image.fromarray(values).save(folder / f"{index:03d}.png")


def test_a_folder_with_train_and_test(tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            write_pictures(tmp_path / part / name, count, tone=60 + 100 * label)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a picture")
    train, test = load_folder(tmp_path)
    assert train.classes == ("cat", "dog") and train.images.shape == (8, 3, 10, 12) and len(test) == 4
    assert train.images[train.labels == 0].unique().tolist() == [60]
    assert train.images[train.labels == 1].unique().tolist() == [160]
    grey, _ = load_folder(tmp_path, size=(5, 6), channels=1, train_per_class=3)
    assert grey.images.shape == (6, 1, 5, 6) and len(grey.mean) == 1
    write_pictures(tmp_path / "test" / "fox", 1)
    with pytest.raises(DataError, match="classes in one part only: fox"):
        load_folder(tmp_path)


def test_a_folder_of_classes_is_split_by_file(tmp_path):
    for name in ("a", "b"):
        write_pictures(tmp_path / name, 5)
    with pytest.raises(DataError, match="give train_per_class and test_per_class"):
        load_folder(tmp_path)
    train, test = load_folder(tmp_path, train_per_class=3, test_per_class=2)
    rows = [{bytes(image.numpy()) for image in part.images} for part in (train, test)]
    assert (len(rows[0]), len(rows[1])) == (6, 4) and not rows[0] & rows[1]
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path, train_per_class=4, test_per_class=2)
    assert "class a: 1 pictures to take as test, 2 wanted" in str(caught.value) and "class b" in str(caught.value)


def test_bad_pictures_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_folder(tmp_path / "none")
    write_pictures(tmp_path / "d" / "a", 3)
    with pytest.raises(DataError, match=r"1 class folders \(a\); at least two are needed"):
        load_folder(tmp_path / "d", train_per_class=1, test_per_class=1)
    write_pictures(tmp_path / "d" / "b", 3)
    for name in ("a", "b"):
        whole = (tmp_path / "d" / name / "001.png").read_bytes()
        (tmp_path / "d" / name / "001.png").write_bytes(whole[:60])
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path / "d", train_per_class=2, test_per_class=1, seed=1)
    assert str(caught.value).count("001.png") in (1, 2)
    other = tmp_path / "o"
    for name, size in (("a", (12, 10)), ("b", (9, 10))):
        write_pictures(other / name, 3, size)
    with pytest.raises(DataError, match=r"several sizes: 12x10 \(\d+.png\), 9x10"):
        load_folder(other, train_per_class=2, test_per_class=1)
    assert load_folder(other, size=(8, 8), train_per_class=2, test_per_class=1)[0].images.shape == (4, 3, 8, 8)


def test_digits_are_the_ones_of_scikit_learn():
    from sklearn import datasets

    train, test = load_digits(train_per_class=120, test_per_class=54)
    assert train.images.shape == (1200, 1, 8, 8) and len(test) == 540
    rows = [{bytes(image.numpy()) for image in part.images} for part in (train, test)]
    assert not rows[0] & rows[1]
    original = {bytes(np.rint(image * 255 / 16).astype(np.uint8)): label for image, label in
                zip(datasets.load_digits().images, datasets.load_digits().target, strict=True)}  # fmt: skip
    assert all(original[bytes(i.numpy())] == int(label) for i, label in zip(train.images, train.labels, strict=True))
    with pytest.raises(DataError, match="8 has 174"):
        load_digits(150, 50)


def imagenet(folder, names):
    for part in ("train", "val"):
        for name, tone in names.items():
            write_pictures(folder / part / name, 1 if part == "val" else 2, (20, 16), tone)


def test_imagenet_subsets_by_index_by_list_and_by_all_thousand(tmp_path):
    """The tone of every picture is the index of its class in the subset."""
    from torchvision.models import ResNet18_Weights

    assert {len(set(indices)) for indices in SUBSETS.values()} == {10}
    words = {
        "fruit": "banana",
        "meow": "tabby",
        "nette": "tench",
        "squawk": "peacock",
        "woof": "beagle",
        "yellow": "bee",
    }
    for subset, word in words.items():
        names = [ResNet18_Weights.IMAGENET1K_V1.meta["categories"][index] for index in SUBSETS[subset]]
        assert word in names and len(set(names)) == 10
    order = SUBSETS["squawk"]
    imagenet(tmp_path / "index", {str(index): tone for tone, index in enumerate(order)})
    ids = [f"n{10_000_000 + 7 * index}" for index in range(1000)]
    imagenet(tmp_path / "ids", {ids[index]: tone for tone, index in enumerate(order)})
    (tmp_path / "ids.txt").write_text("\n".join(f"{name} some words" for name in ids))
    (tmp_path / "ids.json").write_text(json.dumps({str(i): [name, "word"] for i, name in enumerate(ids)}))
    found = [
        load_imagenet_subset(tmp_path / "index", "squawk", size=(8, 8)),
        load_imagenet_subset(tmp_path / "ids", "squawk", size=(8, 8), index_file=tmp_path / "ids.txt"),
        load_imagenet_subset(tmp_path / "ids", "squawk", size=(8, 8), index_file=tmp_path / "ids.json"),
    ]
    with pytest.raises(DataError, match=r"no folder for 84 \(class 84\).*give an index_file"):
        load_imagenet_subset(tmp_path / "ids", "squawk")
    for part in ("train", "val"):
        for name in ids:
            (tmp_path / "ids" / part / name).mkdir(exist_ok=True)
    found.append(load_imagenet_subset(tmp_path / "ids", "squawk", size=(8, 8)))
    for train, test in found:
        assert train.images[:, 0, 0, 0].tolist() == train.labels.tolist() == [i for i in range(10) for _ in range(2)]
        assert test.images[:, 0, 0, 0].tolist() == test.labels.tolist() == list(range(10))
        assert train.classes[0] == "peacock" and train.mean == STATISTICS["imagenet"][0]
    (tmp_path / "ids.txt").write_text("\n".join(reversed(ids)))
    with pytest.raises(DataError, match="must hold the 1000 WordNet ids"):
        load_imagenet_subset(tmp_path / "ids", "squawk", index_file=tmp_path / "ids.txt")
    with pytest.raises(UsageError, match="must be one of fruit, meow"):
        load_imagenet_subset(tmp_path, "bark")


def test_patches_of_training_and_test_share_no_pixel(tmp_path):
    """Each pixel's colour is its place in the photograph."""
    y, x = np.mgrid[0:96, 0:130]
    for index, name in enumerate(("first", "second")):
        Image.fromarray(np.stack([y, x, np.full_like(x, index)], -1).astype(np.uint8)).save(tmp_path / f"{name}.png")
    train, test = load_patches(tmp_path, size=(16, 16), patch=16, block=32, stride=8, test_part=0.25, seed=3)
    assert train.classes == ("first", "second")
    # 12 blocks of each, 3 of them for tests, 9 patches in each block.
    assert train.counts == [81, 81] and test.counts == [27, 27]
    pixels = [
        {(int(label), *row) for image, label in zip(part.images, part.labels, strict=True)
         for row in image.flatten(1).T.tolist()} for part in (train, test)
    ]  # fmt: skip
    assert not pixels[0] & pixels[1]
    assert {pixel[0] == pixel[3] for part in pixels for pixel in part} == {True}
    few, _ = load_patches(tmp_path, size=(8, 8), patch=16, classes=2, train_per_class=5)
    assert few.images.shape == (10, 3, 8, 8)


def test_photographs_that_give_no_patches_are_named(tmp_path):
    for name, size in (("small", (40, 40)), ("large", (100, 100)), ("other", (100, 100))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError) as caught:
        load_patches(tmp_path, patch=16)
    assert "small.png: holds fewer than two blocks of 32x32" in str(caught.value) and "broken.png" in str(caught.value)
    (tmp_path / "broken.png").unlink()
    assert set(load_patches(tmp_path, patch=16, classes=2)[0].classes) == {"large", "other"}
    with pytest.raises(DataError, match="2 photographs hold two blocks of 32x32 pixels; 3 are wanted"):
        load_patches(tmp_path, patch=16, classes=3)
    with pytest.raises(UsageError) as refused:
        load_patches(tmp_path, size=(40, 40), patch=32, block=16, stride=0, test_part=1, channels=2)
    assert len(refused.value.problems) == 5
