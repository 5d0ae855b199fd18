from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from thurl.cli import app
from thurl.cli.distill import _MAX_BYTES
from thurl.distillation import ddr, encoding
from thurl.distillation.coded import CodedDataset, CodedGroup, CodedSlice, group_shapes
from thurl.distillation.ddr_limits import MAX_BYTES
from thurl.distillation.encoding import EncodedPictures, EncodingConfig, _next_weight, encode_pictures, fit_pictures
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.picture_folders import folder_names, read_classes
from thurl.distillation.warm_up import WarmUpConfig
from thurl.errors import DataError, UsageError


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def ramps(count, seed):
    """Smooth pictures: random colour ramps, which a codec can learn."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:8, 0:8] / 7
    found = []
    for _ in range(count):
        a, b, c = rng.random((3, 3))
        found.append(np.clip(a + (b - 0.5) * y[..., None] + (c - 0.5) * x[..., None], 0, 1) * 255)
    return np.rint(found).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(("cats", "dogs")):
        place = tmp_path / "pictures" / name
        place.mkdir(parents=True)
        for i, picture in enumerate(ramps(4, label)):
            Image.fromarray(picture).save(place / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def file(tmp_path):
    config, rng = CodecConfig(9, 12, 3, context=8, depth=2, widths=(5,)), np.random.default_rng(1)
    latents = tuple(rng.integers(-2, 3, (3, *size)).astype(np.int32) for size in config.level_sizes)
    nets = {
        name: CodedGroup(6, tuple(rng.integers(-9, 10, shape).astype(np.int32) for shape in shapes))
        for name, shapes in group_shapes(config).items()
    }
    part = CodedSlice(config, np.array([1, 0, 1], np.int32), latents, nets)
    ddr.write(CodedDataset((part,), ("../a", "b"), (0.5,) * 3, (0.2,) * 3, {"lr": 0.01}), tmp_path / "x.ddr")
    return tmp_path / "x.ddr"


def test_decode_writes_all_pictures_and_nothing_outside(file, tmp_path):
    done = run("distill", "decode", file, "-o", tmp_path / "deep" / "out", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["classes"] == {"../a": "a", "b": "b"}
    found = {str(p.relative_to(tmp_path / "deep")) for p in (tmp_path / "deep").rglob("*.png")}
    assert found == {"out/a/0001.png", "out/b/0001.png", "out/b/0002.png"}
    images = ddr.inspect(file).images()
    for name, image in (("b/0001", images[0]), ("a/0001", images[1]), ("b/0002", images[2])):
        with Image.open(tmp_path / "deep" / "out" / f"{name}.png") as picture:
            assert (np.asarray(picture).transpose(2, 0, 1) == image).all()
    again = run("distill", "decode", file, "-o", tmp_path / "deep" / "out")
    assert again.exit_code == 2 and "not empty" in again.output
    assert run("distill", "decode", file, "-o", tmp_path / "deep" / "out", "--overwrite").exit_code == 0
    assert run("distill", "decode", file, "-o", file).exit_code == 2


def test_names_of_folders_are_safe_and_differ():
    names = ("../../etc", "a/b", "A_b", "", ".", "con:tent", "a_b", "x" * 300, "ähre 1")
    found = folder_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    for name in found:
        assert 0 < len(name) < 120 and not set(name) & set('/\\:*?"<>|') and not name.startswith(".")
    assert folder_names(("tench", "english_springer")) == ["tench", "english_springer"]


def test_info_tells_where_the_bits_are(file):
    row = json.loads(run("distill", "info", file, "--json").stdout)
    assert row["total_bits"] == 8 * file.stat().st_size
    assert row["pictures"] == 3 and row["training"] == {"lr": 0.01} and row["classes"] == ["../a", "b"]
    assert row["times_smaller_than"]["8 bits"] == pytest.approx(3 * 3 * 9 * 12 * 8 / row["total_bits"])
    # 9 x 12, 5 x 6, 3 x 3 and 2 x 2 latents; networks 8-8-8-2 and 4-5-3, two of 27 x 3 weights.
    work = (108 + 30 + 9 + 4) * (64 + 64 + 16) + 16 * (3 * 108 + 2 * 30 + 9) + 108 * (20 + 15 + 2 * 81)
    assert row["multiplications_per_picture"] == work
    text = run("distill", "info", file).output
    for part in (
        "latents",
        "nets",
        "labels",
        "header",
        "all",
        "bits per class",
        "3 of 12x9, 3 channels",
        "2: ../a, b",
        "1, for 3 to 3 pictures each; context 8, depth 2, widths [5]",
        'training: {"lr": 0.01}',
        "soft labels: no",
    ):
        assert part in text


def test_verify(file):
    good = run("distill", "verify", file)
    assert good.exit_code == 0 and "3 pictures as they were written" in good.output
    assert json.loads(run("distill", "verify", file, "--json").stdout)["ok"] is True
    data = bytearray(file.read_bytes())
    data[-60] ^= 4
    file.write_bytes(data)
    for arguments in ((), ("--json",)):
        bad = run("distill", "verify", file, *arguments)
        assert bad.exit_code == 1 and "the latents of slice 0" in bad.output and "Traceback" not in bad.output
    assert json.loads(bad.stdout.splitlines()[0])["ok"] is False
    assert run("distill", "info", file).exit_code == 1
    assert run("distill", "verify", file.parent / "none.ddr").exit_code == 1
    assert _MAX_BYTES == MAX_BYTES
    small = run("distill", "verify", file, "--max-bytes", 400)
    assert small.exit_code == 1 and "at most 400" in small.output


def test_encode_makes_a_file_of_a_folder(folder, tmp_path):
    out = tmp_path / "new.ddr"
    options = ("--iterations", 30, "--shared", "--rate-weight", 0.001)
    done = run("distill", "encode", folder, "-o", out, *options, "--json")
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["total_bits"] == 8 * out.stat().st_size and row["pictures"] == 8
    found = ddr.inspect(out)
    assert found.dataset.classes == ("cats", "dogs") and found.dataset.labels.tolist() == [0] * 4 + [1] * 4
    real = np.concatenate([ramps(4, 0), ramps(4, 1)]).transpose(0, 3, 1, 2).astype(float)
    # A constant picture, the mean of all, would have the error of their variance.
    error = np.square(found.images() - real).mean()
    assert error < 0.5 * real.var(axis=(0, 2, 3)).mean()
    assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-6)
    again = run("distill", "encode", folder, "-o", out, *options)
    assert again.exit_code == 2 and "--overwrite" in again.output


def test_encode_names_what_is_wrong(folder, tmp_path):
    for arguments, code, message in (
        ((tmp_path / "none", "-o", tmp_path / "x.ddr"), 1, "give a folder"),
        ((folder, "-o", tmp_path / "x.ddr", "--per-class", 9), 1, "cats has 4, dogs has 4"),
        ((folder, "-o", tmp_path / "x.ddr", "--decoder", "v9"), 2, "decoder: 'v9' must be one of"),
        ((folder, "-o", tmp_path / "x.ddr", "--context", 9), 2, "context: 9 must be one of"),
        ((folder, "-o", tmp_path / "x.ddr", "--rate-weight", -1), 2, "rate_weight: -1.0 must be 0 or more"),
    ):
        done = run("distill", "encode", *arguments)
        assert done.exit_code == code and message in done.output, done.output
    assert not (tmp_path / "x.ddr").exists()


def test_classes_have_decoders_of_their_own_unless_shared():
    images = np.concatenate([ramps(3, 0), ramps(5, 1)]).transpose(0, 3, 1, 2)
    order = np.random.default_rng(0).permutation(8)
    labels = np.array([0] * 3 + [1] * 5)[order]
    fit = WarmUpConfig(iterations=1, candidates=1, keep=1)
    config = EncodingConfig(warm_up=fit, slice_size=3, max_mse=0.1)
    found = fit_pictures(images[order], labels, ("a", "b"), config)
    assert [part.labels.tolist() for part in found.dataset.slices] == [[0, 0, 0], [1, 1, 1], [1, 1]]
    assert sorted(found.order.tolist()) == list(range(8))
    assert (labels[found.order] == found.dataset.labels).all()
    shared = fit_pictures(images[order], labels, ("a", "b"), replace(config, shared=True, slice_size=8))
    assert [part.labels.tolist() for part in shared.dataset.slices] == [[0] * 3 + [1] * 5]
    pixels = images[order] / 255
    assert found.dataset.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=1e-4)
    assert found.dataset.std == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=1e-4)


def test_a_size_is_reached_from_below(monkeypatch):
    """With fits whose bits fall with their weight, as real ones do, but which take no time."""
    config, tried = CodecConfig(8, 8, 1, context=8, depth=1, widths=(2,)), []
    nets = {
        name: CodedGroup(4, tuple(np.zeros(shape, np.int32) for shape in shapes))
        for name, shapes in group_shapes(config).items()
    }

    # A scale of exp(0.5) for all latents.
    nets["arm_bias"].values[-1][1] = 72

    def fit(images, labels, classes, settings, **options):
        tried.append(settings.warm_up.rate_weight)
        spread = 2 * tried[-1] ** -0.25
        rng = np.random.default_rng(0)
        latents = tuple(np.rint(rng.laplace(0, spread, (40, *s))).astype(np.int32) for s in config.level_sizes)
        part = CodedSlice(config, np.repeat(np.arange(2, dtype=np.int32), 20), latents, nets)
        return EncodedPictures(CodedDataset((part,), classes, (0.5,), (0.2,)), np.arange(40))

    monkeypatch.setattr(encoding, "fit_pictures", fit)
    images, labels = np.zeros((40, 1, 8, 8), np.uint8), np.repeat([0, 1], 20)

    def bits(target, trials=6):
        tried.clear()
        wanted = EncodingConfig(bits_per_class=target, trials=trials)
        found = encode_pictures(images, labels, ("a", "b"), wanted)
        return ddr.rate(found.dataset).total_bits / 2

    free = ddr.rate(fit(images, labels, ("a", "b"), EncodingConfig()).dataset).total_bits / 2
    for target in (0.7 * free, 0.9 * free, 1.2 * free):
        assert 0.97 * target <= bits(target) <= target
        assert len(tried) <= 6
    # Already inside: one fit is enough.
    bits(1.01 * free)
    assert len(tried) == 1
    with pytest.raises(DataError, match="100 bits per class were not reached in 2 trials, the least were"):
        bits(100, trials=2)
    with pytest.raises(UsageError) as caught:
        EncodingConfig(decoder="v12", bits_per_class=0, trials=0)
    assert len(caught.value.problems) == 3


def test_the_next_weight_lies_between_its_neighbours():
    bits = {0.001: 8000.0, 0.1: 2000.0}
    found = _next_weight(list(bits.items()), 4000)
    assert 0.001 < found < 0.1
    assert _next_weight([(0.01, 8000.0)], 4000) > 0.01
    assert _next_weight([(0.01, 2000.0)], 4000) < 0.01


def test_arrays_are_read_like_folders(tmp_path):
    pictures = ramps(6, 0)
    np.savez(tmp_path / "a.npz", images=pictures, labels=np.array([1, 0, 1, 0, 1, 0]), classes=np.array(["x", "y"]))
    found = read_classes(tmp_path / "a.npz")
    assert found.classes == ("x", "y") and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (found.images[0].transpose(1, 2, 0) == pictures[1]).all()
    drawn = read_classes(tmp_path / "a.npz", per_class=2, size=4, channels=1, seed=3)
    assert drawn.images.shape == (4, 1, 4, 4) and drawn.labels.tolist() == [0, 0, 1, 1]
    grey = pictures[..., 0]
    np.savez(tmp_path / "g.npz", images=grey, labels=np.arange(6))
    assert (read_classes(tmp_path / "g.npz", channels=1).images[:, 0] == grey).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.float32), "labels": np.zeros(2, int)}, "uint8"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "one integer for each picture"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([-1, 0])}, "from 0 on"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 2])}, "1 has 0"),
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "`images` and `labels` are needed"),
        ({"images": np.array([{}, {}], object), "labels": np.zeros(2, int)}, "not a .npz file of plain arrays"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "a.npz")


def test_folders_that_cannot_be_used(folder, tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="not a .npz file"):
        read_classes(tmp_path / "text.npz")
    with pytest.raises(DataError, match="no folders in it"):
        read_classes(folder / "cats")
    Image.new("RGB", (5, 8)).save(folder / "dogs" / "odd.png")
    with pytest.raises(DataError, match="pictures of several sizes"):
        read_classes(folder)
    assert read_classes(folder, size=8).images.shape == (9, 3, 8, 8)
    (folder / "dogs" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="broken.png"):
        read_classes(folder, size=8)
