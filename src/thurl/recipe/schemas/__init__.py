"""Field lists of the installed trainer configurations, and the options of our continual learners, as JSON;
`python -m thurl.recipe.schemas` writes them anew."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any


__all__ = ["SCHEMAS", "load_schema"]

SCHEMAS = ("grpo_config", "sft_config", "training_arguments", "learners")


@functools.cache
def load_schema(name: str) -> dict[str, Any]:
    """Read a schema: `{"source", "versions", "fields": {name: {"types", "default", "choices", "help"}}}`; of
    `learners` the fields are `{name: {"options": {option: {"types", "default", "choices"}}}}`."""
    return json.loads(resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
