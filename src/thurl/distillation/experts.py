"""Expert trajectories: networks trained on the real pictures, with their weights after every epoch.

A folder holds `experts.json` (what was trained, and on what) and one safetensors file per expert, with the weights
after epoch e under `e.name`; two epochs are read without the others. A file is written when its expert is complete, in
one step; a run that was stopped goes on with the first expert that is missing, and gives the same files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from thurl.distillation.classifier_training import train_epoch
from thurl.distillation.dsa import DsaConfig
from thurl.distillation.networks import NetworkConfig, draw_network, matching_problems
from thurl.distillation.pictures import PictureSet
from thurl.errors import DataError, UsageError


__all__ = ["ExpertConfig", "Experts", "train_experts"]

_FILE = "experts.json"


@dataclass(frozen=True)
class ExpertConfig:
    """How experts are trained; the defaults are those of trajectory matching (100 experts, 50 epochs).

    Raises:
        UsageError: a value outside its range.
    """

    network: NetworkConfig
    count: int = 100
    epochs: int = 50
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 256
    dsa: DsaConfig | None = field(default_factory=DsaConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {getattr(self, name)} must be at least 1"
            for name in ("count", "epochs", "batch")
            if getattr(self, name) < 1
        ]
        if not self.lr > 0:
            problems.append(f"lr: {self.lr} must be above 0")
        problems += matching_problems(self.network)
        if problems:
            raise UsageError(problems)


def train_experts(
    pictures: PictureSet,
    config: ExpertConfig,
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train the experts that `folder` lacks.

    Args:
        progress: called with the number of complete experts and of all, after each.

    Returns:
        The folder.

    Raises:
        UsageError: the folder holds experts of other settings or pictures.
        DataError: an expert diverged.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    _describe(place, pictures, config)
    images, labels = pictures.normalised(device), pictures.labels.to(device)
    for index in range(config.count):
        if not _path(place, index).exists():
            _train_one(images, labels, config, index, _path(place, index))
        if progress is not None:
            progress(index + 1, config.count)
    return place


class Experts:
    """A folder of expert trajectories.

    Args:
        folder: written by `train_experts`, at least one expert complete.

    Raises:
        DataError: it is not one.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        try:
            self._about = json.loads((self.folder / _FILE).read_text(encoding="utf-8"))
            self.network = NetworkConfig(**self._about["settings"]["network"])
            self.epochs = int(self._about["settings"]["epochs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.folder}: no folder of expert trajectories ({error}); train them first") from error
        self._files = sorted(self.folder.glob("expert_*.safetensors"))
        if not self._files:
            raise DataError(f"{self.folder}: no expert is complete; train them first")

    def __len__(self) -> int:
        return len(self._files)

    def check(self, pictures: PictureSet) -> None:
        """Refuse pictures normalised in another way, or of other classes, than those of the experts.

        Raises:
            DataError: saying what differs.
        """
        wanted = self._about["pictures"]
        different = [name for name, value in _form(pictures).items() if wanted.get(name) != value]
        if different:
            raise DataError(
                f"{self.folder}: the experts were trained on pictures of other {' and '.join(different)}; "
                "train experts on these"
            )

    def parameters(self, expert: int, epoch: int) -> dict[str, torch.Tensor]:
        """Weights of an expert after an epoch; 0 is its start.

        Raises:
            DataError: a file that is damaged or lacks the epoch.
        """
        path = self._files[expert]
        prefix = f"{epoch}."
        try:
            with safe_open(path, "pt") as file:
                found = {
                    key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)
                }
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it and train the expert again") from error
        if not found:
            raise DataError(f"{path}: no weights of epoch {epoch}; delete it and train the expert again")
        return found


def _path(folder: Path, index: int) -> Path:
    return folder / f"expert_{index:04d}.safetensors"


def _form(pictures: PictureSet) -> dict[str, list[Any]]:
    return {
        "classes": list(pictures.classes),
        "mean": list(pictures.mean),
        "std": list(pictures.std),
        "shape": list(pictures.images.shape[1:]),
    }


def _describe(folder: Path, pictures: PictureSet, config: ExpertConfig) -> None:
    settings = asdict(config)
    del settings["count"]  # more experts may be added
    content = {"count": len(pictures), "sum": int(pictures.images.sum(dtype=torch.int64))}
    about = json.loads(json.dumps({"settings": settings, "pictures": {**_form(pictures), **content}}))
    path = folder / _FILE
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: cannot be read ({error}); take another folder") from error
        if found != about:
            raise UsageError(f"{folder}: holds experts of other settings or pictures; take another folder")
        return
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def _train_one(images: torch.Tensor, labels: torch.Tensor, config: ExpertConfig, index: int, path: Path) -> None:
    # An expert's randomness depends on its number alone, not on those before it.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
    network = draw_network(config.network, generator).to(images.device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    found: dict[str, torch.Tensor] = {}
    for epoch in range(config.epochs + 1):
        if epoch:
            train_epoch(network, optimizer, images, labels, config.batch, config.dsa, generator)
        found |= {f"{epoch}.{name}": value.detach().cpu().clone() for name, value in network.named_parameters()}
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise DataError(f"expert {index} diverged at a rate of {config.lr}; lower lr")
    draft = path.with_suffix(".part")
    save_file(found, draft)
    draft.replace(path)
