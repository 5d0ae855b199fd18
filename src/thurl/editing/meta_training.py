"""Meta-training of the hypernetwork on pseudo-failures, and its masks for real ones.

"Learning Where to Edit Vision Transformers" (NeurIPS 2024, arXiv 2411.01948), the regression of its official code:
g is fitted to the searched masks by 0.1 * BCE(g(f), labels), with 1 + 3 RMSprop steps on every batch; f is the class
token of the mixed picture. What g predicts is never tried on the base model in training.

One step of the trainer is one such iteration: search, then all four updates at one learning rate. So the cosine runs
over iterations (official: over twice as many as are run), a checkpoint never lies between the updates of a batch, and
what is drawn follows from seed, iteration and process alone: a resumed run equals an uninterrupted one.

Needs transformers' `optim: rmsprop`, which has torch's defaults, as officially; a recipe says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from thurl.editing.classifier import Classifier
from thurl.editing.cutmix import CutMixSettings, draw_rectangles, paste
from thurl.editing.hypernetwork import TRAINING_CLAMP, MaskHypernetwork, MaskHypernetworkConfig
from thurl.editing.meta_step import MaskSearch, SearchSettings, gradient_norms, search_masks
from thurl.errors import UsageError
from thurl.training.method_trainer import MethodTrainer
from thurl.training.timing import phase


__all__ = ["LearnedMask", "MetaSettings", "MetaTrainer", "hypernetwork_for", "patch_size"]


@dataclass(frozen=True)
class MetaSettings:
    """What an iteration does. The defaults are official, for ViT-B/16.

    Args:
        search: search of the label masks.
        cutmix: sizes of the pasted rectangles.
        updates: optimizer steps on each batch.
        bce_weight: of the binary cross-entropy.

    Raises:
        UsageError: a number outside its range.
    """

    search: SearchSettings = SearchSettings()
    cutmix: CutMixSettings = CutMixSettings()
    updates: int = 4
    bce_weight: float = 0.1

    def __post_init__(self) -> None:
        problems = [] if self.updates >= 1 else [f"updates is {self.updates}; it must be 1 or more"]
        if not self.bce_weight > 0:
            problems.append(f"bce_weight is {self.bce_weight}; it must be above 0")
        if problems:
            raise UsageError(problems)


def hypernetwork_for(classifier: Classifier, *, base_model: str | None = None, **options: Any) -> MaskHypernetwork:
    """An untrained hypernetwork of the sizes of a classifier, which knows it by its fingerprint.

    Args:
        classifier: the base model; its units are the rows.
        base_model: its name, for people.
        options: `blocks`, `heads`, `gradient_tokens` and `meta_training` of `MaskHypernetworkConfig`.

    Raises:
        UsageError: heads that do not divide the width.
    """
    rows, neurons = classifier.mask_shape
    config = MaskHypernetworkConfig(
        hidden_size=_width(classifier),
        neurons=neurons,
        rows=rows,
        base_model=base_model,
        base_fingerprint=classifier.fingerprint(),
        units=[unit.label for unit in classifier.units],
        **options,
    )
    return MaskHypernetwork(config)


def patch_size(model: nn.Module) -> int:
    """Side of a patch in pixels: the stride of the convolution that embeds patches.

    Raises:
        UsageError: no such convolution, or patches that are no squares.
    """
    strides = {module.stride for module in model.modules() if isinstance(module, nn.Conv2d)}
    if len(strides) != 1 or len(set(next(iter(strides)))) != 1:
        raise UsageError(f"{type(model).__name__} does not embed square patches by one convolution")
    return int(next(iter(strides))[0])


class MetaTrainer(MethodTrainer):
    """Trains a `MaskHypernetwork` on pictures without labels.

    A batch of `per_device_train_batch_size` = 2B pictures becomes B pseudo-failures: picture i gets a rectangle of
    picture i + B. Of an odd number the last one is left out.

    In the log, means over iterations: `terms/bce` of the batch before it is learned from, `terms/pseudo_kl_unedited`
    and `terms/pseudo_kl_edited` (L_i of `thurl.editing.meta_step` without and with the searched update),
    `terms/label_density` (mean of the label masks), `terms/soft_density` (mean of what the hypernetwork predicts).
    `loss` is that of the last update.

    Args:
        model: the hypernetwork.
        args: `transformers.TrainingArguments`.
        classifier: the base model; on the device of `args`, read only.
        meta: settings of an iteration.
        **kwargs: of `MethodTrainer`.

    Raises:
        UsageError: a network of other units, or training arguments that would train something else.
    """

    phases = ("data", "search", "update", "outer", "save", "evaluation")

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        classifier: Classifier,
        meta: MetaSettings | None = None,
        **kwargs: Any,
    ) -> None:
        meta = MetaSettings() if meta is None else meta
        _check(args, meta)
        model.require_base(classifier.fingerprint(), [unit.label for unit in classifier.units])
        super().__init__(model, args, **kwargs)
        self.classifier = classifier.to(self.args.device).eval()
        self.meta = meta
        self.patch = patch_size(classifier.model)
        self._first_update = True

    def pseudo_failures(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mixed pictures and clean ones, (B, C, H, W) both, and the start of the search, (B, T, M).

        Drawn from seed, iteration and process; the global generators are left alone.

        Args:
            pictures: (2B, C, H, W).

        Raises:
            UsageError: fewer than two pictures.
        """
        count = len(pictures) // 2
        if count < 1:
            raise UsageError(f"a batch of {len(pictures)} pictures: a pseudo-failure is made of two")
        generator = torch.Generator()
        # Distinct for all iterations and processes of a run, and for neighbouring seeds.
        generator.manual_seed((self.args.seed * 1_000_003 + self.state.global_step) * 4099 + self.args.process_index)
        grid = pictures.shape[-2] // self.patch, pictures.shape[-1] // self.patch
        rectangles = draw_rectangles(count, grid, self.meta.cutmix, generator)
        clean, others = pictures[:count], pictures[count : 2 * count]
        start = torch.rand(count, *self.classifier.mask_shape, generator=generator) * 2 - 1
        return paste(clean, others, rectangles, self.patch), clean, start.to(pictures.device)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        with phase("search"):
            pictures = self._prepare_inputs(inputs)["pixel_values"]
            mixed, clean, start = self.pseudo_failures(pictures)
            found = search_masks(self.classifier, mixed, clean, self.meta.search, start=start)
            rows = {"class_token": self.classifier.class_token(mixed), "label_masks": found.labels}
            if self.model.config.gradient_tokens:
                with torch.no_grad():
                    classes = self.classifier.logits(clean).argmax(dim=-1)
                rows["gradient_norms"] = gradient_norms(self.classifier, mixed, classes)
            self._note_search(found)
        self._first_update = True
        for _ in range(self.meta.updates - 1):
            super().training_step(model, rows, num_items_in_batch)
            self.optimizer.step()
            model.zero_grad()
        return super().training_step(model, rows, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        soft = model(inputs["class_token"], inputs.get("gradient_norms"), clamp=TRAINING_CLAMP)
        bce = functional.binary_cross_entropy(soft, inputs["label_masks"])
        if self._first_update:
            self._terms_log.add({"bce": bce, "soft_density": soft.mean()}, {})
            self._first_update = False
        loss = self.meta.bce_weight * bce
        return (loss, soft) if return_outputs else loss

    def _note_search(self, found: MaskSearch) -> None:
        values = {
            "pseudo_kl_unedited": found.unedited.mean(),
            "pseudo_kl_edited": found.edited.mean(),
            "label_density": found.labels.mean(),
        }
        self._terms_log.add(values, {})

    def resume_settings(self) -> dict[str, Any]:
        return {**super().resume_settings(), "meta": asdict(self.meta), "base": self.model.config.base_fingerprint}


class LearnedMask:
    """Masks of a hypernetwork, as a `thurl.editing.masks.MaskSource`.

    Args:
        hypernetwork: trained for the base model; `MaskHypernetwork.require_base` checks that, once, before edits.
    """

    def __init__(self, hypernetwork: MaskHypernetwork) -> None:
        self.hypernetwork = hypernetwork.eval()

    @torch.no_grad()
    def scores(self, classifier: Classifier, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean of the soft masks of the pictures, (T, M) in [0, 1].

        Labels are read by a network with `gradient_tokens` alone.

        Raises:
            UsageError: a network of other units.
        """
        config = self.hypernetwork.config
        if (config.rows, config.neurons) != classifier.mask_shape:
            raise UsageError(
                f"the hypernetwork's masks are {config.rows}x{config.neurons}, those of the units "
                f"{'x'.join(map(str, classifier.mask_shape))}; it belongs to other units"
            )
        norms = gradient_norms(classifier, pixel_values, labels) if config.gradient_tokens else None
        return self.hypernetwork(classifier.class_token(pixel_values), norms).mean(dim=0)


def _width(classifier: Classifier) -> int:
    embedding = next(module for module in classifier.model.modules() if isinstance(module, nn.Conv2d))
    return embedding.out_channels


def _check(args: Any, meta: MetaSettings) -> None:
    problems = []
    if args.gradient_accumulation_steps != 1:
        problems.append(
            f"gradient_accumulation_steps is {args.gradient_accumulation_steps}; an iteration updates "
            f"{meta.updates} times on its own batch: set it to 1 and take a larger batch"
        )
    if args.max_grad_norm:
        problems.append(f"max_grad_norm is {args.max_grad_norm}; only the last update would be clipped: set it to 0")
    if args.deepspeed or args.fsdp:
        problems.append("DeepSpeed and FSDP step by themselves; train the hypernetwork with DDP")
    if problems:
        raise UsageError(problems)
