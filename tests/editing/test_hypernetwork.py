"""The hypernetwork: official numbers, its file, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from thurl.editing.hypernetwork import TRAINING_CLAMP, MaskHypernetwork, MaskHypernetworkConfig
from thurl.editing.official_hypernetwork import convert_hypernetwork, hypernetwork_from_official
from thurl.errors import DataError, MissingRequirementError, UsageError


GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {"hidden_size": 16, "neurons": 24, "rows": 4, "blocks": 1, "heads": 2}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vitedit_tiny_hypernet_weights.safetensors")


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vitedit_tiny_io.safetensors")


def test_official_soft_masks(state: dict[str, torch.Tensor], io: dict[str, torch.Tensor]) -> None:
    model = hypernetwork_from_official(state, heads=2)
    with torch.no_grad():
        torch.testing.assert_close(model(io["tokens"][:, :1]), io["soft_masks"], atol=1e-5, rtol=0)
        found = model(io["tokens"][:, 0], clamp=TRAINING_CLAMP)
    torch.testing.assert_close(found, io["soft_masks_train_clamp"], atol=1e-5, rtol=0)


def test_official_file_becomes_a_folder(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "hyper.pth")  # noqa: TID251 - the official format
    model = convert_hypernetwork(tmp_path / "hyper.pth", tmp_path / "out", heads=2, base_fingerprint="ab" * 32)
    again = MaskHypernetwork.from_pretrained(tmp_path / "out", base_fingerprint="ab" * 32)
    assert again.config.rows == 6 and again.config.neurons == 40 and again.config.blocks == 2
    token = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(token), again(token))
    with pytest.raises(UsageError, match="holds a model already"):
        convert_hypernetwork(tmp_path / "hyper.pth", tmp_path / "out", heads=2)


def test_official_state_is_taken_strictly(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    lacking = {name: value for name, value in state.items() if name != "layer.1.attn.key.bias"}
    with pytest.raises(DataError, match=r"blocks\.1\.attention\.key\.bias is missing"):
        hypernetwork_from_official(lacking, heads=2)
    with pytest.raises(DataError, match="unknown: extra"):
        hypernetwork_from_official({**state, "extra": torch.zeros(1)}, heads=2)
    with pytest.raises(DataError, match="learn_masks is missing"):
        hypernetwork_from_official({name: value for name, value in state.items() if name != "learn_masks"}, heads=2)
    with pytest.raises(DataError, match=r"no place for heads\.6"):
        hypernetwork_from_official({**state, "out_layer.6.out.bias": torch.zeros(40)}, heads=2)
    with pytest.raises(DataError, match=r"heads\.2\.weight needs"):
        hypernetwork_from_official({**state, "out_layer.2.out.weight": torch.zeros(40, 23)}, heads=2)
    with pytest.raises(DataError, match="not finite"):
        hypernetwork_from_official({**state, "cls_token": torch.full((1, 6, 24), torch.nan)}, heads=2)
    with pytest.raises(UsageError, match="does not divide"):
        hypernetwork_from_official(state, heads=5)
    with pytest.raises(MissingRequirementError):
        convert_hypernetwork(tmp_path / "none.pth", tmp_path / "out")
    torch.save([1, 2], tmp_path / "list.pth")  # noqa: TID251 - the official format
    with pytest.raises(DataError, match="holds a list"):
        convert_hypernetwork(tmp_path / "list.pth", tmp_path / "out")


def test_another_base_model_is_refused_unless_forced(tmp_path: Path) -> None:
    units = ["a", "b", "c", "d"]
    MaskHypernetwork(MaskHypernetworkConfig(**TINY, base_fingerprint="a" * 64, units=units)).save_pretrained(tmp_path)
    MaskHypernetwork.from_pretrained(tmp_path, base_fingerprint="a" * 64, units=units)
    with pytest.raises(UsageError, match="fingerprint aaaaaaaaaaaa"):
        MaskHypernetwork.from_pretrained(tmp_path, base_fingerprint="b" * 64)
    MaskHypernetwork.from_pretrained(tmp_path, base_fingerprint="b" * 64, force=True)
    with pytest.raises(UsageError, match="rows are a, b, c, d"):
        MaskHypernetwork.from_pretrained(tmp_path, base_fingerprint="a" * 64, units=units[::-1], force=True)
    unknown = MaskHypernetwork(MaskHypernetworkConfig(**TINY))
    with pytest.raises(UsageError, match="says no base model"):
        unknown.require_base("a" * 64)


def test_missing_weights_are_never_random(tmp_path: Path) -> None:
    MaskHypernetwork(MaskHypernetworkConfig(**TINY)).save_pretrained(tmp_path)
    values = load_file(tmp_path / "model.safetensors")
    del values["heads.3.weight"]
    save_file(values, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"heads\.3\.weight"):
        MaskHypernetwork.from_pretrained(tmp_path)


def test_start_is_drawn_from_the_seed_and_queries_are_zero() -> None:
    torch.manual_seed(3)
    first = MaskHypernetwork(MaskHypernetworkConfig(**TINY))
    torch.manual_seed(3)
    second = MaskHypernetwork(MaskHypernetworkConfig(**TINY))
    assert not first.query_tokens.any()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.heads[0].weight.std() > 0.1 and first.heads[0].weight.abs().max() <= 16**-0.5


def test_inputs_of_another_shape_are_refused() -> None:
    model = MaskHypernetwork(MaskHypernetworkConfig(**TINY))
    with pytest.raises(UsageError, match="class_token"):
        model(torch.zeros(2, 17))
    with pytest.raises(UsageError, match="class_token"):
        model(torch.zeros(2, 2, 16))
    with pytest.raises(UsageError, match="does not take"):
        model(torch.zeros(2, 16), torch.zeros(2, 4, 24))


def test_gradient_tokens_change_the_mask_and_ignore_the_scale() -> None:
    torch.manual_seed(0)
    model = MaskHypernetwork(MaskHypernetworkConfig(**TINY, gradient_tokens=True))
    token, norms = torch.randn(2, 16), torch.rand(2, 4, 24)
    with pytest.raises(UsageError, match="needs"):
        model(token)
    with pytest.raises(UsageError, match="needed is"):
        model(token, norms[:, :3])
    found = model(token, norms)
    torch.testing.assert_close(model(token, norms * 1000), found)
    assert not torch.allclose(model(token, norms.flip(-1)), found)
    assert model(token, torch.zeros(2, 4, 24)).isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"heads": 3}, "does not divide"), ({"rows": 0}, "rows is 0"), ({"units": ["one"]}, "1 parameters for 4 rows")],
)
def test_impossible_sizes_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MaskHypernetworkConfig(**{**TINY, **wrong})
