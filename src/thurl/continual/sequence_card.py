"""Card of a found sequence: README.md with the metadata the Hub reads, what was searched and how hard it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thurl.hub.card_text import citation, front_matter, number, one_line, table
from thurl.hub.names import PLACEHOLDER


__all__ = ["sequence_card"]

PAPER = "CLDyB: Towards Dynamic Benchmarking for Continual Learning with Pre-trained Models"
PAPER_ID = "2503.04655"


def sequence_card(
    document: Mapping[str, Any],
    *,
    name: str,
    tested: Mapping[str, Any] | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> str:
    """The text of the card.

    Args:
        document: of the sequence file (`thurl.continual.sequence_file`).
        name: headline.
        tested: of `thurl.continual.replay`, learners trained again with fresh seeds; None: they were not.
        license: of the files, an identifier of the Hub; None: not said.
        tags: of the Hub, beside those of the method.
        datasets: names on the Hub of the pool's data sets.
    """
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=license,
        pretty_name=one_line(name),
        tags=sorted({"cldyb", "continual-learning", "thurl", *tags}),
        task_categories=["image-classification"],
        source_datasets=list(datasets) or None,
        viewer=False,
    )
    tasks = document["tasks"]
    learners = [learner["name"] for learner in document["learners"]]
    searched = document["found"]["metrics"]
    rows = [(learner, "split of the search, selected", number(searched[learner]["aa"])) for learner in searched]
    for learner, entry in (tested or {}).get("learners", {}).items():
        rows.append((learner, "test split, fresh seeds", number(entry["mean"]["aa"])))
    return "\n".join(
        [
            front_matter(data),
            f"# {one_line(name)}\n",
            f"A sequence of {len(tasks)} tasks of {len(tasks[0])} classes, found to be hard for "
            f"{one_line(', '.join(learners))}. Method: {PAPER} ([{PAPER_ID}](https://arxiv.org/abs/{PAPER_ID})).\n",
            "## Loading\n",
            "```python\nfrom thurl.continual.sequence_file import read_sequence\n\n"
            f'document = read_sequence("{PLACEHOLDER}")\n```\n',
            "`thurl cldyb replay` trains learners on it; it takes the pool whose hash is in the file, which is not "
            "part of this repository:\n",
            f"`{document['pool_hash']}`\n",
            "## Results\n",
            "Mean accuracy over the tasks seen (AA), lower is harder:\n",
            table(("learner", "where", "AA"), rows),
            "## Tasks\n",
            table(("task", "classes"), [(i + 1, ", ".join(map(str, task))) for i, task in enumerate(tasks)]),
            "## Source\n",
            f"Data sets of the pool: {one_line(', '.join(datasets)) or 'see the recipe, if there is one below'}. "
            f"Licence: {license or 'not said'}.\n",
            "## Limits\n",
            "The sequence is hard for the learners it was searched with, and for others as far as the results show.\n",
            citation(PAPER, PAPER_ID),
        ]
    )
