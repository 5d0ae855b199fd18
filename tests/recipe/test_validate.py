from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest
import yaml

from thurl.errors import UsageError
from thurl.recipe import sections
from thurl.recipe.validate import load_recipe, resolved
from thurl.recipe.visualquality_r1 import VisualQualityR1Recipe


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "labels.csv").write_text("image,mos\na.png,1\nb.png,2\n")
    (tmp_path / "images").mkdir()
    return tmp_path


GOOD = {
    "method": "visualquality_r1",
    "model": {"name_or_path": "org/model"},
    "data": {"train": [{"format": "csv", "labels": "labels.csv", "images": "images"}]},
    "training": {"output_dir": "out", "num_generations": 6, "per_device_train_batch_size": 48},
}


def write(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes, sort_keys=False))
    return path


def problems_of(path, *overrides):
    with pytest.raises(UsageError) as error:
        load_recipe(path, overrides)
    return error.value.problems


def test_a_good_recipe(folder):
    loaded = load_recipe(write(folder))
    recipe = loaded.recipe
    assert isinstance(recipe, VisualQualityR1Recipe)
    assert recipe.data.train[0].labels == str(folder / "labels.csv")  # looked up beside the recipe
    assert recipe.sampler.block_size == 8 and recipe.adapter is None
    assert loaded.missing == ()
    with pytest.raises(Exception, match="frozen"):
        recipe.reward.kind = "threshold"


