"""The methods a recipe can name. Paths instead of objects, so that listing them imports nothing.

A package brings a method of its own by an entry point of the group `thurl.methods`: the name that recipes use, and a
`Method`. A recipe cannot name code itself: it is data, and may come from a stranger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple


__all__ = ["ENTRY_POINTS", "METHODS", "Method", "add_installed", "load_attribute"]

logger = logging.getLogger(__name__)

ENTRY_POINTS = "thurl.methods"


class Method(NamedTuple):
    """Where a method lives, as `module:attribute`."""

    recipe: str
    run: str
    summary: str
    plan: str | None = None
    """Sizes for `thurl plan`, where the method can say them."""


METHODS: dict[str, Method] = {
    "visualquality_r1": Method(
        recipe="thurl.recipe.visualquality_r1:VisualQualityR1Recipe",
        run="thurl.recipe.visualquality_r1_run:run",
        summary="image quality by reinforcement learning to rank (arXiv 2505.14460)",
        plan="thurl.recipe.visualquality_r1_plan:planned_run",
    ),
    "coto_sft": Method(
        recipe="thurl.recipe.coto_sft:CoToSFTRecipe",
        run="thurl.recipe.coto_sft_run:run",
        summary="supervised fine-tuning of a language model with CoTo or a plain adapter (arXiv 2506.05713)",
    ),
    "coto_vlm": Method(
        recipe="thurl.recipe.coto_vlm:CoToVLMRecipe",
        run="thurl.recipe.coto_vlm_run:run",
        summary="supervised fine-tuning of a vision-language model on rated pictures with CoTo or a plain adapter",
    ),
    "coto_grpo": Method(
        recipe="thurl.recipe.coto_grpo:CoToGRPORecipe",
        run="thurl.recipe.coto_grpo_run:run",
        summary="GRPO on checkable answers with CoTo or a plain adapter; not in the paper",
    ),
    "exif_ordinal": Method(
        recipe="thurl.recipe.exif_ordinal:ExifOrdinalRecipe",
        run="thurl.recipe.exif_run:run",
        summary="detection of generated faces by camera settings, one-class (arXiv 2501.02207)",
    ),
    "blades": Method(
        recipe="thurl.recipe.blades:BladesRecipe",
        run="thurl.recipe.exif_run:run",
        summary="the same with eleven tasks whose weights are learned by a bi-level step (arXiv 2507.22824)",
    ),
    "deepfake_mtl": Method(
        recipe="thurl.recipe.deepfake_mtl:DeepFakeRecipe",
        run="thurl.recipe.deepfake_run:run",
        summary="detection of forged faces that says what was altered, with learned task weights (arXiv 2408.16305)",
    ),
    "face_restoration": Method(
        recipe="thurl.recipe.face_restoration:FaceRestorationRecipe",
        run="thurl.recipe.face_restoration_run:run",
        summary="blind restoration of faces or photographs, a compact baseline; not from a paper",
    ),
    "afine": Method(
        recipe="thurl.recipe.afine:AFineRecipe",
        run="thurl.recipe.afine_run:run",
        summary="full-reference image quality with imperfect references, three stages (arXiv 2503.11221)",
    ),
    "distill_rate_utility": Method(
        recipe="thurl.recipe.distill:DistillRecipe",
        run="thurl.recipe.distill_run:run",
        summary="a data set distilled into one small file, bits against usefulness (arXiv 2507.17221)",
    ),
    "cldyb": Method(
        recipe="thurl.recipe.cldyb:CLDyBRecipe",
        run="thurl.recipe.cldyb_run:run",
        summary="a sequence of tasks that is hard for continual learners, found while they train (arXiv 2503.04655)",
    ),
    "edit_vit": Method(
        recipe="thurl.recipe.edit_vit:EditViTRecipe",
        run="thurl.recipe.edit_vit_run:run",
        summary="where to edit a vision transformer that fails: meta-training of masks (arXiv 2411.01948)",
    ),
}


def load_attribute(path: str) -> Callable[..., Any]:
    """Import `module:attribute`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def add_installed(methods: dict[str, Method]) -> None:
    """Add the methods that installed packages bring; one that cannot be used is left out with a warning.

    A name that is taken stays what it is: a package cannot put itself in the place of another method.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name in methods:
            logger.warning("Method `%s` of %s is left out: the name is taken", entry.name, entry.value)
            continue
        try:
            found = entry.load()
        except Exception as error:  # a broken package must not take the other methods along
            reason = f"{type(error).__name__}: {error}"
            logger.warning("Method `%s` of %s is left out: %s", entry.name, entry.value, reason)
            continue
        if isinstance(found, Method):
            methods[entry.name] = found
        else:
            logger.warning("Method `%s` of %s is left out: it is no `Method`", entry.name, entry.value)


add_installed(METHODS)
