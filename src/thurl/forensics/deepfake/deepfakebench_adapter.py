"""A detector for DeepfakeBench (GitHub `SCLBD/DeepfakeBench`), whose training and test scripts then run this method.

Written against its code of June 2025: the abstract class of `training/detectors/base_detector.py`, and what
`training/test.py` and `training/trainer/trainer.py` read and set. Nothing of it is imported here, so the class has the
abstract class's methods without being one of its children; that project never asks for the type. To register it, put
a file into `training/detectors/`, import it in the `__init__.py` there, and name it in a configuration:

    from detectors import DETECTOR
    from thurl.forensics.deepfake.deepfakebench_adapter import DeepfakeBenchDetector

    DETECTOR.register_module(module_name="thurl_deepfake")(DeepfakeBenchDetector)

Its own video metric joins videos whose folders have one name; score its predictions with
`thurl.forensics.deepfake.evaluation` to keep them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from thurl.binary_metrics import average_precision, equal_error_rate, roc_auc
from thurl.errors import DataError, UsageError
from thurl.forensics.deepfake.loading import load_model, load_processor
from thurl.forensics.deepfake.marginals import log_marginals
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.joint_embedding import joint_logits


__all__ = ["DeepfakeBenchDetector"]


class DeepfakeBenchDetector(nn.Module):
    """A trained model behind DeepfakeBench's interface.

    Args:
        config: its configuration, with `thurl_model` (the folder of a trained model), `mean` and `std` (how it
            normalises pictures, undone here) and, for training with more than real and fake, `thurl_classes`: number
            in its `label_dict` to the name of a manipulation that the label graph knows. 0 is always real; a number
            that is missing there means fake, and nothing is known of the attributes. It takes pictures of
            `resolution` pixels, which must be the model's.
        load_param: part of the interface, unused.

    Raises:
        UsageError: a configuration without a model or with another resolution, or a manipulation the graph lacks.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, load_param: bool | str = False) -> None:
        super().__init__()
        self.config = dict(config or {})
        self.backbone = self.build_backbone(self.config)
        self.build_loss(self.config)
        processor = load_processor(self.config["thurl_model"])
        own = [torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)]
        theirs = [torch.tensor(self.config.get(name, [0.5] * 3))[:, None, None] for name in ("mean", "std")]
        # ((x * std + mean) - own mean) / own std, as one factor and one summand; not part of a checkpoint.
        self.register_buffer("_factor", theirs[1] / own[1], persistent=False)
        self.register_buffer("_shift", (theirs[0] - own[0]) / own[1], persistent=False)
        if self.config.get("resolution", processor.size) != processor.size:
            raise UsageError(f"resolution is {self.config['resolution']}; the model was trained on {processor.size}")

    def build_backbone(self, config: Mapping[str, Any]) -> DeepFakeModel:
        """The model of `thurl_model`."""
        if not config.get("thurl_model"):
            raise UsageError("the configuration lacks `thurl_model`: the folder of a model trained by thurl")
        return load_model(config["thurl_model"])

    def build_loss(self, config: Mapping[str, Any]) -> None:
        """Label vectors of the classes; the losses are the model's own."""
        graph = self.backbone.graph
        unknown = [-1] * (len(graph.names) - 1)
        self._vectors = {0: [0, *[0] * len(unknown)]}
        for number, name in (config.get("thurl_classes") or {}).items():
            self._vectors[int(number)] = graph.vector(name)
        self._fake = [1, *unknown]

    def features(self, data_dict: Mapping[str, Any]) -> torch.Tensor:
        """(B, d) features of `data_dict["image"]`, (B, 3, H, W) normalised by the configuration's mean and std.

        Raises:
            DataError: clips of several frames; this is a detector of single frames.
        """
        images = data_dict["image"]
        if images.dim() != 4:
            raise DataError(f"image has the shape {tuple(images.shape)}; this detector takes frames, (B, 3, H, W)")
        return self.backbone.image_features(images * self._factor + self._shift)

    def classifier(self, features: torch.Tensor) -> torch.Tensor:
        """(B, 2) logarithms of P(real) and P(fake), whose softmax they are."""
        return self._two_classes(self._energies(features))

    def forward(self, data_dict: Mapping[str, Any], inference: bool = False) -> dict[str, torch.Tensor]:
        """`cls` (B, 2), `prob` (B,) P(fake), `feat` (B, d); besides, `energies` (B, n) and `marginals` (B, n)."""
        features = self.features(data_dict)
        energies = self._energies(features)
        classes = self._two_classes(energies)
        marginals = log_marginals(energies, self.backbone.graph.states)[0].exp().float()
        return {
            "cls": classes,
            "prob": classes[:, 1].exp(),
            "feat": features,
            "energies": energies,
            "marginals": marginals,
        }

    def get_losses(self, data_dict: Mapping[str, Any], pred_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """`overall`, the plain sum, and the loss of each task.

        In evaluation DeepfakeBench has made 1 of every class that is not real, so only real and fake count there.
        """
        labels = [
            self._vectors.get(int(label), self._fake) if self.training or not label else self._fake
            for label in data_dict["label"]
        ]
        terms = self.backbone.compute_terms(
            pred_dict["energies"], torch.tensor(labels, dtype=torch.int8, device=pred_dict["energies"].device)
        )
        return {"overall": torch.stack(list(terms.values())).sum(), **terms}

    def get_train_metrics(self, data_dict: Mapping[str, Any], pred_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """`acc`, `auc`, `eer`, `ap` of a batch; None where a batch of one class has none."""
        truth = (data_dict["label"] != 0).cpu()
        scores = pred_dict["prob"].detach().float().cpu()
        fake, real = scores[truth].numpy(), scores[~truth].numpy()
        values = {
            "acc": float(((scores > 0.5) == truth).float().mean()),
            "auc": roc_auc(fake, real),
            "eer": equal_error_rate(fake, real),
            "ap": average_precision(fake, real),
        }
        return {name: None if value != value else value for name, value in values.items()}

    def _energies(self, features: torch.Tensor) -> torch.Tensor:
        model = self.backbone
        return joint_logits(features, model.text_features(), scale=model.scale, normalize=model.config.normalize)

    def _two_classes(self, energies: torch.Tensor) -> torch.Tensor:
        on, off = log_marginals(energies, self.backbone.graph.states)
        return torch.stack([off[:, 0], on[:, 0]], dim=1).float()
