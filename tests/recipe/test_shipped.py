from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from thurl.errors import UsageError
from thurl.recipe import shipped
from thurl.recipe.document import read_document, written
from thurl.recipe.shipped import find_recipe, recipe_summary, shipped_recipes
from thurl.recipe.validate import load_recipe, resolved


ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
ACCELERATE = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
DEEPSPEED = sorted((ROOT / "deepspeed_configs").glob("*.json"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_recipe_is_valid_executable_and_explained(path):
    loaded = load_recipe(path)
    assert loaded.document.executable
    assert len(ast.parse(path.read_text()).body) == 1
    assert recipe_summary(path)
    assert all("get it from https://" in line for line in loaded.missing)


def assert_shown_again(recipe, defaults, folder):
    shown = resolved(recipe, defaults=defaults)
    again = folder / "again.yaml"
    again.write_text(written(shown), encoding="utf-8")
    reloaded = load_recipe(again).recipe
    assert resolved(reloaded, defaults=defaults) == shown
    # Nothing that counts was left out: the run gets the same.
    assert reloaded.model_dump(exclude={"training"}) == recipe.model_dump(exclude={"training"})


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_what_is_shown_is_the_recipe_again(path, tmp_path):
    recipe = load_recipe(path).recipe
    for defaults in (False, True):
        assert_shown_again(recipe, defaults, tmp_path)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("tiny/distill_rate_utility", ["utility.kind=gm", "utility.inner_steps=2"]),
        ("tiny/distill_rate_utility", ["data.source={format: photo_patches, folder: recipes, patch: 8}"]),
        ("tiny/face_restoration", ["data.crop=random", "data.zoom=[0.5, 1.0]"]),
        ("tiny/face_restoration", ["model={name_or_path: recipes}"]),
        ("tiny/face_restoration", ["losses.features={kind: clip, path: recipes, weight: 1, layers: ['2']}"]),
        ("tiny/cldyb", ["data={sources: [{hub: a/b, split: test}, {arrays: README.md}]}"]),
        ("tiny/cldyb", ["data={manifest: README.md}"]),
        ("tiny/deepfake_mtl", ["model={start: folder, path: recipes}"]),
        (
            "tiny/exif_ordinal",
            ["detector.photographs={format: folder, folder: recipes}", "detector.calibration_share=0.3"],
        ),
        ("tiny/visualquality_r1", ["reward={kind: threshold, threshold: 0.3}"]),
        ("tiny/visualquality_r1", ["hub.tags=['1e-6', 'no', '1:30', '0123', null-ish]"]),  # texts for YAML 1.2 or 1.1
    ],
)
def test_what_is_shown_with_overrides_is_the_recipe_again(name, overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert_shown_again(load_recipe(find_recipe(name), overrides).recipe, False, tmp_path)


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name == "recipes"], ids=name_of)
def test_every_value_of_a_paper_recipe_names_its_source(path):
    """Every line with a value has a source, apart from what is no choice: names, paths, hub and report."""
    text = path.read_text()
    body = re.split(r"\n(?:hub|report):", text[text.index("\nmodel:") :])[0]
    free = {"labels", "images", "format", "obtain", "output_dir", "dataset", "split", "revision", "file", "folder",
            "task"}  # fmt: skip
    for line in body.splitlines():
        key = re.match(r"\s+-?\s*(\w+): \S", line)
        if key and key[1] not in free:
            assert re.search(r"# .*\[(paper|code|ours|Q-Insight|paper, code|secondary|inferred)\]", line), line


def test_the_paper_recipe_is_the_papers_run():
    recipe = load_recipe(ROOT / "recipes" / "visualquality_r1.yaml").recipe
    training = recipe.training
    expected = {
        "num_generations": 6,
        "per_device_train_batch_size": 48,
        "beta": 0.04,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "linear",
        "num_train_epochs": 10,
        "max_completion_length": 256,
        "bf16": True,
        "loss_type": "grpo",
        "use_bias_correction_kl": False,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "log_multimodal": False,
        "temperature": 1.0,
        "epsilon": 0.2,
        "gradient_checkpointing": True,
    }
    assert {name: training[name] for name in expected} == expected
    assert training["deepspeed"].endswith("deepspeed_configs/zero3.json")
    assert recipe.model.name_or_path == "Qwen/Qwen2.5-VL-7B-Instruct" and recipe.model.freeze == ()
    assert recipe.sampler.block_size == 8 and recipe.reward.comparison == "mean" and recipe.reward.variance == "sample"
    (source,) = recipe.data.train
    assert (source.format, source.dataset, source.split) == ("kadid", "KADID-10K", "train")


def test_variants_differ_where_they_say():
    def differences(name):
        base = resolved(load_recipe(ROOT / "recipes" / "visualquality_r1.yaml").recipe)
        other = resolved(load_recipe(ROOT / "recipes" / f"{name}.yaml").recipe)
        return {section for section in base if base[section] != other[section]} - {"report"}

    assert differences("visualquality_r1_multi") == {"model", "data", "training"}
    assert differences("visualquality_r1_lora") == {"model", "adapter", "training"}
    assert differences("visualquality_r1_regression") == {"data", "reward", "sampler", "training"}


