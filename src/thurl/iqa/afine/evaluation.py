"""How well scores agree with people: pairwise accuracy by type, and correlations within scenes.

Paper: arXiv 2503.11221; the rules of the released evaluation (`thurl.iqa.afine.accuracy`). Correlations are not part
of it; here they are means over scenes, since opinions of SRIQA-Bench compare within a scene only. Each image is
scored once against its reference, however many pairs it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from thurl.data.records import RatedImage
from thurl.errors import UsageError
from thurl.iqa.afine.accuracy import correct_pairs, pair_accuracy, pair_accuracy_interval
from thurl.iqa.afine.calibration import plcc_four_parameters
from thurl.iqa.afine.model import AFineModel
from thurl.iqa.afine.stages import score_groups
from thurl.iqa.afine.triplet_pictures import ComparisonPictures, collate_pictures
from thurl.iqa.afine.triplets import REFERENCE_ABOVE, REFERENCE_BELOW, Triplet
from thurl.metrics import per_group, plcc, srcc
from thurl.training.evaluation import EvaluationResults, Predict


__all__ = ["SCORES", "AFineEvaluator", "TestSet", "evaluate_tests", "joined", "predictor", "scene_rows"]

SCORES = {"naturalness": "naturalness_dis_raw", "fidelity": "fidelity_raw", "afine": "afine"}
"""Quantity to field of `AFineOutput`; all better when lower. Each is also the quantity its stage ranks."""

_POOLED = {"ref_below": REFERENCE_BELOW, "ref_above": REFERENCE_ABOVE}


@dataclass(frozen=True)
class TestSet:
    """What is asked of the scores of one data set.

    Args:
        name: in the results.
        triplets: pairs with labels; types are reported one by one.
        records: rated images, `reference` a path, for correlations; may be empty.
    """

    __test__ = False  # the name is not one of a test class

    name: str
    triplets: Sequence[Triplet] = ()
    records: Sequence[RatedImage] = ()

    def pairs(self) -> list[tuple[str, str]]:
        """(reference, image) to be scored."""
        wanted = [(t.reference, image) for t in self.triplets for image in (t.first, t.second)]
        return wanted + [(record.reference or "", record.image) for record in self.records]


def joined(tests: Sequence[TestSet]) -> list[TestSet]:
    """Test sets of the same name as one: the files of DiffIQA's types give one table with what pools them."""
    groups: dict[str, list[TestSet]] = {}
    for test in tests:
        groups.setdefault(test.name, []).append(test)
    return [
        TestSet(name, [t for part in parts for t in part.triplets], [r for part in parts for r in part.records])
        for name, parts in groups.items()
    ]


class AFineEvaluator:
    """Evaluator of a `thurl.training.method_trainer.MethodTrainer`.

    Metrics are `<set>_<quantity>`, and `accuracy`, the mean over the sets of what `quantity` names: the number a
    checkpoint is chosen by (officially over DiffIQA's PNY pairs and the three traditional sets).

    Args:
        tests: at least one, with different names.
        quantity: of `SCORES`.

    Attributes:
        dataset: give it to the trainer as evaluation data set.

    Raises:
        UsageError: no test set, a name twice, an unknown quantity.
    """

    def __init__(self, tests: Sequence[TestSet], quantity: str):
        names = [test.name for test in tests]
        if not names or len(set(names)) != len(names) or quantity not in SCORES:
            raise UsageError(f"test sets {names}, quantity {quantity!r}: different names and one of {list(SCORES)}")
        self.tests, self.quantity = list(tests), quantity
        self.dataset = ComparisonPictures(pair for test in tests for pair in test.pairs())

    def __call__(self, model: Any, dataset: Any, predict: Predict) -> EvaluationResults:
        scores = predict(dataset)
        table = evaluate_tests(self.tests, dataset.rows, scores)
        metrics = {
            f"{name}_{quantity}": entry["accuracy"][quantity]["all"]
            for name, entry in table.items()
            for quantity in SCORES
        }
        chosen = [entry["accuracy"][self.quantity]["all"] for entry in table.values()]
        return EvaluationResults({"accuracy": float(np.mean(chosen)), **metrics}, settings={"tests": table})


