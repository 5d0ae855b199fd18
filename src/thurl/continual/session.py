"""A search from beginning to end, with its cost told before and after, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from thurl.continual.baselines import BASELINES, build_baselines
from thurl.continual.candidates import Candidates
from thurl.continual.evaluator import Evaluator
from thurl.continual.mdp import SearchSettings
from thurl.continual.sampling import keyed_generator
from thurl.continual.search import Built, Tell, most_trainings, random_sequence, search_sequence, with_targets


__all__ = ["cost_line", "find_sequence"]


def find_sequence(
    evaluator: Evaluator, settings: SearchSettings, *, baselines: Sequence[str] = tuple(BASELINES), tell: Tell
) -> tuple[SearchSettings, Built, list[Built]]:
    """Search, then build the baselines with as many trainings.

    Args:
        evaluator: its store keeps what is trained, so that the same call goes on after a kill.
        settings: see `SearchSettings`; targets of a quantile are found first.
        baselines: names of `thurl.continual.baselines.BASELINES`.
        tell: told the most it may cost, every committed task, and what it did cost.

    Returns:
        the settings with their targets, the found sequence, the baselines.

    Raises:
        UsageError: too few classes.
        LearnerError: a learner failed.
    """
    settings.check_pool(evaluator.data.groups)
    first = random_sequence(Candidates(evaluator, settings), keyed_generator(settings.seed, "trial"))[:1]
    with evaluator.counted() as trial:
        evaluator.evaluate([first])
    most, each = most_trainings(settings, len(evaluator.learners)), trial.seconds / trial.trainings
    tell(
        f"at most {most} trainings, each about {each:.2g} s at the first task: {most * each:.3g} s in one process"
        + (f", divided over {evaluator.processes}" if evaluator.processes > 1 else "")
    )
    with evaluator.counted() as references:
        settings = with_targets(evaluator, settings)
    if settings.reward.targets:
        aims = ", ".join(f"{value:.3f}" for value in settings.reward.targets)
        tell(f"AA to come close to: {aims} ({references.trainings} trainings of references)")
    found = search_sequence(evaluator, settings, tell=tell)
    tell(cost_line(found))
    return settings, found, build_baselines(evaluator, settings, found.cost.trainings, baselines)


def cost_line(found: Built) -> str:
    """What a search cost, and what keeping the learners' states saved."""
    cost = found.cost
    walked = sum(step["path_trainings"] for step in found.steps)
    saved = f"; the paths it tried have {walked}, so {1 - cost.trainings / walked:.0%} were kept" if walked else ""
    return (
        f"{cost.trainings} trainings ({cost.trained} new), {cost.seconds:.1f} s of training, {found.wall:.1f} s in all"
        + saved
    )
