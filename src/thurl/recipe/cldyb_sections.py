"""Sections of the CLDyB recipe: the pool, the encoder, learners, the search and what it is compared with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from thurl.continual.mdp import RewardSettings, SearchSettings
from thurl.errors import UsageError
from thurl.messages import nearest, shown
from thurl.recipe.fields import Problem, check_options
from thurl.recipe.schemas import load_schema
from thurl.recipe.sections import Section, raise_problems, start_problems


__all__ = [
    "BUILDERS",
    "CLDyBBaselinesSection",
    "CLDyBDataSection",
    "CLDyBModelSection",
    "CLDyBReportSection",
    "DigitsPool",
    "InformedEncoder",
    "LearnerOptions",
    "PoolSource",
    "ReplaySection",
    "SearchRewardSection",
    "SearchSection",
]

_Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)]
_Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(strict=False, min_length=1, max_length=8)]
_Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=3, max_length=3)]

Domain = Literal["orig", "rot90", "inverted", "noise", "blur", "permuted", "inverted_noise"]
DOMAINS: tuple[Domain, ...] = (*("orig", "rot90", "inverted", "noise", "blur", "permuted", "inverted_noise"),)
Builder = Literal["random", "best_of_random", "best_of_candidates", "myopic", "proxy_hardest"]
BUILDERS: tuple[Builder, ...] = (*("random", "best_of_random", "best_of_candidates", "myopic", "proxy_hardest"),)


class InformedEncoder(Section):
    """A small network that the run pre-trains on a part of the pool: it knows some of the benchmark beforehand."""

    known: _Names
    """Data sets of the pool it is trained on."""
    side: int = Field(8, ge=2, le=64)
    """Pictures are scaled to this many grey pixels a side."""
    hidden_sizes: _Widths = (96, 32)
    epochs: int = Field(40, ge=1)
    learning_rate: float = Field(0.02, gt=0)
    batch_size: int = Field(64, ge=1)


class CLDyBModelSection(Section):
    """The pre-trained encoder all learners start from."""

    name_or_path: str | None = Field(None, min_length=1)
    """A folder, `timm:NAME`, or a name of the Hub (`thurl cldyb search --encoder`)."""
    tiny: InformedEncoder | None = None
    prompt_template: str | None = Field(None, min_length=1)
    """For CLIP's zero-shot accuracy of each class, with `{}` for its name."""

    def problems(self) -> list[Problem]:
        found = start_problems(self)
        if self.prompt_template is not None:
            if self.tiny is not None:
                found.append((("prompt_template",), "is for CLIP; a `tiny` encoder reads no text"))
            elif self.prompt_template.count("{}") != 1:
                found.append(
                    (("prompt_template",), f"is {shown(self.prompt_template)}; write `{{}}` for the name once")
                )
        return found


class PoolSource(Section):
    """One data set: a folder with a folder of pictures per class, an .npz file, or a data set of the Hub."""

    folder: str | None = Field(None, min_length=1)
    arrays: str | None = Field(None, min_length=1)
    hub: str | None = Field(None, min_length=1)
    dataset: str | None = Field(None, min_length=1)
    """Name of the data set; that of the folder or file when left out."""
    image: str = "image"
    label: str = "label"
    split: str = "train"
    """`hub`: columns and part."""
    obtain: str | None = None
    """Where to get the files. With it, absent ones stop a run (exit 3); without it, they are a mistake (exit 2)."""

    def problems(self) -> list[Problem]:
        kinds = [name for name in ("folder", "arrays", "hub") if getattr(self, name) is not None]
        found: list[Problem] = []
        if len(kinds) != 1:
            found.append(
                ((), f"give one of `folder`, `arrays`, `hub`; the source has {' and '.join(kinds) or 'none'}")
            )
        return found

    def unused(self) -> dict[str, str]:
        """Columns and part of a data set of the Hub, for the others."""
        return {} if self.hub is not None else dict.fromkeys(("image", "label", "split"), "is for `hub`; remove it")


class DigitsPool(Section):
    """Digits of scikit-learn, 8 x 8, in domains; 10 classes each (`thurl.continual.digit_domains`)."""

    domains: Annotated[tuple[Domain, ...], Field(strict=False, min_length=1)] = DOMAINS
    sizes: _Sizes = (60, 50, 55)
    """Pictures of each class for training, validation and test."""


