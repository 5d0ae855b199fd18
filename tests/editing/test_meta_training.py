"""Meta-training: four updates as officially, exact resume, what is logged, what is refused, and learned masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from thurl.editing.classifier import Classifier, as_classifier
from thurl.editing.cutmix import CutMixSettings
from thurl.editing.hypernetwork import MaskHypernetwork
from thurl.editing.meta_step import SearchSettings, gradient_norms
from thurl.editing.meta_training import LearnedMask, MetaSettings, MetaTrainer, hypernetwork_for, patch_size
from thurl.editing.official_hypernetwork import hypernetwork_from_official
from thurl.editing.units import resolve_ffn
from thurl.errors import UsageError

from .editing_models import golden, golden_model, pictures, small_model


SEARCH = SearchSettings(inner_steps=2, outer_steps=2, inner_rate=0.01, penalty=1e-3)
META = MetaSettings(search=SEARCH, cutmix=CutMixSettings(1, 1))


class Pictures(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, count: int = 24, side: int = 16) -> None:
        self.values = pictures(count, side)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.values[row]}


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return as_classifier(small_model("vit"))


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    values: dict[str, Any] = {
        "per_device_train_batch_size": 6,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "optim": "rmsprop",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_drop_last": True,
        "seed": 7,
    }
    return TrainingArguments(str(folder), **{**values, **options})


def trainer(folder: Path, classifier: Classifier, *, gradient_tokens: bool = False, **options: Any) -> MetaTrainer:
    torch.manual_seed(0)
    model = hypernetwork_for(classifier, blocks=1, heads=2, gradient_tokens=gradient_tokens)
    return MetaTrainer(model, arguments(folder, **options), classifier=classifier, meta=META, train_dataset=Pictures())


def test_the_four_updates_of_the_official_iteration(tmp_path: Path) -> None:
    io, classifier = golden("tiny_io"), as_classifier(golden_model("transformers"))
    model = hypernetwork_from_official(
        golden("tiny_hypernet_weights"), heads=2, base_fingerprint=classifier.fingerprint()
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}

    class Official(MetaTrainer):
        def pseudo_failures(self, pictures: torch.Tensor) -> Any:
            return io["meta.mixed"], io["meta.images"], io["meta.learn_init"]

    args = arguments(tmp_path, max_steps=1, learning_rate=1e-4)
    search = SearchSettings(inner_steps=3, outer_steps=2, inner_rate=0.01, penalty=1 / (3 * 6 * 40))
    meta = MetaSettings(search=search)
    found = Official(model, args, classifier=classifier, meta=meta, train_dataset=Pictures(6, 32))
    found.train()
    state = model.state_dict()
    names = {
        "cls_token": "query_tokens",
        "layer.0.ffn.fc1.weight": "blocks.0.feed_forward.fc1.weight",
        "out_layer.0.out.weight": "heads.0.weight",
        "out_layer.3.out.bias": "heads.3.bias",
    }
    for theirs, ours in names.items():
        wanted = io[f"meta.hyper_delta.{theirs}"]
        moved = state[ours] - before[ours]
        assert torch.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.9999
        torch.testing.assert_close(moved, wanted, atol=1e-5, rtol=0)
    (first,) = [entry for entry in found.state.log_history if "terms/bce" in entry]
    assert first["terms/bce"] == pytest.approx(3.391486, abs=1e-4)
    assert first["terms/label_density"] == pytest.approx(1 - 0.9646433, abs=1e-5)
    assert first["terms/soft_density"] == pytest.approx(1 - 0.5058088, abs=1e-5)


def test_everything_moves_and_the_base_model_does_not(classifier: Classifier, tmp_path: Path) -> None:
    base = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    found = trainer(tmp_path, classifier)
    before = {name: value.clone() for name, value in found.model.named_parameters()}
    found.train()
    assert all(not torch.equal(before[name], value) for name, value in found.model.named_parameters())
    assert all(torch.equal(base[name], value) for name, value in classifier.model.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.model.parameters())
    entries = [entry for entry in found.state.log_history if "loss" in entry]
    for entry in entries:
        assert entry["terms/pseudo_kl_unedited"] > 0 and 0 < entry["terms/label_density"] < 1
    # the cosine reaches 0 after the last iteration, not after the last of four updates
    assert [entry["learning_rate"] for entry in entries] == pytest.approx([1e-3, 8.5355e-4, 5e-4, 1.4645e-4], rel=1e-3)
    assert found.timing["seconds"]["search"] > 0
    found.save_model()
    MaskHypernetwork.from_pretrained(tmp_path, base_fingerprint=classifier.fingerprint())


@pytest.mark.parametrize("gradient_tokens", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(
    gradient_tokens: bool, classifier: Classifier, tmp_path: Path
) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "gradient_tokens": gradient_tokens}
    whole = trainer(tmp_path / "whole", classifier, **options)
    whole.train()
    resumed = trainer(tmp_path / "again", classifier, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_another_seed_draws_other_pseudo_failures(classifier: Classifier, tmp_path: Path) -> None:
    batch = pictures(6, 16)
    first, again, other = (trainer(tmp_path, classifier, seed=seed) for seed in (1, 1, 2))
    state = torch.get_rng_state()
    drawn = first.pseudo_failures(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again.pseudo_failures(batch), strict=True))
    assert not torch.equal(drawn[2], other.pseudo_failures(batch)[2])
    first.state.global_step = 1
    assert not torch.equal(drawn[2], first.pseudo_failures(batch)[2])
    mixed, clean, start = drawn
    assert torch.equal(clean, batch[:3]) and not torch.equal(mixed, clean)
    changed = (mixed != clean).any(dim=1)
    assert torch.equal(mixed[:, 0][changed], batch[3:, 0][changed]) and changed.sum() == 3 * 64
    assert start.min() >= -1 and start.max() < 1
    with pytest.raises(UsageError, match="made of two"):
        first.pseudo_failures(batch[:1])


def test_arguments_that_would_train_something_else_are_refused(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        trainer(tmp_path, classifier, gradient_accumulation_steps=2, max_grad_norm=1.0)
    assert len(caught.value.problems) == 2
    other = as_classifier(small_model("vit", seed=1))
    with pytest.raises(UsageError, match="fingerprint"):
        MetaTrainer(hypernetwork_for(other, heads=2), arguments(tmp_path), classifier=classifier, meta=META)
    with pytest.raises(UsageError, match="updates is 0"):
        MetaSettings(updates=0, bce_weight=0.0)


def test_sizes_follow_from_the_classifier() -> None:
    classifier = as_classifier(small_model("dinov2 swiglu"))
    assert patch_size(classifier.model) == 8
    config = hypernetwork_for(classifier, heads=2).config
    assert (config.hidden_size, config.rows, config.neurons) == (16, *classifier.mask_shape)
    assert config.units == [unit.label for unit in classifier.units]
    assert config.base_fingerprint == classifier.fingerprint()
    with pytest.raises(UsageError, match="square patches"):
        patch_size(torch.nn.Linear(2, 2))


def test_learned_masks_are_means_over_the_pictures(classifier: Classifier) -> None:
    torch.manual_seed(0)
    batch, labels = pictures(3, 16), torch.tensor([0, 1, 2])
    for gradient_tokens in (False, True):
        model = hypernetwork_for(classifier, blocks=1, heads=2, gradient_tokens=gradient_tokens)
        found = LearnedMask(model).scores(classifier, batch, labels)
        norms = gradient_norms(classifier, batch, labels) if gradient_tokens else None
        torch.testing.assert_close(found, model(classifier.class_token(batch), norms).mean(dim=0))
        assert tuple(found.shape) == classifier.mask_shape and not found.requires_grad
    other = classifier.with_units(resolve_ffn(classifier.model, [1]))
    with pytest.raises(UsageError, match="other units"):
        LearnedMask(model).scores(other, batch, labels)
