"""Small models of both papers in folders, simulated photographs and fakes as files, and bad files."""

from __future__ import annotations

import json
import struct
import zlib
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from thurl.cli import app
from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.camera import write_fakes, write_photographs
from thurl.forensics.exif.config import BladesConfig, ExifEncoderConfig, ExifOrdinalConfig
from thurl.forensics.exif.encoder import ExifEncoder
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.processing import FaceImageProcessor


ENCODER = {
    "depths": (1, 1),
    "hidden_sizes": (8, 16),
    "block": "basic",
    "stem_channels": 8,
    "stem_kernel": 3,
    "stem_stride": 1,
    "stem_pool": False,
    "feature_size": 6,
}
TEXT = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 8,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "vocab_size": 49408,
}
CPU = ("--device", "cpu")


def run(*arguments, code=0):
    """`thurl exif ARGUMENTS` in this process."""
    result = CliRunner().invoke(app, ["exif", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="session")
def thurl():
    return run


@pytest.fixture(scope="session")
def blades_config():
    return BladesConfig(encoder_config=ENCODER, text_config=TEXT)


@pytest.fixture(scope="session")
def models(tmp_path_factory, blades_config):
    """Folders `blades`, `ordinal` and `encoder`, untrained."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    built = {
        "blades": BladesModel(blades_config),
        "ordinal": ExifOrdinalModel(ExifOrdinalConfig(encoder_config=ENCODER)),
        "encoder": ExifEncoder(ExifEncoderConfig(**ENCODER)),
    }
    for name, model in built.items():
        model.save_pretrained(root / name)
        FaceImageProcessor(size=24).save_pretrained(root / name)
    return SimpleNamespace(**{name: root / name for name in built})


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """Folders: `fit` (120), `calibrate` (110) and `test` (40) photographs, `fakes` with two generators (24 each)."""
    root = tmp_path_factory.mktemp("faces")
    start = 0
    for name, count in (("fit", 120), ("calibrate", 110), ("test", 40)):
        write_photographs(root / name, count, seed=5, start=start)
        start += count
    for kind in ("grid", "smooth"):
        write_fakes(root / "fakes" / kind, kind, 24, seed=6)
    return SimpleNamespace(
        fit=root / "fit", calibrate=root / "calibrate", test=root / "test", fakes=root / "fakes", root=root
    )


@pytest.fixture(scope="session")
def detector(models, faces, tmp_path_factory):
    """A one-class detector for `models.blades`, fitted and calibrated by the commands."""
    path = tmp_path_factory.mktemp("detector") / "oc.safetensors"
    run("fit", faces.fit, "--model", models.blades, "-o", path, "--components", 2, *CPU)
    run("calibrate", faces.calibrate, "--model", models.blades, "-d", path, "--fpr", 0.01, 0.05, *CPU)
    return path


@pytest.fixture
def bad_files(tmp_path):
    """Four files that are no usable pictures: empty, text, cut off, and a header that claims 4 billion pixels."""
    folder = tmp_path / "bad"
    (photograph,) = write_photographs(folder, 1, seed=8)
    (folder / "cut.jpg").write_bytes(photograph.read_bytes()[:500])
    photograph.unlink()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    header = struct.pack(">LLBBBBB", 65500, 65500, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    (folder / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">L", len(header)) + chunk + struct.pack(">L", zlib.crc32(chunk))
    )
    return folder


def lines(text):
    return [json.loads(line) for line in text.splitlines()]
