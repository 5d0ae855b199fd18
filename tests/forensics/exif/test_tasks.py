"""Tasks and prompts against the constants of the released weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thurl.forensics.exif.tasks import (
    CONTEXT_LENGTH,
    OFFICIAL_COLUMNS,
    ORDINAL_TASKS,
    TASKS,
    class_names,
    columns_of,
    prompts,
)


GOLDEN = json.loads((Path(__file__).resolve().parents[2] / "golden" / "exif_prompts.json").read_text("utf-8"))


def test_prompts_are_the_official_ones_token_by_token():
    assert [prompt.text for prompt in prompts()] == GOLDEN["prompts"]
    assert [list(prompt.ids) for prompt in prompts()] == GOLDEN["token_ids_without_padding"]
    assert CONTEXT_LENGTH == GOLDEN["context_length"]


def test_columns_lie_where_the_official_logits_have_them():
    ours = {task: [place.start, place.stop] for task, place in columns_of().items()}
    official = {task.replace("_mouth_eye_nose", ""): place for task, place in GOLDEN["slices"].items()}
    assert ours == official and tuple(ours) == TASKS
    assert [prompt.task for prompt in prompts()] == [task for task in TASKS for _ in range(OFFICIAL_COLUMNS[task])]


@pytest.mark.parametrize("task", TASKS)
def test_each_class_name_stands_in_its_prompt(task):
    texts = [prompt.text for prompt in prompts() if prompt.task == task]
    names = class_names(task)
    assert len(names) == len(texts)
    for name, text in zip(names, texts, strict=True):
        assert name in text
        if task not in ORDINAL_TASKS:  # every ordinal prompt has a different level, checked by the line above
            assert [other for other in names if f" {other} " in f" {text} "] == [name]


def test_names_of_other_widths():
    assert class_names("fine_face", 2) == ("mouth", "eye")
    assert class_names("iso", 5)[0] == "ultra-low" and len(class_names("iso", 5)) == 5
    for task, width in (("iso", 4), ("make", 9), ("fine_face", 4), ("fine_face", 0), ("exposure", None)):
        with pytest.raises(ValueError):
            class_names(task, width)