def test_all_errors_at_once_each_with_its_line(folder):
    path = folder / "recipe.yaml"
    path.write_text(
        """method: visualquality_r1
model:
  name_or_pth: x
  freeze: [visoin]
data:
  train:
    - {format: cvs, labels: gone.csv}
    - format: degraded_photos
      split: trian
training:
  learning_rat: 1e-6
  num_generations: 6
  per_device_train_batch_size: 8
  deepspeed: zero9.json
reward: {variance: fixed, comparisson: mean}
learning_rate: 1
rewards: {}
"""
    )
    found = "\n".join(problems_of(path, "sampler.block_size=one", "training.seed=x"))
    for expected in [
        "recipe.yaml:3: model.name_or_pth: unknown key `name_or_pth`; did you mean `name_or_path`?",
        "recipe.yaml:4: model.freeze.0: is 'visoin' (str), but must be 'vision' or 'language'; did you mean `vision`?",
        "recipe.yaml:7: data.train.0.format: `cvs` is not one of",
        "did you mean `csv`?",
        "recipe.yaml:7: data.train.0.labels: gone.csv does not exist",
        "recipe.yaml:9: data.train.1.split: is 'trian' (str)",
        "recipe.yaml:11: training.learning_rat: unknown key `learning_rat`; did you mean `learning_rate`?",
        "recipe.yaml:13: training.per_device_train_batch_size: 8 rows",
        "recipe.yaml:14: training.deepspeed: zero9.json does not exist",
        "recipe.yaml:15: reward.comparisson: unknown key `comparisson`; did you mean `comparison`?",
        "recipe.yaml:16: learning_rate: unknown section; it belongs under `training:`",
        "recipe.yaml:17: rewards: unknown section; did you mean `reward`?",
        "command line `sampler.block_size=one`: sampler.block_size: is 'one' (str), but must be a whole number",
        "command line `training.seed=x`: training.seed: `seed` is 'x' (str), but must be a whole number",
    ]:
        assert expected in found
    assert found.index(":3:") < found.index(":17:")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "visualquality-r1"}, "did you mean `visualquality_r1`?"),
        ({"method": None}, "is not one of"),
        ({"model": {}}, "give either `name_or_path` or `tiny`; the recipe has neither"),
        ({"model": {"name_or_path": "x", "tiny": {}}}, "has both"),
        ({"model": {"tiny": {"hidden": 50}}}, "take a multiple of 32"),
        ({"model": {"name_or_path": "x", "freeze": ["vision", "language"]}}, "leaves nothing to train"),
        ({"model": {"name_or_path": "x", "min_pixels": 10, "max_pixels": 5}}, "is above `max_pixels`"),
        (
            {"model": {"name_or_path": "x", "prefix_sharing": "on", "attn_implementation": "flash_attention_2"}},
            "`on` needs `attn_implementation: sdpa`, the recipe has `flash_attention_2`",
        ),
        ({"model": {"name_or_path": "x", "prefix_sharing": True}}, "must be 'auto', 'on' or 'off'"),
        ({"model": {"name_or_path": 3}}, "must be text"),
        ({"model": "x"}, "model: is 'x' (str)"),
        ({"data": {"train": []}}, "name at least one image set"),
        ({"training": None}, "training: is null"),
        ({"training": {"num_generations": 6, "per_device_train_batch_size": 30}}, "do not divide into blocks of 8"),
        ({"reward": {"variance": "floored"}}, "variance_value"),
        ({"reward": {"variance_value": 1.0}}, "variance_value"),
        ({"reward": {"targets": "soft", "tie_margin": 0.1}}, "soft targets have no ties"),
        ({"reward": {"kind": "threshold"}}, "needed by `kind: threshold`"),
        ({"reward": {"kind": "threshold", "threshold": 0.35, "scope": "device"}}, "compares images"),
        ({"reward": {"accuracy_weight": 0}}, "nothing would teach"),
        ({"reward": {"score_range": [5, 1]}}, "the smaller one"),
        ({"sampler": {"block_size": 1}}, "greater than or equal to 2"),
        ({"sampler": {"weights": {"a": 0}}}, "greater than 0"),
        ({"adapter": {"target_modules": ["lm_head"]}}, "refused by TRL"),
        ({"adapter": {}, "model": {"name_or_path": "x", "freeze": ["language"]}}, "leaves nothing to train"),
        (
            {"adapter": {"kind": "pissa"}, "training": GOOD["training"] | {"beta": 0.04}},
            "would pull to a model that is not the start; set `training.beta: 0`",
        ),
        (
            {
                "adapter": {"kind": "dora"},
                "rollouts": {"adapter_sync": "adapter"},
                "training": GOOD["training"] | {"use_vllm": True},
            },
            "`adapter` is for `lora` and `rslora`, not `dora`",
        ),
        ({"coto": {}}, "coto: switches adapters and needs the section `adapter`"),
        (
            {"coto": {}, "adapter": {}, "training": GOOD["training"] | {"ddp_find_unused_parameters": False}},
            "training.ddp_find_unused_parameters: is false",
        ),
        (
            {"adapter": {"exclude_vision": False}, "model": {"name_or_path": "x", "freeze": ["vision"]}},
            "says that the tower is not trained",
        ),
        ({"evaluation": {"every_steps": 5}}, "add `data.validation`"),
        ({"evaluation": {"n_samples": 4, "mode": "expected"}}, "all equal"),
        ({"evaluation": {"temperature": float("inf")}}, "finite"),
        ({"model": {"tiny": {"heads": 4}}, "training": GOOD["training"] | {"use_vllm": True}}, "heads of 32 numbers"),
        ({"rollouts": {"stop": ["</answer>"]}}, "needs `training.use_vllm"),
        (
            {
                "rollouts": {"stop": ["x"]},
                "training": GOOD["training"] | {"use_vllm": True, "mask_truncated_completions": True},
            },
            "would discard what ends there",
        ),
        ({"rollouts": {"stop": [""]}}, "at least 1 character"),
        ({"rollouts": {"answer_format": "strict"}}, "`strict` needs `training.use_vllm"),
        (
            {
                "rollouts": {"answer_format": "strict"},
                "training": GOOD["training"] | {"use_vllm": True, "vllm_structured_outputs_regex": "a"},
            },
            "remove `training.vllm_structured_outputs_regex`",
        ),
        ({"rollouts": {"adapter_sync": "adapter"}}, "needs the section `adapter`"),
        ({"data": {"train": [{"format": "csv"}]}}, "required key `labels` is missing"),
        (
            {"data": {"train": [{"format": "csv", "labels": "labels.csv", "options": {"colums": {}}}]}},
            "did you mean `columns`?",
        ),
    ],
)
def test_impossible_recipes(folder, changes, message):
    assert message in "\n".join(problems_of(write(folder, **changes)))


def test_device_scope_needs_whole_blocks_on_each_device(folder):
    path = write(
        folder, training={"num_generations": 6, "per_device_train_batch_size": 12}, reward={"scope": "device"}
    )
    assert load_recipe(path, ["reward.scope=global"], processes=4)
    with pytest.raises(UsageError, match="24 rows per device|12 rows per device"):
        load_recipe(path, processes=4)


def test_missing_sections_are_named(folder):
    path = folder / "recipe.yaml"
    path.write_text("method: visualquality_r1\n")
    assert [line for line in problems_of(path) if "required section" in line] == [
        f"{path}: data: required section `data:` is missing",
        f"{path}: model: required section `model:` is missing",
        f"{path}: training: required section `training:` is missing",
    ]


def test_absent_files_are_a_mistake_unless_the_source_says_where_to_get_them(folder):
    source = {"format": "csv", "labels": "later.csv", "images": "later"}
    assert len(problems_of(write(folder, data={"train": [source]}))) == 2
    path = write(folder, data={"train": [source | {"obtain": "https://example.org"}]})
    missing = load_recipe(path).missing
    assert len(missing) == 2 and "later.csv is not here; get it from https://example.org" in missing[0]
    # A path that somebody typed just now is a mistake either way.
    assert "typo.csv does not exist" in problems_of(path, "data.train.0.labels=typo.csv")[0]


