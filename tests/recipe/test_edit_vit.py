"""The editing recipe: validation, the whole run scaled down, its files, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from thurl.editing.hypernetwork import MaskHypernetwork
from thurl.editing.meta_step import OFFICIAL_PENALTY
from thurl.errors import UsageError
from thurl.recipe.edit_vit_run import load_base, meta_settings, run
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe


TINY, FULL = str(find_recipe("tiny/edit_vit")), str(find_recipe("edit_vit"))
SMALL = [
    "model.digits.epochs=1",
    "hypernetwork.blocks=1",
    "meta.inner_steps=2",
    "meta.outer_steps=2",
    "training.max_steps=2",
    "training.per_device_train_batch_size=8",
    "evaluation.edits=2",
    "evaluation.max_steps=3",
    "evaluation.masks=[learned,mean,grad,random,hybrid]",
]


def test_the_paper_recipe_has_the_official_settings() -> None:
    recipe: Any = load_recipe(FULL).recipe
    meta = meta_settings(recipe)
    assert meta.search.penalty == pytest.approx(OFFICIAL_PENALTY, rel=1e-12)
    assert (meta.search.inner_steps, meta.search.outer_steps, meta.updates, meta.bce_weight) == (5, 10, 4, 0.1)
    assert (meta.cutmix.smallest, meta.cutmix.largest, meta.search.locality) == (3, 8, 0.0)
    assert recipe.model.layers == (7, 8, 9) and recipe.hypernetwork.blocks == 3
    assert recipe.training["max_steps"] == 10_000 and recipe.training["optim"] == "rmsprop"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.optim=adamw_torch", "must be rmsprop"),
        ("training.max_grad_norm=1.0", "must be 0"),
        ("training.gradient_accumulation_steps=2", "must be 1"),
        ("training.per_device_train_batch_size=7", "must be even"),
        ("cutmix.smallest=3", "must not be above"),
        ("model.name_or_path=folder", "has both"),
        ("evaluation.masks=[best]", "masks"),
        ("evaluation.densities=[0]", "densities"),
    ],
)
def test_what_cannot_work_is_refused_at_once(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(TINY, [override])


def test_a_folder_of_pictures_is_needed_for_other_models() -> None:
    with pytest.raises(UsageError, match="needs a folder"):
        load_recipe(FULL, ["data=null"])
    with pytest.raises(UsageError, match="is for `model.digits`"):
        load_recipe(FULL, ["evaluation.edits=2"])


def test_the_whole_run(tmp_path: Path) -> None:
    files = [f"report.results={tmp_path / 'results.json'}", f"report.html={tmp_path / 'report.html'}"]
    recipe: Any = load_recipe(TINY, [*SMALL, *files, f"training.output_dir={tmp_path / 'out'}"]).recipe
    record = run(recipe, recipe_path=TINY)
    assert record["steps"] == 2 and record["terms"]["bce"]["first"] > 0
    assert [row["mask"] for row in record["edits"]] == ["learned", "mean", "grad", "random", "hybrid"]
    for row in record["edits"]:
        assert all(0 <= row[name] <= 100 for name in ("success", "generality", "locality"))
    assert json.loads((tmp_path / "results.json").read_text())["runs"][0]["edits"] == record["edits"]
    assert "Edits of failing digits" in (tmp_path / "report.html").read_text()
    base = load_base(recipe, recipe.training["seed"])
    saved = MaskHypernetwork.from_pretrained(
        tmp_path / "out",
        base_fingerprint=base.classifier.fingerprint(),
        units=[unit.label for unit in base.classifier.units],
    )
    assert saved.config.meta_training["search"]["outer_steps"] == 2 and not torch.isnan(saved.query_tokens).any()
