"""Frozen networks by path as losses of a restoration recipe: each reaches the pictures, and none is trained."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from thurl.errors import DataError, UsageError
from thurl.iqa.afine import AFineConfig, AFineModel
from thurl.iqa.face_restoration.adaface import AdaFaceConfig, AdaFaceModel, face_pixels
from thurl.iqa.face_restoration.alignment import align_face, fit_alignment
from thurl.iqa.face_restoration.landmarks import ffhq_points
from thurl.recipe.face_restoration import FeatureLossSection, RestorationLossesSection
from thurl.recipe.face_restoration_losses import _warp, load_critics
from thurl.recipe.face_restoration_run import build_model
from thurl.restoration.model import RestorationModel


VISION = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 64,
    "patch_size": 16, "projection_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Tiny networks of every kind, with random weights, in the layout that the recipe reads."""
    from torchvision import models
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("weights")
    save_file(models.get_model("squeezenet1_1").state_dict(), place / "squeezenet.safetensors")
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(place / "clip")
    AFineModel(AFineConfig(vision_config=VISION, projection_size=8)).save_pretrained(place / "afine")
    AdaFaceModel(AdaFaceConfig(depths=(1, 1, 1, 1), widths=(8, 8, 8, 8))).eval().save_pretrained(place / "adaface")
    return place


def section(weights, **terms):
    paths = {"identity": "adaface", "afine": "afine", "naturalness": "afine"}
    filled = {name: {"path": str(weights / paths[name]), "weight": 1.0} for name in terms.pop("named", ())}
    return RestorationLossesSection.model_validate({**filled, **terms})


def features(weights, kind):
    if kind == "torchvision":
        path, more = "squeezenet.safetensors", {"network": "squeezenet1_1", "layers": ["features.2", "features.7"]}
    else:
        path, more = kind, {"layers": ["1", "2"]} if kind == "clip" else {}
    return {"features": {"kind": kind, "path": str(weights / path), "weight": 1.0, **more}}


def pictures(side=64, seed=0):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["torchvision", "clip", "features of afine", "identity", "afine", "naturalness"])
def test_each_loss_reaches_the_pictures_and_trains_no_network(weights, name):
    kind = name.removeprefix("features of ")
    as_features = name in ("torchvision", "clip", "features of afine")
    losses = section(weights, **features(weights, kind)) if as_features else section(weights, named=[name])
    ((term, critic),) = load_critics(losses).items()
    assert losses.weights() == {"pixel": 1.0, term: 1.0}
    before = {key: value.clone() for key, value in critic.network.state_dict().items()}
    target = pictures()
    restored = pictures(seed=1).requires_grad_()
    value = critic(restored, target)
    value.backward()
    assert value.dim() == 0 and value.isfinite() and restored.grad.isfinite().all()
    assert bool((restored.grad.abs().sum((1, 2, 3)) > 0).all()), "every picture of the batch is judged"
    assert all(torch.equal(before[key], item) for key, item in critic.network.state_dict().items())
    assert all(parameter.grad is None for parameter in critic.network.parameters())
    if as_features or name == "identity":
        assert critic(target, target).item() == pytest.approx(0, abs=1e-5)
        # Downhill is closer: a step against the gradient lowers the loss.
        step = 1e-2 * restored.grad / restored.grad.norm()
        assert critic(restored.detach() - step, target) < value
    else:
        assert 0 <= value.item() <= 1


def test_the_model_of_a_recipe_has_the_terms_that_have_a_weight(weights, tmp_path):
    from thurl.recipe.shipped import find_recipe
    from thurl.recipe.validate import load_recipe

    loaded = load_recipe(
        find_recipe("tiny/face_restoration"),
        [f"losses.afine.path={weights / 'afine'}", "losses.afine.weight=0.5", f"losses.naturalness.path={tmp_path}"],
    ).recipe
    model = build_model(loaded)
    assert set(model(pictures(48), pictures(48, 1)).terms) == {"pixel", "afine"}
    model.save_pretrained(tmp_path / "model")
    assert not RestorationModel.from_pretrained(tmp_path / "model").critics


def test_the_differentiable_crop_is_the_evaluators_crop():
    faces = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 255
    smooth = torch.nn.functional.interpolate(faces, size=(512, 512), mode="bicubic").clamp(0, 255).round()
    matrix = torch.from_numpy(fit_alignment(ffhq_points(512, 512))).float()
    ours = _warp(smooth, matrix, 112)[0].permute(1, 2, 0).numpy()
    picture = smooth[0].permute(1, 2, 0).numpy().astype(np.uint8)
    theirs = align_face(picture, np.asarray(ffhq_points(512, 512)))
    difference = np.abs(ours - theirs)
    assert (difference <= 1).mean() >= 0.995, "OpenCV rounds positions to 1/32 pixel"
    network_input = 2 * (torch.from_numpy(ours) / 255).permute(2, 0, 1)[None].flip(1) - 1
    assert (network_input - face_pixels(theirs[None])).abs().mean() < 0.01


def test_weights_and_layers_that_do_not_fit_are_named(weights, tmp_path):
    good = features(weights, "torchvision")["features"]
    for changes, kind, words in (
        ({"network": "squeezenet2"}, UsageError, "no model of torchvision"),
        ({"layers": ["features.99"]}, UsageError, "features.99"),
        ({"network": "resnet18"}, DataError, "not the weights of torchvision's resnet18"),
    ):
        with pytest.raises(kind, match=words):
            load_critics(RestorationLossesSection(features=FeatureLossSection(**{**good, **changes})))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a safetensors file"):
        load_critics(
            RestorationLossesSection(
                features=FeatureLossSection(**{**good, "path": str(tmp_path / "bad.safetensors")})
            )
        )
    with pytest.raises(UsageError, match="blocks 1 to 2"):
        load_critics(section(weights, **{"features": {**features(weights, "clip")["features"], "layers": ["3"]}}))
