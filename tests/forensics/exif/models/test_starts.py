"""First weights from files: CLIP's text tower, ImageNet's and other encoders, and what does not fit."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights

from thurl.errors import DataError, MissingRequirementError
from thurl.forensics.exif.official import to_official
from thurl.forensics.exif.starts import IMAGENET_URL, imagenet_file, load_encoder, load_imagenet, load_text_tower


@pytest.fixture
def clip_file(tiny_blades, tmp_path):
    """A file as open_clip writes it: CLIP's own names, with a visual tower that is not wanted."""
    model = tiny_blades(seed=3)
    state = {
        name.removeprefix("model."): tensor
        for name, tensor in to_official(model).items()
        if ".visual." not in name and ".text_fc." not in name
    }
    state["visual.conv1.weight"] = torch.zeros(3)

    def write(**changes):
        whole = {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}
        save_file({name: tensor.contiguous() for name, tensor in whole.items()}, tmp_path / "clip.safetensors")
        return tmp_path / "clip.safetensors"

    return model, write


def test_the_text_tower_of_clip(tiny_blades, clip_file):
    theirs, write = clip_file
    model = tiny_blades(seed=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_text_tower(model, write())
    for name, tensor in model.state_dict().items():
        taken = name.startswith("text.") or name == "logit_scale"
        assert torch.equal(tensor, theirs.state_dict()[name] if taken else before[name]), name


def test_a_text_tower_that_does_not_fit_changes_nothing(tiny_blades, clip_file, tmp_path):
    _, write = clip_file
    model = tiny_blades(seed=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = write(**{"ln_final.bias": None, "text_projection": torch.zeros(2, 2)})
    with pytest.raises(DataError) as error:
        load_text_tower(model, path)
    assert "ln_final.bias is missing" in str(error.value) and "text_projection has the shape (2, 2)" in str(
        error.value
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(MissingRequirementError):
        load_text_tower(model, tmp_path / "nowhere.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        load_text_tower(model, tmp_path / "broken.safetensors")


def test_encoders_of_another_size_are_refused(tiny_ordinal, tmp_path):
    small = tiny_ordinal(seed=0)
    small.save_pretrained(tmp_path / "small")
    other = tiny_ordinal(seed=1).visual
    load_encoder(other, tmp_path / "small")
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in small.visual.state_dict().items())
    save_file(dict(small.visual.state_dict()), tmp_path / "weights.safetensors")
    torch.save(dict(small.visual.state_dict()), tmp_path / "weights.pth")  # noqa: TID251 - as torchvision's are
    for ending in ("safetensors", "pth"):
        again = tiny_ordinal(seed=2).visual
        last = again.fc.weight.clone()
        load_imagenet(again, tmp_path / f"weights.{ending}")
        assert torch.equal(again.conv1.weight, small.visual.conv1.weight) and torch.equal(again.fc.weight, last)
    from thurl.forensics.exif.encoder import ExifEncoder
    from thurl.forensics.exif.tiny import tiny_encoder_config

    with pytest.raises(DataError, match="is missing|has no place"):
        load_imagenet(ExifEncoder(tiny_encoder_config()), tmp_path / "weights.safetensors")


def test_torchvision_still_calls_its_file_so(monkeypatch, tmp_path):
    assert ResNet50_Weights.IMAGENET1K_V1.url == IMAGENET_URL
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert str(imagenet_file()).startswith(torch.hub.get_dir())
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert str(imagenet_file()).startswith(torch.hub.get_dir())
