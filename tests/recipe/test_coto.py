"""The coto section: the library's settings and defaults, and what does not go together with it."""

import dataclasses
import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

from thurl.coto import CoToConfig
from thurl.coto.grpo import OldLogProbs
from thurl.coto.masks import MinActive
from thurl.coto.schedule import Schedule
from thurl.recipe.adapters import AdapterSection
from thurl.recipe.coto import CoToSection, coto_problems


def test_the_section_is_the_librarys_config():
    assert CoToSection().config() == CoToConfig()
    fields = {field.name: field.default for field in dataclasses.fields(CoToConfig)}
    section = {name: field.default for name, field in CoToSection.model_fields.items()}
    assert section.pop("old_logprobs") is None
    assert fields.pop("adapter_name") == "default"  # a recipe has one adapter, with PEFT's name
    assert section == fields


def test_every_value_arrives():
    values = {
        **{"initial_p": 0.5, "final_p": 0.9, "stage1_ratio": 0.5, "schedule": "sine", "group_by": 3, "seed": 7},
        **{"min_active": "force", "min_active_per_tower": True, "hold": 2, "include": ["layers"], "exclude": ["0"]},
    }
    config = CoToSection(**values, old_logprobs="detach").config()
    assert {name: getattr(config, name) for name in values} == values | {"include": ("layers",), "exclude": ("0",)}
    section = CoToSection(**values)
    assert CoToSection(**section.model_dump(mode="json")) == section


def test_an_initial_p_by_layer_arrives_and_is_told():
    section = CoToSection(initial_p={"layers.0": 0.5, "": 0.1})
    assert section.config().initial_p == {"layers.0": 0.5, "": 0.1}
    assert section.words() == "p from 0.1 to 0.5 by layer to 1 over 75% of the steps"
    assert CoToSection().words() == "p from 0.1 to 1 over 75% of the steps"


def test_the_choices_are_the_librarys():
    def choices(name):
        return set(get_args(CoToSection.model_fields[name].annotation))

    assert choices("schedule") == set(get_args(Schedule))
    assert choices("min_active") == set(get_args(MinActive)) - {"allow_empty"}
    assert set(get_args(get_args(CoToSection.model_fields["old_logprobs"].annotation)[0])) == set(
        get_args(OldLogProbs)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"initial_p": 1.5}, "less than or equal to 1"),
        ({"initial_p": {"layers": 1.5}}, "less than or equal to 1"),
        ({"initial_p": {"(": 0.5}}, "no regular expression"),
        ({"initial_p": {}}, "empty mapping"),
        ({"final_p": -0.1}, "greater than or equal to 0"),
        ({"initial_p": float("nan")}, "finite"),
        ({"schedule": "cosine"}, "'linear', 'sine'"),
        ({"group_by": 0}, "greater than or equal to 1"),
        ({"group_by": "block"}, "'layer' or 'module'"),
        ({"group_by": True}, "'layer' or 'module'"),
        ({"hold": 0}, "greater than or equal to 1"),
        ({"min_active": "allow_empty"}, "'resample' or 'force'"),
        ({"include": ["(layers"]}, "include.0: .* no regular expression"),
        ({"old_logprobs": "masked"}, "'masked_old'"),
        ({"adapter_name": "other"}, "Extra inputs"),
    ],
)
def test_wrong_values(values, message):
    with pytest.raises(ValidationError, match=message):
        CoToSection(**values)


@pytest.mark.parametrize("schema", ["grpo_config", "training_arguments"])
@pytest.mark.parametrize(
    ("section", "training", "processes", "path", "message"),
    [
        ({}, {"ddp_find_unused_parameters": False}, 1, ("training", "ddp_find_unused_parameters"), "set it to true"),
        ({}, {"ddp_static_graph": True}, 1, ("training", "ddp_static_graph"), "remove it"),
        (
            {},
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            2,
            ("training", "gradient_checkpointing_kwargs"),
            "set it to false",
        ),
        ({"old_logprobs": "detach"}, {}, 1, ("coto", "old_logprobs"), "is for GRPO"),
    ],
)
def test_what_does_not_go_together(schema, section, training, processes, path, message):
    def found(training, **options):
        sections = {"coto": CoToSection(**section), "adapter": AdapterSection(), "training": training}
        return coto_problems(sections, schema, processes=processes, **options)

    ((where, text),) = found(training)
    assert where == path and message in text
    assert not found({}, grpo=True)
    if path[0] == "training":
        # DeepSpeed has no such settings, and without CoTo they are nobody's business.
        assert not found(training | {"deepspeed": "zero2.json"})
        assert not coto_problems({"coto": None, "training": training}, schema, processes=processes)


def test_reentrant_checkpointing_is_fine_on_one_process(monkeypatch):
    training = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    sections = {"coto": CoToSection(), "adapter": AdapterSection(), "training": training}
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not coto_problems(sections, "grpo_config")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert coto_problems(sections, "grpo_config")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert not coto_problems(sections, "grpo_config")


def test_coto_needs_an_adapter():
    ((where, text),) = coto_problems({"coto": CoToSection(), "adapter": None, "training": {}}, "grpo_config")
    assert where == ("coto",) and "needs the section `adapter`" in text
    # An adapter that is wrong alone is reported alone.
    assert not coto_problems({"coto": CoToSection(), "training": {}}, "grpo_config")


def test_no_heavy_import():
    heavy = "{'torch', 'peft', 'transformers'}"
    code = f"import sys, thurl.recipe.coto as c; c.CoToSection().config(); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("hold", "old", "training", "path", "message"),
    [
        (3, None, {"num_iterations": 2}, ("coto", "hold"), "used for 2 optimizer steps"),
        (1, None, {"steps_per_generation": 3, "gradient_accumulation_steps": 2}, None, "ends inside"),
        (
            *(5, "masked_old", {"generation_batch_size": 96, "per_device_train_batch_size": 24}),
            *(("coto", "hold"), "used for 4 optimizer steps"),
        ),
        (3, "full_old", {"num_iterations": 2}, None, None),
        (4, None, {"num_iterations": 2}, None, None),
    ],
)
def test_a_mask_lives_as_long_as_its_completions(hold, old, training, path, message):
    coto = CoToSection(hold=hold, old_logprobs=old)
    sections = {"coto": coto, "adapter": AdapterSection(), "training": training}
    found = coto_problems(sections, "grpo_config", processes=1, grpo=True)
    if message is None:
        assert not found
    else:
        ((where, text),) = found
        assert message in text and where == (path or ("training", "gradient_accumulation_steps"))


def test_with_vllm_the_correction_is_chosen():
    def found(training, old=None):
        sections = {"coto": CoToSection(old_logprobs=old), "adapter": AdapterSection(), "training": training}
        return coto_problems(sections, "grpo_config", processes=1, grpo=True)

    ((where, text),) = found({"use_vllm": True})
    assert where == ("training", "vllm_importance_sampling_mode") and "token_truncate" in text
    assert not found({"use_vllm": True, "vllm_importance_sampling_mode": "sequence_mask"})  # a choice
    assert not found({"use_vllm": True, "vllm_importance_sampling_correction": False})
    assert not found({"use_vllm": True}, "full_old")  # whose old log-probabilities are vLLM's own
    assert not found({})
