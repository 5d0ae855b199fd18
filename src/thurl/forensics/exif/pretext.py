"""How well a model has learned its pretext tasks: rank correlation per setting, accuracy per class, edits found.

The papers report none of these; they choose no checkpoint by them either. `proxy_loss` is the number to choose one by:
for BLADES the unweighted loss of the primary tasks, which its outer step minimises, on photographs of neither step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thurl.binary_metrics import roc_auc
from thurl.forensics.exif.losses import HEADS, present_tasks
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, ORDINAL_TASKS, class_names, columns_of
from thurl.metrics import srcc
from thurl.ranking import expected_level


if TYPE_CHECKING:
    import torch

    from thurl.training.evaluation import EvaluationResults, Predict

__all__ = ["PretextEvaluator", "metric_names", "task_readings"]

_PAIR_ROWS = 256


def metric_names(columns: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """What `PretextEvaluator` measures, by name.

    Args:
        columns: columns per task of a joint embedding; None for the five-headed model.
    """
    tasks = HEADS if columns is None else tuple(columns)
    names = ["proxy_loss", *(f"loss_{task}" for task in tasks)]
    names += [f"srcc_{task}" for task in tasks if task in ORDINAL_TASKS]
    names += [f"accuracy_{task}" for task in tasks if task in CATEGORICAL_TASKS]
    names += ["auc_manipulated"] if "coarse_face" in tasks else []
    if columns is not None and "fine_face" in columns:
        names += [f"auc_{region}" for region in class_names("fine_face", columns["fine_face"])]
    return tuple(names)


def task_readings(scores: torch.Tensor, columns: Mapping[str, int] | None = None) -> dict[str, torch.Tensor]:
    """A model's scores as one answer per task.

    Args:
        scores: (N, 5) of the five heads, or (N, columns) logits of the joint embedding.
        columns: columns per task of a joint embedding; None for the five-headed model.

    Returns:
        task to (N,): a number that rises with an ordinal setting; the most likely class of a category; a number that
        rises with the chance of an edit. `fine_face`: (N, regions) of such numbers.
    """
    if columns is None:
        return dict(zip(HEADS, scores.unbind(dim=1), strict=True))
    found = {}
    for task, place in columns_of(columns).items():
        own = scores[:, place]
        if task in ORDINAL_TASKS:
            found[task] = expected_level(own)
        elif task in CATEGORICAL_TASKS:
            found[task] = own.argmax(dim=1)
        else:
            found[task] = own[:, 1] - own[:, 0] if task == "coarse_face" else own
    return found


@dataclass(frozen=True)
class PretextEvaluator:
    """Evaluator of `MethodTrainer` for data sets of the kind `thurl.forensics.exif.dataset.CameraFaces`.

    Losses are means over groups of `rows` consecutive pictures, within which pairs are formed. Everything that no
    picture has a label for is NaN.

    Args:
        primary: tasks whose losses add up to `proxy_loss`; all of the model's when empty.
        rows: pictures per group.
    """

    primary: Sequence[str] = ()
    rows: int = _PAIR_ROWS

    def __call__(self, model: Any, dataset: Any, predict: Predict) -> EvaluationResults:
        import torch

        from thurl.training.evaluation import EvaluationResults

        columns = getattr(model.config, "columns", None)
        scores = torch.from_numpy(predict(dataset)["scores"])
        labels = dataset.labels()
        readings = {task: values.numpy() for task, values in task_readings(scores, columns).items()}
        losses = self._losses(model, scores, labels)
        metrics = {"proxy_loss": sum(losses[task] for task in self.primary or losses)}
        metrics |= {f"loss_{task}": value for task, value in losses.items()}
        counts = {}
        for task, values in readings.items():
            if task == "fine_face":
                names = class_names("fine_face", values.shape[1])
                parts = {f"auc_{name}": (values[:, k], labels[task][:, k].numpy()) for k, name in enumerate(names)}
            else:
                metric = "srcc" if task in ORDINAL_TASKS else "accuracy" if task in CATEGORICAL_TASKS else "auc"
                name = "auc_manipulated" if metric == "auc" else f"{metric}_{task}"
                parts = {name: (values, labels[task].numpy())}
            for name, (answer, truth) in parts.items():
                known = ~np.isnan(truth) if task in ORDINAL_TASKS else truth >= 0
                counts[name] = int(known.sum())
                metrics[name] = _METRICS[name.split("_")[0]](answer[known], truth[known])
        items = [_item(dataset, row, readings) for row in range(len(dataset))]
        settings = {"pictures": len(dataset), "labelled": counts, "primary": list(self.primary), "rows": self.rows}
        return EvaluationResults({name: metrics[name] for name in metric_names(columns)}, items, settings)

    def _losses(self, model: Any, scores: torch.Tensor, labels: Mapping[str, torch.Tensor]) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for start in range(0, len(scores), self.rows):
            rows = slice(start, start + self.rows)
            own = {task: label[rows] for task, label in labels.items()}
            terms = model.compute_terms(scores[rows], own)
            present = present_tasks(own, terms)
            for task, term in terms.items():
                found.setdefault(task, []).append(float(term) if present[task] else float("nan"))
        return {task: _mean(values) for task, values in found.items()}


def _item(dataset: Any, row: int, readings: Mapping[str, np.ndarray]) -> dict[str, Any]:
    record = dataset.records[row]
    answers = {task: values[row].tolist() for task, values in readings.items()}
    return {"image": record.image, "edit": dataset.edit(row), "settings": dict(record.settings.values), **answers}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _accuracy(answer: np.ndarray, truth: np.ndarray) -> float:
    return float((answer == truth).mean()) if len(truth) else float("nan")


def _auc(answer: np.ndarray, truth: np.ndarray) -> float:
    return roc_auc(answer[truth == 1], answer[truth == 0])


_METRICS = {"srcc": srcc, "accuracy": _accuracy, "auc": _auc}