class CLDyBDataSection(Section):
    """The pool of classes. Validation pictures give the search its reward, test pictures are for the report alone."""

    sources: Annotated[tuple[PoolSource, ...], Field(strict=False)] = ()
    manifest: str | None = Field(None, min_length=1)
    """Of `thurl cldyb pool`, in place of `sources`."""
    digits: DigitsPool | None = None
    cap: int = Field(200, ge=1)
    """`sources`: most training pictures per class."""
    names_differ: bool = False
    """`sources`: classes called alike in two data sets are different things and may meet."""
    on_small: Literal["error", "skip"] = "error"
    on_corrupt: Literal["error", "skip"] = "error"
    allow_outside: bool = False
    """`manifest`: accept pictures outside its folder."""
    memory: float = Field(1.0, ge=0)
    """GiB of prepared pictures each process keeps."""
    seed: int = Field(0, ge=0)
    """Of the splits, and of noise and permutation of the digits."""
    obtain: str | None = None
    """Where to get the manifest."""

    def problems(self) -> list[Problem]:
        kinds = self._kinds()
        if len(kinds) != 1:
            have = " and ".join(kinds) or "none"
            return [(("sources",), f"give one of `sources`, `manifest`, `digits`; the recipe has {have}")]
        return []

    def unused(self) -> dict[str, str]:
        """What belongs to other kinds of pools."""
        owners = {
            **dict.fromkeys(("cap", "names_differ", "on_small", "on_corrupt"), "sources"),
            **dict.fromkeys(("allow_outside", "obtain"), "manifest"),
        }
        kinds = self._kinds()
        return {name: f"is for `{owner}`; remove it" for name, owner in owners.items() if kinds and owner not in kinds}

    def _kinds(self) -> list[str]:
        return [name for name in ("sources", "manifest", "digits") if getattr(self, name)]


def _learner(values: dict[str, Any]) -> dict[str, Any]:
    known = load_schema("learners")["fields"]
    name = values.get("name")
    if name not in known:
        raise_problems([(("name",), f"{shown(name)} is not one of {', '.join(known)}{nearest(name, known)}")])
    options = {key: value for key, value in values.items() if key != "name"}
    raise_problems(check_options(options, known[name]["options"]))
    return values


LearnerOptions = Annotated[
    dict[str, Any],
    BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
    AfterValidator(_learner),
]
"""A name, or a mapping of `name` and options as in `thurl cldyb search --learner`."""


class SearchRewardSection(Section):
    """What is hard, and for whom (`thurl.continual.mdp.RewardSettings`)."""

    kind: str = "difficulty"
    learning_weight: float = 1.0
    forgetting_weight: float = 1.0
    aggregate: str = "mean"
    cvar_share: float = 0.5
    easiest: bool = False


class SearchSection(Section):
    """The search (`thurl.continual.mdp.SearchSettings`); the paper's numbers are not known."""

    tasks: int = 10
    classes_per_task: int = 20
    starts: int = 30
    clusters: int = 6
    simulations: int = 24
    depth: int = 2
    exploration: float = 0.05
    discount: float = 1.0
    reward: SearchRewardSection = SearchRewardSection()
    candidates: str = "greedy"
    pick: str = "uniform"
    responses: bool = True
    dedupe_frozen: bool = True
    scale: str = "none"
    commit: str = "visits"
    keep_subtree: bool = False
    early_stop: bool = False
    target_quantile: float | None = None
    references: int = 16

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        values = self.model_dump(exclude={"reward"})
        for path, make in (
            (("reward",), lambda: RewardSettings(**self.reward.model_dump())),
            ((), lambda: SearchSettings(**values, reward=RewardSettings(easiest=self.reward.easiest))),
        ):
            try:
                make()
            except UsageError as error:
                for line in error.problems:  # each begins with the name of its field, but for those of the reward
                    name, _, rest = line.partition(" ")
                    found.append(((*path, name), rest) if name in values and not path else (path, line))
        return found

    def settings(self, seed: int) -> SearchSettings:
        """For `thurl.continual.search.search_sequence`."""
        values = self.model_dump(exclude={"reward"})
        return SearchSettings(**values, reward=RewardSettings(**self.reward.model_dump()), seed=seed)


class CLDyBBaselinesSection(Section):
    """Other ways to build a sequence, with as many trainings as the search took."""

    names: Annotated[tuple[Builder, ...], Field(strict=False)] = BUILDERS


class ReplaySection(Section):
    """Sequences trained again with fresh seeds and judged on the test pictures."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = (1001, 1002, 1003)
    """None leaves the replay out. Random sequences, of which there are several, are trained with the first alone."""
    held_out: Annotated[tuple[LearnerOptions, ...], Field(strict=False)] = ()
    """Learners that no search has seen."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if len(set(self.seeds)) != len(self.seeds):
            found.append((("seeds",), f"is {list(self.seeds)}; give each seed once"))
        if self.held_out and not self.seeds:
            found.append((("held_out",), "are trained by the replay; add `seeds`"))
        return found


class CLDyBReportSection(Section):
    """Files written at the end, beside sequences, replays and the kept states in `training.output_dir`."""

    results: str | None = None
    html: str | None = None
    png: str | None = None
