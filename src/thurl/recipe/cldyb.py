"""CLDyB as a recipe: pool, search, baselines, replay with fresh seeds, report (arXiv 2503.04655)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from thurl.recipe.cldyb_sections import (
    CLDyBBaselinesSection,
    CLDyBDataSection,
    CLDyBModelSection,
    CLDyBReportSection,
    LearnerOptions,
    ReplaySection,
    SearchSection,
)
from thurl.recipe.fields import Problem, usable_fields
from thurl.recipe.hub import PUSH_FIELDS, hub_problems
from thurl.recipe.schemas import load_schema
from thurl.recipe.sections import HubSection, MethodRecipe, TrainingFields


__all__ = ["CLDyBRecipe"]

_TRAINING = ("output_dir", "seed", "use_cpu", *PUSH_FIELDS)


class CLDyBRecipe(MethodRecipe):
    """`training` says where and with which seed; how a learner trains is an option of it."""

    training_schema: ClassVar[str] = "training_arguments"
    files: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("data", "manifest"),
        ("data", "sources", "*", "folder"),
        ("data", "sources", "*", "arrays"),
    )

    method: Literal["cldyb"]
    model: CLDyBModelSection
    data: CLDyBDataSection
    learners: Annotated[tuple[LearnerOptions, ...], Field(strict=False)]
    """The sequence is made hard for these, on average."""
    search: SearchSection = SearchSection()
    individual: bool = False
    """One more search for each learner alone, and how hard the sequence found for one is for the others."""
    baselines: CLDyBBaselinesSection = CLDyBBaselinesSection()
    replay: ReplaySection = ReplaySection()
    training: TrainingFields
    hub: HubSection = HubSection()
    report: CLDyBReportSection = CLDyBReportSection()

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        found: list[Problem] = []
        learners, replay = sections.get("learners"), sections.get("replay")
        if learners is not None:
            found += _name_problems(("learners",), learners, ())
            if not learners:
                found.append((("learners",), "is empty: name one at least"))
            if sections.get("individual") and len(learners) < 2:
                found.append((("individual",), "compares learners; name two or more in `learners`"))
        if replay is not None:
            searched = [learner["name"] for learner in learners or ()]
            found += _name_problems(("replay", "held_out"), replay.held_out, searched)
        training = sections.get("training")
        if isinstance(training, dict):
            found += _training_problems(training, replay)
        if sections.get("individual") and replay is not None and not replay.seeds:
            found.append((("individual",), "compares sequences trained again; give `replay.seeds`"))
        return found + _pool_problems(sections) + _encoder_problems(sections)

    @property
    def packages(self) -> tuple[str, ...]:
        """What must be installed: clustering, and the encoder's library."""
        return ("sklearn", *(["timm"] if (self.model.name_or_path or "").startswith("timm:") else []))

    def missing_weights_and_data(self) -> list[str]:
        """The encoder, where it is not on this machine; files have been looked up, the Hub's data when it runs."""
        from thurl.recipe.preflight import missing_weights

        name = self.model.name_or_path
        if name is not None and name.startswith("timm:"):
            name = f"timm/{name.removeprefix('timm:')}"
        return missing_weights(
            SimpleNamespace(name_or_path=name, revision=None, needs_processor=False, needs_tokenizer=False)
        )


def _name_problems(path: tuple[str, ...], learners: Sequence[dict[str, Any]], taken: Sequence[str]) -> list[Problem]:
    seen = list(taken)
    found: list[Problem] = []
    for place, learner in enumerate(learners):
        if learner["name"] in seen:
            found.append(((*path, place, "name"), f"`{learner['name']}` is there already; each learner comes once"))
        seen.append(learner["name"])
    return found


def _training_problems(training: dict[str, Any], replay: Any) -> list[Problem]:
    usable = usable_fields(training, CLDyBRecipe.training_schema)
    found: list[Problem] = [(("training", *path), text) for path, text in hub_problems(usable)]
    if not training.get("output_dir"):
        found.append((("training", "output_dir"), "must name the folder of the run"))
    for name in training:
        if name in usable and name not in _TRAINING:
            message = "has no effect here: how a learner trains is an option of it (`learners`); remove it"
            found.append((("training", name), message))
    seed = usable.get("seed", load_schema(CLDyBRecipe.training_schema)["fields"]["seed"]["default"])
    if seed < 0:
        found.append((("training", "seed"), f"is {seed}; it must be 0 or more"))
    if replay is not None and seed in replay.seeds:
        found.append((("replay", "seeds"), f"hold {seed}, the seed of the search (`training.seed`); take fresh ones"))
    return found


def _pool_problems(sections: Mapping[str, Any]) -> list[Problem]:
    data, search = sections.get("data"), sections.get("search")
    if data is None or search is None or data.digits is None:
        return []
    needed, there = search.tasks * search.classes_per_task, 10 * len(set(data.digits.domains))
    if needed <= there:
        return []
    return [(("search", "tasks"), f"of {search.classes_per_task} classes need {needed}; the digits have {there}")]


def _encoder_problems(sections: Mapping[str, Any]) -> list[Problem]:
    data, model = sections.get("data"), sections.get("model")
    if data is None or model is None or model.tiny is None or data.digits is None:
        return []
    domains = data.digits.domains
    return [
        (("model", "tiny", "known", place), f"`{name}` is not in the pool; it has {', '.join(domains)}")
        for place, name in enumerate(model.tiny.known)
        if name not in domains
    ]