def test_messages_are_one_printable_line(folder):
    wild = "a\n\x1b[31mb"
    path = write(folder, **{wild: 1, "model": {wild: 1, "name_or_path": "x"}, "sampler": {"weights": wild}})
    found = problems_of(path, f"data.train.0.format={wild!r}".replace("'", '"'))
    assert len(found) >= 4 and all(line.isprintable() for line in found)


def test_hub_data_sets_are_not_files(folder):
    assert load_recipe(write(folder, data={"train": [{"format": "hub", "labels": "org/set"}]})).missing == ()


def test_empty_optional_section_means_defaults(folder):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD) + "reward:\n  # kind: thurstone\nadapter:\n")
    recipe = load_recipe(path).recipe
    assert recipe.reward == sections.RewardSection() and recipe.adapter is None


def test_resolved_recipe_is_a_recipe(folder):
    recipe = load_recipe(write(folder, adapter={"r": 8})).recipe
    for defaults in (False, True):
        data = resolved(recipe, defaults=defaults)
        again = folder / "again.yaml"
        again.write_text(yaml.safe_dump(data))
        reloaded = load_recipe(again).recipe
        assert reloaded.adapter == recipe.adapter and reloaded.data == recipe.data
        assert ("beta" in reloaded.training) == defaults


def test_recipe_class_is_valid_by_construction(folder):
    data = GOOD | {"data": {"train": [{"format": "csv", "labels": "x.csv"}]}}
    assert VisualQualityR1Recipe(**data).training["num_generations"] == 6
    with pytest.raises(ValueError, match="do not divide into groups"):
        VisualQualityR1Recipe(**data | {"training": {"per_device_train_batch_size": 7}})


def test_validation_is_quick_and_light(folder):
    code = (
        "import sys, thurl; from thurl.recipe.validate import load_recipe; load_recipe(sys.argv[1]);"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'PIL'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write(folder))], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the sections say what the code they configure accepts --------------------------------------------------------


def test_tiny_model_section_matches_the_builder():
    from thurl.rl.tiny import build_tiny_qwen2_5_vl

    parameters = inspect.signature(build_tiny_qwen2_5_vl).parameters
    fields = sections.TinyModel.model_fields
    assert set(fields) == set(parameters) - {"texts"}
    for name, field in fields.items():
        if name != "seed":
            assert field.default == parameters[name].default, name


def test_reward_section_matches_the_options():
    from thurl.rl.rewards import RankRewardOptions

    names = {field.name for field in dataclasses.fields(RankRewardOptions)}
    section = sections.RewardSection(variance="fixed", variance_value=2.0)
    assert set(section.rank_options()) == names
    assert RankRewardOptions(**sections.RewardSection().rank_options()) == RankRewardOptions()
    for name in ("comparison", "variance", "targets", "scope", "failed", "mode"):
        allowed = sections.RewardSection.model_fields[name].annotation.__args__
        assert set(allowed) == set(RankRewardOptions._CHOICES[name])


def test_warm_start_section_matches_the_options():
    from thurl.rl.warm_start import WarmStartOptions

    assert WarmStartOptions(**sections.WarmStartSection().stage_options()) == WarmStartOptions()


def test_degraded_photos_section_matches_the_generator():
    from thurl.rl.degraded_photos import SCALES, write_degraded_photos

    source = sections.DegradedPhotosSource(format="degraded_photos", split="train")
    parameters = inspect.signature(write_degraded_photos).parameters
    assert set(source.write_arguments()) == set(parameters) - {"folder", "photos"}
    assert all(parameters[name].default == value for name, value in source.write_arguments().items())
    assert set(SCALES) == set(sections.DegradedPhotosSource.model_fields["scale"].annotation.__args__)


def test_labels_section_matches_the_reader():
    from thurl.data.sources import load_source

    source = sections.LabelsSource(format="csv", labels="x.csv")
    parameters = inspect.signature(load_source).parameters
    assert set(source.load_arguments()) <= set(parameters)


def test_sampler_section_matches_the_sampler():
    from thurl.rl.sampler import DatasetBlockSampler

    parameters = inspect.signature(DatasetBlockSampler.__init__).parameters
    for name, value in sections.SamplerSection().model_dump().items():
        assert parameters[name].default == value


def test_prompt_section_matches_the_presets():
    from thurl.rl.prompts import PRESETS, PromptPreset

    names = set(sections.PromptSection.model_fields) - {"preset", "think"}
    assert names <= {field.name for field in dataclasses.fields(PromptPreset)}
    assert set(PRESETS) == set(sections.PromptSection.model_fields["preset"].annotation.__args__)
