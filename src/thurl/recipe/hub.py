"""The Hub in a recipe: checked before a run, and after it the recipe in the card and one push of what it made.

A run itself never speaks with the Hub: one way for all methods, whatever trains them, and a push that fails takes
nothing with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thurl.hub.card_text import fenced
from thurl.hub.files import CARD
from thurl.hub.names import hub_name, name_problem
from thurl.hub.secrets import without_secrets
from thurl.messages import shown


__all__ = ["PUSH_FIELDS", "destination_of", "finish", "hub_problems", "method_card", "missing_login", "recipe_section",
           "without_push"]  # fmt: skip

logger = logging.getLogger(__name__)

PUSH_FIELDS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
"""Fields of `training` about the push, also where a method has few others."""

_HEADING = "## Recipe"


def hub_problems(training: Mapping[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """What of the push cannot be, as problems of `training`."""
    if not training.get("push_to_hub"):
        return []
    name = training.get("hub_model_id")
    if not name:
        return [(("hub_model_id",), "must name the repository to push to, `user/name`, because `push_to_hub` is true")]
    problem = name_problem(str(name))
    return [(("hub_model_id",), f"is {without_secrets(shown(name))}, which {problem}")] if problem else []


def missing_login(training: Mapping[str, Any]) -> list[str]:
    """Why the push at the end would fail, found before hours of training; one message at most."""
    if not training.get("push_to_hub") or os.environ.get("RANK", "0") != "0":
        return []
    from thurl.hub.push import login_problem

    problem = login_problem()
    return [f"Hub: {problem}, or set `training.push_to_hub=false`"] if problem else []


def without_push(recipe: Any) -> Any:
    """The recipe as the run gets it."""
    left_out = {"push_to_hub", "hub_model_id", "hub_revision"}
    training = {name: value for name, value in recipe.training.items() if name not in left_out}
    return recipe.model_copy(update={"training": training})


def method_card(recipe: Any, *, tags: tuple[str, ...] = (), **fields: Any) -> Any:
    """`thurl.training.model_card.MethodCard` with what the section `hub` says.

    Args:
        tags: of the method, beside those of the recipe.
        fields: of the card; the recipe's `hub.base_model` wins over `base_model`.
    """
    from thurl.training.model_card import MethodCard

    hub = recipe.hub
    base = hub.base_model or hub_name(fields.pop("base_model", None))
    return MethodCard(license=hub.license, tags=(*tags, *hub.tags), datasets=hub.datasets, base_model=base, **fields)


def destination_of(recipe: Any) -> Any:
    """`thurl.hub.push.Destination` of a recipe, None where it does not push."""
    from thurl.hub.push import Destination

    training = recipe.training
    if not training.get("push_to_hub"):
        return None
    return Destination(
        str(training["hub_model_id"]),
        training.get("hub_private_repo"),
        training.get("hub_revision"),
        getattr(getattr(recipe, "hub", None), "base_model", None),  # methods of other packages may lack it
    )


def finish(recipe: Any) -> None:
    """After a run, on its first process: the recipe goes into the card, and what the run made to the Hub.

    Raises:
        ThurlError: it was not pushed; see `thurl.hub.push.push_folder`.
    """
    folder = Path(recipe.training["output_dir"])
    _add_recipe(folder / CARD, recipe)
    destination = destination_of(recipe)
    if destination is None:
        return
    from thurl.hub.push import push_folder

    logger.info("Pushing to %s", destination.name)
    pushed = push_folder(folder, destination)
    logger.info("Pushed %d files: %s", len(pushed.files), pushed.url)


def recipe_section(recipe: Any) -> str:
    """The section of a card with the whole recipe, defaults filled in; the home folder is `~`, secrets are hidden."""
    from thurl.recipe.document import written
    from thurl.recipe.validate import resolved

    text = written(resolved(without_push(recipe)))
    home = os.path.expanduser("~")
    text = without_secrets(text if len(home) < 2 else text.replace(home, "~"))
    return f"{_HEADING}\n\nAs a file, `thurl train FILE` runs it:\n\n" + fenced(text, "yaml")


def _add_recipe(card: Path, recipe: Any) -> None:
    from thurl.training.results import write_atomically

    if card.is_file():
        text = card.read_text(encoding="utf-8").partition(f"\n{_HEADING}\n")[0]
        write_atomically(card, f"{text.rstrip()}\n\n{recipe_section(recipe)}")