def evaluate_tests(
    tests: Sequence[TestSet],
    rows: Mapping[tuple[str, str], int],
    scores: Mapping[str, np.ndarray],
    *,
    delta: float = 0.0,
    intervals: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracies and correlations of all test sets.

    Args:
        tests: see `TestSet`.
        rows: (reference, image) to its row in the scores (`ComparisonPictures.rows`).
        scores: the fields of `SCORES`, (N,) each.
        delta: see `thurl.iqa.afine.accuracy.correct_pairs`.
        intervals: resamples of the 95 % intervals; 0: none.
        seed: of the resampling.

    Returns:
        by set: `pairs`, `scenes`, `accuracy` (quantity to `all`, `correct`, per type, `ref_below` and `ref_above`
        where there are such types, `interval`), and where there are opinions `correlation` (quantity to means over
        scenes of SRCC, PLCC and PLCC after a four-parameter logistic, of the scores with their sign turned, so that
        more is better).
    """
    found: dict[str, Any] = {}
    for test in tests:
        entry: dict[str, Any] = {"pairs": len(test.triplets), "scenes": len({t.scene for t in test.triplets})}
        entry["accuracy"] = {
            quantity: _accuracy(test.triplets, rows, scores[field], delta, intervals, seed)
            for quantity, field in SCORES.items()
        }
        if test.records:
            entry["correlation"] = {
                quantity: _correlation(test.records, rows, scores[field]) for quantity, field in SCORES.items()
            }
        found[test.name] = entry
    return found


def scene_rows(
    test: TestSet, rows: Mapping[tuple[str, str], int], scores: Mapping[str, np.ndarray], *, delta: float = 0.0
) -> list[dict[str, Any]]:
    """One record per scene: `set`, `scene`, `pairs`, and of each quantity its accuracy and, where the scene has
    opinions, `srcc`, `plcc` and `plcc_logistic`, named as `afine_srcc`; NaN where undefined.

    Args:
        test, rows, scores, delta: as in `evaluate_tests`.
    """
    pairs: dict[str, list[Triplet]] = {}
    for triplet in test.triplets:
        pairs.setdefault(triplet.reference, []).append(triplet)
    rated: dict[str, list[RatedImage]] = {}
    for record in test.records:
        rated.setdefault(record.reference or "", []).append(record)
    found = []
    for reference in dict.fromkeys([*pairs, *rated]):
        own = pairs.get(reference, [])
        row: dict[str, Any] = {"set": test.name, "scene": Path(reference).stem, "pairs": len(own)}
        for quantity, field in SCORES.items():
            row[f"{quantity}_accuracy"] = _accuracy(own, rows, scores[field], delta, 0, 0)["all"]
            if reference in rated:
                numbers = _correlation(rated[reference], rows, scores[field])
                row |= {f"{quantity}_{name}": numbers[name] for name in ("srcc", "plcc", "plcc_logistic")}
        found.append(row)
    return found


def predictor(
    model: AFineModel,
    *,
    batch_size: int = 16,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Predict:
    """`predict` of an evaluator for a model outside a trainer, on the device the model is on.

    Args:
        model: set to evaluation mode.
        batch_size: comparisons at a time.
        workers: of the loader.
        progress: called with the number of comparisons after each batch.
    """

    def predict(dataset: ComparisonPictures) -> dict[str, np.ndarray]:
        model.eval()
        parts: dict[str, list[torch.Tensor]] = {}
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate_pictures)
        with torch.no_grad():
            for batch in loader:
                groups = [{name: value.to(model.device) for name, value in group.items()} for group in batch["groups"]]
                outputs = score_groups(model, groups)
                for name, value in outputs.items():
                    parts.setdefault(name, []).append(value.cpu())
                if progress is not None:
                    progress(sum(len(group["rows"]) for group in groups))
        return {name: torch.cat(values).numpy() for name, values in parts.items()}

    return predict


def _accuracy(
    triplets: Sequence[Triplet],
    rows: Mapping[tuple[str, str], int],
    scores: np.ndarray,
    delta: float,
    intervals: int,
    seed: int,
) -> dict[str, Any]:
    first = scores[[rows[t.reference, t.first] for t in triplets]] if triplets else np.empty(0)
    second = scores[[rows[t.reference, t.second] for t in triplets]] if triplets else np.empty(0)
    g = np.array([t.g12 for t in triplets])
    right = correct_pairs(first, second, g, delta=delta)
    types = np.array([t.type for t in triplets])
    found: dict[str, Any] = {"all": pair_accuracy(first, second, g, delta=delta), "correct": int(right.sum())}
    wanted = {name: types == name for name in dict.fromkeys(types.tolist()) if name}
    wanted |= {name: np.isin(types, members) for name, members in _POOLED.items() if np.isin(types, members).any()}
    for name, chosen in wanted.items():
        found[name] = pair_accuracy(first[chosen], second[chosen], g[chosen], delta=delta)
    if intervals:
        found["interval"] = list(pair_accuracy_interval(right, [t.scene for t in triplets], n=intervals, seed=seed))
    return found


def _correlation(
    records: Sequence[RatedImage], rows: Mapping[tuple[str, str], int], scores: np.ndarray
) -> dict[str, float]:
    better = -scores[[rows[record.reference or "", record.image] for record in records]].astype(np.float64)
    mos = np.array([record.mos for record in records])
    scenes = [f"{record.dataset}/{record.reference}" for record in records]
    numbers = {
        name: per_group(metric, better, mos, scenes)
        for name, metric in (("srcc", srcc), ("plcc", plcc), ("plcc_logistic", plcc_four_parameters))
    }
    found: dict[str, float] = {name: value for name, (value, _) in numbers.items()}
    return {**found, **{f"scenes_{name}": count for name, (_, count) in numbers.items()}}
