"""Editors by name, with their settings: what a benchmark compares, for the command and the recipe alike.

"Learning Where to Edit Vision Transformers" (arXiv 2411.01948) compares masks over densities and fine-tuning over the
strength of its penalty; a method with several settings has a front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from thurl.editing.baselines import ExtraNeurons, LowRank
from thurl.editing.edit import EditSettings
from thurl.editing.evaluate import EditRow, Evaluator
from thurl.editing.masks import FixedMask, GradientMask, HybridMask, MaskSource, RandomMask, mean_scores
from thurl.editing.methods import EditMethod, FineTuning, MaskedEditing
from thurl.errors import UsageError
from thurl.messages import nearest


__all__ = ["EDITORS", "LEARNED", "Comparison", "Run", "mean_mask_rows"]

Run = Callable[[Evaluator, int], list[EditRow]]
"""Edits at most so many pictures of each group."""
EDITORS: Mapping[str, str] = {
    "grad": "neurons by the gradient",
    "random": "random neurons, others for each picture",
    "learned": "neurons by a hypernetwork",
    "hybrid": "by hypernetwork and gradient",
    "mean": "by the hypernetwork's mean over the group",
    "full": "fine-tuning of all units",
    "l1": "the same with an L1 penalty",
    "l2": "the same with an L2 penalty",
    "lora": "low-rank changes through PEFT",
    "neurons": "one more neuron, as T-Patcher",
}
"""Name -> what it changes."""
LEARNED = ("learned", "hybrid", "mean")
"""Those that need a hypernetwork."""


@dataclass(frozen=True)
class Comparison:
    """Which editors, with which settings.

    Args:
        editors: of `EDITORS`, each once.
        settings: of every edit.
        densities: of the masks.
        strengths: of the penalties of `l1` and `l2`.
        ranks: of `lora`.
        low_rank_rate: learning rate of `lora`; four times that of the settings when None.
        neuron_rate: of `neurons`, with Adam; T-Patcher's.
        seed: of random masks and of the first factor of `lora`.
        together: masked edits computed at a time; memory grows with it, results do not change.

    Raises:
        UsageError: no or unknown editors, one named twice, or a setting out of range; all of them in one error.
    """

    editors: tuple[str, ...]
    settings: EditSettings = EditSettings()
    densities: tuple[float, ...] = (0.05, 0.1, 0.25)
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1)
    ranks: tuple[int, ...] = (4,)
    low_rank_rate: float | None = None
    neuron_rate: float = 0.01
    seed: int = 0
    together: int = 8

    def __post_init__(self) -> None:
        problems = [
            f"editor {name!r}: must be one of {', '.join(EDITORS)}{nearest(name, EDITORS)}"
            for name in self.editors
            if name not in EDITORS
        ]
        if not self.editors:
            problems.append("no editor to compare; name at least one")
        if len(set(self.editors)) < len(self.editors):
            problems.append("an editor named twice; name each once")
        problems += [f"density {value}: must be in (0, 1]" for value in self.densities if not 0 < value <= 1]
        problems += [f"strength {value}: must not be negative" for value in self.strengths if not value >= 0]
        problems += [f"rank {value}: must be 1 or more" for value in self.ranks if value < 1]
        if problems:
            raise UsageError(problems)

    @property
    def needs_hypernetwork(self) -> bool:
        """Whether one of the editors does."""
        return bool(set(LEARNED) & set(self.editors))

    def runs(self, learned: MaskSource | None = None) -> dict[tuple[str, str], Run]:
        """(editor, setting) -> what edits with it.

        Args:
            learned: masks of a hypernetwork.

        Raises:
            UsageError: an editor needs a hypernetwork, and there is none.
        """
        if learned is None and self.needs_hypernetwork:
            raise UsageError(f"the editors {', '.join(LEARNED)} need a hypernetwork of the base model; give one")
        found: dict[tuple[str, str], Run] = {}
        for name in self.editors:
            if name == "mean" and learned is not None:
                for density in self.densities:
                    found[name, f"{density:g}"] = _mean_run(learned, density, self.settings, self.together)
                continue
            for setting, method in self._methods(name, learned):
                found[name, setting] = _run(method)
        return found

    def _methods(self, name: str, learned: MaskSource | None) -> Sequence[tuple[str, EditMethod]]:
        if name == "full":
            return [("all", FineTuning(self.settings, self.together))]
        if name in ("l1", "l2"):
            return [
                (f"{value:g}", FineTuning(replace(self.settings, **{name: value}), self.together))
                for value in self.strengths
            ]
        if name == "lora":
            rate = 4 * self.settings.rate if self.low_rank_rate is None else self.low_rank_rate
            return [
                (f"rank {rank}", LowRank(rank, rank, replace(self.settings, rate=rate), self.seed))
                for rank in self.ranks
            ]
        if name == "neurons":
            return [("1", ExtraNeurons(replace(self.settings, rate=self.neuron_rate, optimizer="adam")))]
        source = self._source(name, learned)
        return [
            (f"{density:g}", MaskedEditing(source, density, self.settings, self.together))
            for density in self.densities
        ]

    def _source(self, name: str, learned: MaskSource | None) -> MaskSource:
        if name == "random":
            return RandomMask(self.seed, per_picture=True)
        if name == "grad" or learned is None:
            return GradientMask()
        return learned if name == "learned" else HybridMask((learned, GradientMask()))


def mean_mask_rows(
    source: MaskSource, evaluator: Evaluator, density: float, settings: EditSettings, edits: int, together: int = 8
) -> list[EditRow]:
    """Edits with the average mask of each group: what is left of a source without the picture at hand.

    Args:
        source: of the soft masks.
        evaluator: has the groups.
        density, settings, together: as `MaskedEditing`.
        edits: at most that many of each group.
    """
    rows = []
    for group in evaluator.groups.values():
        labels = torch.full((len(group.pixel_values),), group.label, device=group.pixel_values.device)
        soft = mean_scores(source, evaluator.classifier, [(group.pixel_values, labels)])
        rows += evaluator.run(MaskedEditing(FixedMask(soft), density, settings, together), edits, [group.name])
    return rows


def _run(method: EditMethod) -> Run:
    return lambda evaluator, edits: evaluator.run(method, edits)


def _mean_run(source: MaskSource, density: float, settings: EditSettings, together: int) -> Run:
    return lambda evaluator, edits: mean_mask_rows(source, evaluator, density, settings, edits, together)
