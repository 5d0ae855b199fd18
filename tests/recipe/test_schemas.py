from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from thurl.recipe.schemas import SCHEMAS, load_schema
from thurl.recipe.schemas.__main__ import _GRPO_CHOICES, build_schema, main


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_equals_the_installed_version(name):
    installed = json.loads(json.dumps(build_schema(name)))
    stored = load_schema(name)
    assert stored["fields"] == installed["fields"], "run `python -m thurl.recipe.schemas`"
    assert stored["source"] == installed["source"]


def test_check_mode_agrees():
    assert main(["--check"]) == 0


def test_choices_we_added_are_known_to_the_installed_trl():
    trainer = Path(importlib.util.find_spec("trl").origin).parent / "trainer"
    source = (trainer / "grpo_trainer.py").read_text() + (trainer / "grpo_config.py").read_text()
    for field, values in _GRPO_CHOICES.items():
        for value in values:
            if isinstance(value, str):
                assert f'"{value}"' in source or f"`{value}`" in source, (field, value)
    # ... and none of TRL's is missing here: its documented loss types all appear.
    for loss in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"):
        assert loss in load_schema("grpo_config")["fields"]["loss_type"]["choices"]


def test_no_choice_of_trl_is_missing():
    """Every `self.loss_type == "..."` of the trainer is a choice of ours."""
    import re

    trainer = Path(importlib.util.find_spec("trl").origin).parent / "trainer" / "grpo_trainer.py"
    source = trainer.read_text()
    compared = set(re.findall(r'self\.loss_type == "(\w+)"', source))
    for group in re.findall(r"self\.loss_type in [\[(]([^\])]*)[\])]", source):
        compared |= set(re.findall(r'"(\w+)"', group))
    assert compared
    assert compared <= set(_GRPO_CHOICES["loss_type"])


def test_defaults_that_differ_from_the_paper_are_what_the_recipes_assume():
    fields = load_schema("grpo_config")["fields"]
    assert fields["beta"]["default"] == 0.0
    assert fields["loss_type"]["default"] == "dapo"
    assert fields["use_bias_correction_kl"]["default"] is True
    assert fields["bf16"]["default"] is None
