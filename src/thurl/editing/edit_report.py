"""What an edit did, as a document and as a page: the pictures before and after, the neurons, what else changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from thurl.data.images import open_image
from thurl.editing.classifier_files import LoadedClassifier
from thurl.editing.edit import Edit
from thurl.editing.search import Locality
from thurl.training.page import card, escape, gallery, number, section, text_table, write_page


__all__ = ["describe_edit", "locality_changes", "write_edit_page"]

_SHOWN = 24


def describe_edit(
    loaded: LoadedClassifier, files: Sequence[Path], labels: torch.Tensor, before: torch.Tensor, made: Edit
) -> dict[str, Any]:
    """JSON values: success, pictures with predictions and probabilities, neurons and relative change of each unit.

    Args:
        files: of the pictures, B of them.
        labels: int64 [B], the right classes.
        before: logits [B, C] of the unedited model.
        made: the edit.
    """
    pictures = []
    for index, file in enumerate(files):
        label = int(labels[index])
        states = {"before": before[index], "after": made.logits[index]}
        pictures.append(
            {
                "file": str(file),
                "label": loaded.name_of(label),
                **{name: _prediction(loaded, logits, label) for name, logits in states.items()},
            }
        )
    delta = made.delta
    return {
        "base": delta.base,
        "success": made.success,
        "reached": made.reached,
        "already_right": made.already_right,
        "steps": made.steps,
        "loss": [made.losses[0], made.losses[-1]],
        "density": delta.density,
        "sparsity": 1 - delta.density,
        "changed_weights": delta.parameters,
        "pictures": pictures,
        "units": [
            {
                "unit": change.unit.label,
                "neurons": change.neurons.tolist(),
                "of": change.unit.size,
                "relative_change": made.relative_change[change.unit.label],
            }
            for change in delta.changes
        ],
    }


def locality_changes(
    loaded: LoadedClassifier, folder: Path, files: Sequence[Path], locality: Locality, made: Edit
) -> dict[str, Any]:
    """What the edit changes in pictures it should leave alone: JSON values.

    Args:
        files: of the pictures in `locality`, in its order.
    """
    after = locality.predictions(made.delta)
    changed = (after != locality.before).nonzero().flatten().tolist()
    return {
        "folder": str(folder),
        "pictures": locality.size,
        "rate": 1 - len(changed) / locality.size,
        "changed": [
            {
                "file": str(files[index]),
                "before": loaded.name_of(int(locality.before[index])),
                "after": loaded.name_of(int(after[index])),
            }
            for index in changed
        ],
    }


def write_edit_page(path: Path, document: dict[str, Any], model: str, mask: str) -> None:
    """The document of `describe_edit`, with `locality` of `locality_changes` where there is one, as one HTML file.

    Args:
        model: name of the base model.
        mask: how the neurons were chosen.
    """
    done = "It was right already; nothing was changed."
    if not document["already_right"]:
        done = "Every picture is right now." if document["success"] else "The edit did not succeed."
    neurons = sum(len(unit["neurons"]) for unit in document["units"])
    facts = [("steps", str(document["steps"])), ("neurons", str(neurons)), ("density", f"{document['density']:.4g}")]
    cards = []
    for picture in document["pictures"]:
        lines = [f"right: {escape(picture['label'])}"]
        for when in ("before", "after"):
            state = picture[when]
            lines.append(
                f"{when}: <b>{escape(state['class'])}</b> {number(state['probability'])}, right class "
                f"{number(state['label_probability'])}"
            )
        shown = open_image(picture["file"])
        cards.append(card(Path(picture["file"]).name, "<br>".join(lines), image=shown))
    sections = [section("The pictures", gallery(cards)), section("Where", _units_table(document))]
    if locality := document.get("locality"):
        facts.append(("locality", f"{100 * locality['rate']:.1f} %"))
        sections.append(section("What else changed", _locality_part(locality)))
    notes = [
        "Probabilities are the softmax of the logits.",
        "Relative change: norm of the change over the norm of the touched weights.",
        f"Neurons chosen by: {mask}. Base model {document['base'][:12]}.",
    ]
    summary = f"{model}: {len(cards)} picture{'s' if len(cards) > 1 else ''}. {done}"
    write_page(path, title="Edit of a classifier", summary=summary, facts=facts, sections=sections, notes=notes)


def _prediction(loaded: LoadedClassifier, logits: torch.Tensor, label: int) -> dict[str, Any]:
    probabilities = logits.float().softmax(dim=-1)
    best = int(probabilities.argmax())
    return {
        "class": loaded.name_of(best),
        "probability": float(probabilities[best]),
        "label_probability": float(probabilities[label]),
    }


def _units_table(document: dict[str, Any]) -> str:
    rows = [["unit", "neurons", "of", "relative change", "which"]]
    for unit in document["units"]:
        which = ", ".join(map(str, unit["neurons"][:_SHOWN])) + (", ..." if len(unit["neurons"]) > _SHOWN else "")
        size = str(unit["of"])
        rows.append([unit["unit"], str(len(unit["neurons"])), size, number(unit["relative_change"], 4), which])
    return text_table(rows, total=False)


def _locality_part(locality: dict[str, Any]) -> str:
    count = len(locality["changed"])
    text = f"{count} of {locality['pictures']} pictures of {locality['folder']} are predicted otherwise."
    rows = [["picture", "before", "after"]]
    rows += [[one["file"], one["before"], one["after"]] for one in locality["changed"][:_SHOWN]]
    more = f"<p class='caption'>{count - _SHOWN} more are not shown.</p>" if count > _SHOWN else ""
    return f"<p>{escape(text)}</p>" + (text_table(rows, total=False) + more if count else "")