@pytest.mark.parametrize("processes", [1, 2, 8, 16])
@pytest.mark.parametrize("path", [path for path in RECIPES if "tiny" not in path.parts], ids=name_of)
def test_recipes_fit_any_number_of_processes(path, processes):
    load_recipe(path, processes=processes)


def test_recipes_are_found_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert set(shipped_recipes()) == {
        path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in RECIPES
    }
    assert find_recipe("visualquality_r1") == find_recipe("recipes/visualquality_r1.yaml")
    assert find_recipe("tiny/visualquality_r1").parent.name == "tiny"
    with pytest.raises(UsageError, match="did you mean `visualquality_r1_lora`"):
        find_recipe("visualquality_r1_lor")
    mine = tmp_path / "mine.yaml"
    mine.write_text("a: 1")
    assert find_recipe("mine.yaml") == Path("mine.yaml")


def test_installed_recipes_find_their_deepspeed_file(monkeypatch, tmp_path):
    """The layout of an installed wheel: <prefix>/share/thurl/{recipes,deepspeed_configs}."""
    import shutil

    share = tmp_path / "share" / "thurl"
    shutil.copytree(ROOT / "recipes", share / "recipes")
    shutil.copytree(ROOT / "deepspeed_configs", share / "deepspeed_configs")
    elsewhere = tmp_path / "elsewhere" / "deeper"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "lib" / "python" / "thurl" / "recipe" / "shipped.py"))
    monkeypatch.setattr(shipped.sysconfig, "get_path", lambda name: str(tmp_path))
    found = find_recipe("visualquality_r1")
    assert found == share / "recipes" / "visualquality_r1.yaml"
    deepspeed = load_recipe(found).recipe.training["deepspeed"]
    assert deepspeed == str(share / "deepspeed_configs" / "zero3.json")


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_accelerate_reads_its_configurations(path, monkeypatch):
    """Through accelerate's own argument handling; it refuses unknown keys."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    monkeypatch.chdir(ROOT)
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "recipe.yaml"])
    arguments, defaults, precision_from_config = _validate_launch_command(arguments)
    kind = path.stem
    assert arguments.use_deepspeed == kind.startswith("zero")
    assert arguments.use_fsdp == kind.startswith("fsdp")
    assert arguments.multi_gpu == (kind == "ddp")
    assert bool(arguments.use_cpu) == (kind == "cpu")
    if kind == "cpu":
        assert (arguments.num_processes, arguments.mixed_precision) == (1, "no")
    if kind.startswith("zero"):
        assert not precision_from_config  # with it, accelerate refuses the DeepSpeed file
        assert Path(arguments.deepspeed_config_file).is_file()
        assert bool(arguments.zero3_init_flag) == kind.startswith("zero3")
    if kind == "zero3_multinode":
        assert (arguments.num_machines, arguments.num_processes) == (2, 16)
        assert arguments.deepspeed_multinode_launcher == "standard"
    if kind == "fsdp2":
        assert int(arguments.fsdp_version) == 2


@pytest.mark.parametrize("path", [path for path in ACCELERATE if path.stem.startswith("zero")], ids=name_of)
def test_zero_configurations_and_a_recipe_with_its_own_file_get_along(path, monkeypatch):
    """accelerate raises when a DeepSpeed file meets other DeepSpeed settings, from wherever either comes."""
    import argparse

    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import DeepSpeedPlugin
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    monkeypatch.chdir(ROOT)
    command = ["--config_file", str(path), "--main_process_port", "0", "--main_process_ip", "127.0.0.1", "r.yaml"]
    arguments, defaults, from_config = _validate_launch_command(launch_command_parser().parse_args(command))
    fields = list(defaults.deepspeed_config) + (["mixed_precision"] if from_config else [])
    arguments = argparse.Namespace(**vars(arguments), deepspeed_fields_from_accelerate_config=",".join(fields))
    _, environment = prepare_deepspeed_cmd_env(arguments)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    stage = 2 if path.stem == "zero2" else 3
    assert DeepSpeedPlugin().zero_stage == stage
    assert DeepSpeedPlugin(hf_ds_config=str(ROOT / "deepspeed_configs" / "zero3.json")).zero_stage == 3


@pytest.mark.parametrize("path", DEEPSPEED, ids=name_of)
def test_deepspeed_files_leave_sizes_to_the_trainer(path):
    config = json.loads(path.read_text())
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[name] == "auto"
    assert config["bf16"] == {"enabled": "auto"}
    zero = config["zero_optimization"]
    assert zero["stage"] == (2 if path.stem == "zero2" else 3)
    assert ("offload_param" in zero) == ("offload" in path.stem)


def test_recipes_are_read_from_their_own_text_only():
    """The header key never reaches the data."""
    for path in RECIPES:
        assert set(read_document(path).data) <= set(load_recipe(path).recipe.model_dump())


def test_importing_thurl_is_light_and_quick():
    import subprocess
    import time

    code = "import sys, thurl; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    started = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
    assert time.perf_counter() - started < 5  # measured 0.1 s; the margin is for loaded machines
