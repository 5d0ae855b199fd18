"""The visual tower: the same network as torchvision's, official names, half precision, features of length 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50

from thurl.forensics.exif.config import ExifEncoderConfig
from thurl.forensics.exif.encoder import ExifEncoder, encoder_fingerprint
from thurl.forensics.joint_embedding import unit_features


OFFICIAL = json.loads(
    (Path(__file__).resolve().parents[3] / "golden" / "exif_checkpoint_keys.json").read_text("utf-8")
)
SMALL = {"depths": (1, 2), "hidden_sizes": (8, 16), "stem_channels": 4, "feature_size": 12}


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return ExifEncoder(ExifEncoderConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize("layout", [name for name in OFFICIAL if "blades_bc" not in name])  # lists its head only
def test_names_and_shapes_are_those_of_the_released_visual_tower(layout):
    prefix = "model.visual."
    released = {key.removeprefix(prefix): shape for key, shape in OFFICIAL[layout].items() if key.startswith(prefix)}
    with torch.device("meta"):
        encoder = ExifEncoder(ExifEncoderConfig())
    assert {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()} == released
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 25_081_664


@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_network_of_torchvision(training):
    torch.manual_seed(1)
    reference = resnet50()
    reference.fc = torch.nn.Linear(2048, 768)
    encoder = ExifEncoder(ExifEncoderConfig())
    encoder.load_state_dict(reference.state_dict())
    pictures = torch.randn(2, 3, 64, 64)
    encoder.train(training)
    reference.train(training)
    with torch.no_grad():
        assert torch.equal(encoder(pictures).features, reference(pictures))


def test_the_start_is_torchvisions():
    torch.manual_seed(0)
    encoder = ExifEncoder(ExifEncoderConfig(depths=(1, 1), hidden_sizes=(64, 128), feature_size=256))
    conv = encoder.layer2[0].conv2.weight
    expected = (2 / (conv.shape[0] * 9)) ** 0.5  # fan out, gain sqrt(2)
    assert abs(conv.std().item() / expected - 1) < 0.05
    assert encoder.fc.weight.abs().max() <= 128**-0.5 and encoder.fc.weight.abs().max() > 0.95 * 128**-0.5
    assert torch.equal(encoder.bn1.running_var, torch.ones(64))


@pytest.mark.parametrize(
    "changes",
    [{}, {"block": "basic"}, {"stem_kernel": 3, "stem_stride": 1, "stem_pool": False}],
    ids=["bottleneck", "basic", "small stem"],
)
def test_save_and_load_is_bit_equal(tmp_path, changes):
    encoder = small(**changes).train()
    encoder(torch.randn(4, 3, 20, 20))  # so that the statistics are no longer those of the start
    encoder.eval().save_pretrained(tmp_path)
    again = ExifEncoder.from_pretrained(tmp_path).eval()
    pictures = torch.randn(3, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(encoder(pictures).features, again(pictures).features)
    assert encoder_fingerprint(encoder) == encoder_fingerprint(again)


def test_a_small_stem_keeps_the_resolution():
    full, half = small(stem_kernel=3, stem_stride=1, stem_pool=False), small()
    sizes = {}
    for name, encoder in (("full", full), ("half", half)):
        encoder.layer1.register_forward_hook(lambda _, __, out, name=name: sizes.update({name: tuple(out.shape[2:])}))
        encoder(torch.randn(2, 3, 40, 40))
    assert sizes == {"full": (40, 40), "half": (10, 10)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_pictures_and_weights(dtype):
    encoder = small().eval()
    pictures = torch.randn(3, 3, 20, 20).to(dtype)
    with torch.no_grad():
        exact = encoder(pictures.float()).features
        assert torch.equal(encoder(pictures).features, exact)  # cast to the weights
        half = encoder.to(dtype)(pictures).features
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.05)


def test_fingerprint_sees_weights_and_statistics_and_nothing_else():
    encoder = small()
    before = encoder_fingerprint(encoder)
    assert len(before) == 64 and before == encoder_fingerprint(small())
    encoder.bn1.num_batches_tracked += 1
    assert encoder_fingerprint(encoder) == before
    encoder.bn1.running_mean[0] += 1e-6
    changed = encoder_fingerprint(encoder)
    assert changed != before
    assert encoder_fingerprint(encoder.to(torch.bfloat16)) != changed


def test_unit_features_of_a_zero_row_and_of_half_precision():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], requires_grad=True)
    unit = unit_features(rows)
    torch.testing.assert_close(unit[0], torch.tensor([0.6, 0.8]))
    assert torch.equal(unit[1], torch.zeros(2))
    unit.sum().backward()
    assert rows.grad.isfinite().all()
    assert unit_features(torch.ones(2, 300, dtype=torch.float16)).dtype == torch.float32
    assert unit_features(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_configurations_that_fit_nothing():
    for changes, match in (
        ({"depths": (1,)}, "one of each per stage"),
        ({"block": "dense"}, "none of bottleneck, basic"),
        ({"hidden_sizes": (8, 18)}, "multiples of 4"),
        ({"stem_kernel": 4}, "odd"),
    ):
        with pytest.raises(ValueError, match=match):
            ExifEncoderConfig(**{**SMALL, **changes})
