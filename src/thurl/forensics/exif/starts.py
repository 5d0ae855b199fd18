"""Where a run gets its first weights: ImageNet's or another encoder's for the pictures, CLIP's for the prompts.

Both papers start the encoder from "EXIF as Language" (CVPR 2023), whose checkpoint `thurl.forensics.exif.official`
turns into a folder. CLIP RN50's text tower is read from a safetensors file with CLIP's own names, such as
`open_clip_model.safetensors` of `timm/resnet50_clip.openai` on the Hub.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from thurl.errors import DataError, MissingRequirementError


if TYPE_CHECKING:
    import torch

    from thurl.forensics.exif.blades import BladesModel
    from thurl.forensics.exif.encoder import ExifEncoder

__all__ = ["IMAGENET_URL", "imagenet_file", "load_encoder", "load_imagenet", "load_text_tower"]

IMAGENET_URL = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
"""torchvision's `ResNet50_Weights.IMAGENET1K_V1`."""


def imagenet_file() -> Path:
    """Where torchvision keeps these weights once they have been downloaded. Needs no torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints" / IMAGENET_URL.rpartition("/")[2]


def load_imagenet(encoder: ExifEncoder, path: str | os.PathLike[str]) -> None:
    """Give an encoder torchvision's ResNet-50 weights, all but the last layer, which keeps its random start.

    Args:
        encoder: of the default size.
        path: torchvision's file, `.pth` or `.safetensors`.

    Raises:
        MissingRequirementError: no such file.
        DataError: not such a file, or an encoder of another size.
    """
    state = {name: tensor for name, tensor in _tensors(path).items() if not name.startswith("fc.")}
    _load(encoder, state, path, optional=("fc.",))


def load_encoder(encoder: ExifEncoder, folder: str | os.PathLike[str]) -> None:
    """Give an encoder the weights of another one, or of the visual tower of a whole model.

    Args:
        encoder: to be filled.
        folder: that conversion, or a run, wrote.

    Raises:
        MissingRequirementError: no such folder.
        DataError: an encoder of another size.
    """
    from thurl.forensics.exif.encoder import ExifEncoder

    if not (Path(folder) / "config.json").is_file():
        raise MissingRequirementError(f"{folder}: no folder of a model (config.json is not there)")
    _load(encoder, ExifEncoder.from_pretrained(folder).state_dict(), folder)


def load_text_tower(model: BladesModel, path: str | os.PathLike[str]) -> None:
    """Give a joint embedding CLIP's text tower and temperature; `text_fc`, which CLIP lacks, keeps its random start.

    Args:
        model: with a text tower of the size of the file's; the default is CLIP RN50's.
        path: safetensors file with CLIP's names (`token_embedding.weight`, `transformer.resblocks.0...`).

    Raises:
        MissingRequirementError: no such file.
        DataError: tensors that are missing or have another shape; all of them.
    """
    from thurl.forensics.exif.official import _collected, _names

    state = {f"model.{name}": tensor for name, tensor in _tensors(path).items() if not name.startswith("visual.")}
    names = {
        official: ours
        for official, ours in _names(model, "model.").items()
        if ".visual." not in official and ".text_fc." not in official
    }
    values, missing, problems = _collected(model.state_dict(), names, state)
    problems = [f"{name.removeprefix('model.')} is missing" for name in missing] + problems
    if problems:
        raise DataError(f"{path} is no text tower of this model: {_some(problems)}")
    model.load_state_dict(values, strict=False)


def _tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from thurl.training.released_files import read_model_tensors

    if not str(path).endswith(".safetensors"):
        return read_model_tensors(path)
    if not os.path.isfile(path):
        raise MissingRequirementError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error}); download it again") from None


def _load(
    encoder: ExifEncoder,
    state: Mapping[str, torch.Tensor],
    where: str | os.PathLike[str],
    optional: tuple[str, ...] = ("\0",),
) -> None:
    own = encoder.state_dict()
    # Counters of batches change nothing, and older files lack them.
    needed = {name for name in own if not name.startswith(optional) and not name.endswith("num_batches_tracked")}
    problems = [f"{name} is missing" for name in sorted(needed - set(state))]
    problems += [f"{name} has no place" for name in sorted(set(state) - set(own))]
    problems += [
        f"{name} has the shape {tuple(tensor.shape)}, the encoder needs {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        raise DataError(f"{where} does not fit this encoder: {_some(problems)}")
    encoder.load_state_dict(state, strict=False)


def _some(problems: list[str]) -> str:
    more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    return "; ".join(problems[:4]) + more
