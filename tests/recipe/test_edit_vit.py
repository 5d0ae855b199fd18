"""The editing recipe: validation, the whole run scaled down, its files, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from thurl.editing.classifier_files import load_classifier
from thurl.editing.groups import failure_groups, labelled_folder, predict, sensitive
from thurl.editing.hypernetwork import MaskHypernetwork
from thurl.editing.manifest import Manifest, write_manifest
from thurl.editing.meta_step import OFFICIAL_PENALTY
from thurl.errors import UsageError
from thurl.recipe.edit_vit_edits import benchmark_failures
from thurl.recipe.edit_vit_run import load_base, meta_settings, run
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe

from .run_reports import check_run_report


TINY, FULL = str(find_recipe("tiny/edit_vit")), str(find_recipe("edit_vit"))
SMALL = [
    "model.digits.epochs=1",
    "hypernetwork.blocks=1",
    "meta.inner_steps=2",
    "meta.outer_steps=2",
    "training.max_steps=2",
    "training.per_device_train_batch_size=8",
    "evaluation.max_steps=2",
    "evaluation.edits=1",
    "evaluation.editors=[learned,mean,full,lora]",
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
        ("evaluation.editors=[best]", "editors"),
        ("evaluation.editors=[grad,grad]", "has a name twice"),
        ("evaluation.densities=[0]", "densities"),
        ("evaluation.pictures=.", "`manifest` and `pictures` go together"),
    ],
)
def test_what_cannot_work_is_refused_at_once(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(TINY, [override])


def test_a_folder_of_pictures_is_needed_for_other_models() -> None:
    with pytest.raises(UsageError, match="needs a folder"):
        load_recipe(FULL, ["data=null"])
    with pytest.raises(UsageError, match="only `model.digits` has failures of its own"):
        load_recipe(FULL, ["evaluation.edits=2"])


def test_digits_have_failures_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    files = [f"evaluation.manifest={tmp_path / 'manifest.json'}", f"evaluation.pictures={tmp_path}"]
    with pytest.raises(UsageError, match="does not go with `model.digits`"):
        load_recipe(TINY, files)


def test_the_whole_run(tmp_path: Path) -> None:
    files = [f"report.results={tmp_path / 'results.json'}", f"report.html={tmp_path / 'report.html'}"]
    recipe: Any = load_recipe(TINY, [*SMALL, *files, f"training.output_dir={tmp_path / 'out'}"]).recipe
    record = run(recipe, recipe_path=TINY)
    assert record["steps"] == 2 and record["terms"]["bce"]["first"] > 0
    assert [(row["editor"], row["setting"]) for row in record["edits"]] == [
        ("learned", "0.05"), ("mean", "0.05"), ("full", "all"), ("lora", "rank 4")]  # fmt: skip
    for row in record["edits"]:
        assert row["groups"] == row["edits"] > 1 and row["steps"] > 0
        assert all(0 <= row[name] <= 100 for name in ("SR", "GR", "LR_right"))
    assert json.loads((tmp_path / "results.json").read_text())["runs"][0]["edits"] == record["edits"]
    check_run_report(tmp_path / "results.json", tmp_path / "report.html")
    assert "Edits of failing pictures" in (tmp_path / "report.html").read_text()
    base = load_base(recipe, recipe.training["seed"])
    saved = MaskHypernetwork.from_pretrained(
        tmp_path / "out",
        base_fingerprint=base.classifier.fingerprint(),
        units=[unit.label for unit in base.classifier.units],
    )
    assert saved.config.meta_training["search"]["outer_steps"] == 2 and not torch.isnan(saved.query_tokens).any()


@pytest.fixture(scope="module")
def folder_of_digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A classifier as a folder, pictures in folders of classes, and the manifest of what it gets wrong."""
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    root = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    model.save_pretrained(root / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "model")
    generator = torch.Generator().manual_seed(0)
    for index in range(24):
        place = root / "pictures" / str(index % 3)
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{index}.png")
    loaded = load_classifier(str(root / "model"))
    labelled = labelled_folder(root / "pictures", {str(label): label for label in range(3)})
    predicted = predict(loaded.classifier, labelled, root / "pictures", loaded.read)
    groups = tuple(failure_groups(predicted, 2))
    stay = tuple(sensitive(predicted, threshold=1.0))
    write_manifest(root / "manifest.json", Manifest(loaded.classifier.fingerprint(), groups, stay, {}))
    return root, len(groups)


def test_a_benchmark_is_edited_after_training(folder_of_digits: tuple[Path, int], tmp_path: Path) -> None:
    root, groups = folder_of_digits
    changes = [
        "model.digits=null", f"model.name_or_path={root / 'model'}", f"data.folder={root / 'pictures'}",
        f"evaluation.manifest={root / 'manifest.json'}", f"evaluation.pictures={root / 'pictures'}",
        "evaluation.editors=[learned,grad]", "evaluation.densities=[0.1,0.2]", f"training.output_dir={tmp_path}",
        "report.results=null", "report.html=null", "hypernetwork.heads=2",
    ]  # fmt: skip
    short = [change for change in SMALL if not change.startswith(("model.", "evaluation.editors"))]
    recipe: Any = load_recipe(TINY, [*short, *changes]).recipe
    record = run(recipe, recipe_path=TINY)
    found = [(row["editor"], row["setting"], row["groups"]) for row in record["edits"]]
    assert found == [(editor, density, groups) for editor in ("learned", "grad") for density in ("0.1", "0.2")]
    assert all(0 <= row["LR_sensitive"] <= 100 and "LR_right" not in row for row in record["edits"])


def test_a_manifest_of_another_model_is_refused_before_training(
    folder_of_digits: tuple[Path, int], tmp_path: Path
) -> None:
    root, _ = folder_of_digits
    manifest = json.loads((root / "manifest.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**manifest, "base": "0" * 64}))
    loaded = load_classifier(str(root / "model"))
    with pytest.raises(UsageError, match="fingerprint 000000000000"):
        benchmark_failures(loaded.classifier, str(tmp_path / "other.json"), str(root / "pictures"), loaded.read)
