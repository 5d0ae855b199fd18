"""Networks that the losses of a restoration recipe name, as critics of the model.

Here, because methods do not import each other: the restoration model knows nothing of A-FINE or of the evaluator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from thurl.errors import DataError, UsageError
from thurl.messages import nearest
from thurl.recipe.face_restoration import FeatureLossSection, RestorationLossesSection
from thurl.restoration.critics import FrozenCritic, embedding_critic, feature_critic, score_critic


__all__ = ["afine_critic", "clip_features", "identity_critic", "load_critics", "torchvision_features"]

logger = logging.getLogger(__name__)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def load_critics(losses: RestorationLossesSection) -> dict[str, FrozenCritic]:
    """The critics of all terms with a weight but `pixel`, loaded from the paths of the recipe.

    Raises:
        DataError: weights that do not fit the network.
        UsageError: layers or networks that do not exist.
    """
    found: dict[str, FrozenCritic] = {}
    weights = losses.weights()
    if "features" in weights:
        found["features"] = _feature_critic(losses.features)
    if "identity" in weights:
        found["identity"] = identity_critic(str(losses.identity.path))
    for name in ("afine", "naturalness"):
        if name in weights:
            found[name] = afine_critic(str(getattr(losses, name).path), reference=name == "afine")
    for name, critic in found.items():
        count = sum(parameter.numel() for parameter in critic.network.parameters())
        logger.info("Loss %s, weight %g: a frozen network of %d parameters", name, weights[name], count)
    return found


def _feature_critic(section: FeatureLossSection) -> FrozenCritic:
    path = str(section.path)
    if section.kind == "torchvision":
        return feature_critic(*torchvision_features(section.network, path, section.layers))
    if section.kind == "clip":
        return feature_critic(*clip_features(path, [int(name) for name in section.layers]))
    model = _afine(path)
    return feature_critic(model, lambda pictures: [x.transpose(1, 2) for x in model.features(pictures).levels])


def torchvision_features(
    network: str, path: str, layers: Sequence[str]
) -> tuple[nn.Module, Callable[[torch.Tensor], list[torch.Tensor]]]:
    """A torchvision classifier and a function from pictures in [0, 1] to the outputs of some of its layers.

    Args:
        network: name of the model, such as `vgg19`.
        path: `.safetensors`, or a torch file as torchvision publishes them, read without executing anything in it.
        layers: names of layers, (B, C, ...) each.
    """
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    names = models.list_models(module=models)
    if network not in names:
        raise UsageError(f"losses.features.network is {network!r}, no model of torchvision{nearest(network, names)}")
    model = models.get_model(network, weights=None)
    try:
        model.load_state_dict(_read_tensors(path))
    except RuntimeError as error:
        raise DataError(f"{path}: not the weights of torchvision's {network}: {_short(error)}") from None
    try:
        extractor = create_feature_extractor(model.eval(), return_nodes=list(layers))
    except ValueError as error:
        raise UsageError(f"losses.features.layers is {list(layers)}: {_short(error)}") from None

    # In place, a ReLU would write over the features of the layer before it.
    for module in extractor.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return extractor, lambda pictures: list(extractor(_normalised(pictures, _IMAGENET)).values())


def clip_features(path: str, blocks: Sequence[int]) -> tuple[nn.Module, Callable[[torch.Tensor], list[torch.Tensor]]]:
    """The image tower of a CLIP folder and a function from pictures in [0, 1] to the tokens after some blocks.

    Pictures are enlarged to a multiple of the patch; the class token is left out.

    Args:
        path: folder of transformers.
        blocks: numbers from 1.
    """
    from transformers import CLIPVisionModel

    model = CLIPVisionModel.from_pretrained(path, local_files_only=True)
    depth, patch = model.config.num_hidden_layers, model.config.patch_size
    if not blocks or not all(1 <= block <= depth for block in blocks):
        raise UsageError(f"losses.features.layers is {list(blocks)}; this CLIP has blocks 1 to {depth}")

    def features(pictures: torch.Tensor) -> list[torch.Tensor]:
        size = [-(-side // patch) * patch for side in pictures.shape[-2:]]
        if list(pictures.shape[-2:]) != size:
            pictures = functional.interpolate(pictures, size=size, mode="bicubic")
        outputs = model(
            pixel_values=_normalised(pictures, _CLIP), output_hidden_states=True, interpolate_pos_encoding=True
        )
        return [outputs.hidden_states[block][:, 1:].transpose(1, 2) for block in blocks]

    return model, features


def identity_critic(path: str) -> FrozenCritic:
    """1 - cosine of AdaFace embeddings of FFHQ-aligned faces, cut out at the fixed places of eyes, nose and mouth.

    Args:
        path: folder with an AdaFace model of `thurl.iqa.face_restoration`.
    """
    from thurl.iqa.face_restoration.adaface import AdaFaceModel
    from thurl.iqa.face_restoration.alignment import CROP, fit_alignment
    from thurl.iqa.face_restoration.landmarks import ffhq_points

    model = AdaFaceModel.from_pretrained(path, local_files_only=True)

    def embed(pictures: torch.Tensor) -> torch.Tensor:
        height, width = pictures.shape[-2:]
        matrix = torch.from_numpy(fit_alignment(ffhq_points(width, height))).to(pictures)
        faces = _warp(pictures, matrix, CROP)
        if model.config.image_size != CROP:
            side = model.config.image_size
            faces = functional.interpolate(faces, size=(side, side), mode="bilinear", antialias=True)
        return model(2 * faces.flip(1) - 1).embedding  # blue, green, red in [-1, 1]

    return embedding_critic(model, embed)


def afine_critic(path: str, *, reference: bool) -> FrozenCritic:
    """A-FINE as a loss in [0, 1]: the scaled score against the target, or naturalness without a reference.

    Args:
        path: folder with a model of `thurl.iqa.afine`.
        reference: compare with the target.
    """
    model = _afine(path)
    if reference:
        return score_critic(model, lambda x, y: model(ref=y, dis=x).afine_scaled / 100, reference=True)
    return score_critic(model, lambda x: (model.naturalness(x) + 2) / 4, reference=False)


def _afine(path: str) -> Any:
    from thurl.iqa.afine.model import AFineModel

    return AFineModel.from_pretrained(path, local_files_only=True)


def _warp(pictures: torch.Tensor, matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear warp with a black border, differentiable: the torch form of `warp_affine` of the evaluator.

    Args:
        pictures: (B, C, H, W).
        matrix: (2, 3), takes pixel positions of the picture to those of the result.
        size: side of the result.
    """
    height, width = pictures.shape[-2:]
    inverse = torch.linalg.inv(matrix[:, :2])
    places = torch.arange(size, device=pictures.device, dtype=pictures.dtype)
    y, x = torch.meshgrid(places, places, indexing="ij")
    found = torch.stack([x - matrix[0, 2], y - matrix[1, 2]], dim=-1) @ inverse.T
    sides = torch.tensor([width, height], device=pictures.device, dtype=pictures.dtype)
    grid = (2 * found + 1) / sides - 1  # pixel centres, as align_corners=False counts
    return functional.grid_sample(pictures, grid.expand(len(pictures), -1, -1, -1), align_corners=False)


def _normalised(pictures: torch.Tensor, statistics: tuple[Sequence[float], Sequence[float]]) -> torch.Tensor:
    mean, std = (torch.tensor(values, device=pictures.device)[:, None, None] for values in statistics)
    return (pictures - mean) / std


def _read_tensors(path: str) -> dict[str, torch.Tensor]:
    if path.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: not a safetensors file ({_short(error)})") from None
    from thurl.training.released_files import read_checkpoint

    content = read_checkpoint(path)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise DataError(f"{path}: holds something else than named tensors; give the weights of a torchvision model")
    return dict(content)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
