"""A pool of classes whose samples are texts: built from what it is given, the same pool for the same texts.

Splits and the hash depend on the texts alone. Rules are those of pools of pictures (`thurl.continual.pool`): classes
called alike in two data sets never meet in a sequence, copies in a class are left out (whatever their spaces, case and
punctuation), a text in two classes is an error or dropped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thurl.continual.pool import ClassPool, Sample, make_pool, raise_problems
from thurl.errors import UsageError
from thurl.text.labelled import read_examples, text_key
from thurl.text.questions import Question


__all__ = ["TextPool", "TextSample", "file_samples", "make_text_pool", "question_samples"]


@dataclass(frozen=True)
class TextSample:
    """A text of a class; the class is `dataset/class_name`."""

    dataset: str
    class_name: str
    text: str


@dataclass(frozen=True)
class TextPool:
    """Texts of many classes.

    Args:
        pool: classes, splits, aliases and hash; its `images` stand for texts.
        texts: by the SHA-256 of the entries of `pool.images`.
    """

    pool: ClassPool
    texts: Mapping[str, str]

    @property
    def hash(self) -> str:
        return self.pool.hash


def make_text_pool(samples: Iterable[TextSample], **options: Any) -> TextPool:
    """Give every text a split.

    Args:
        samples: in any order.
        options: of `thurl.continual.pool.make_pool`: `sizes`, `caps`, `seed`, `aliases`, `share_names`, `on_small`,
            `on_duplicate`.

    Raises:
        UsageError: wrong options.
        DataError: empty texts, a text in two classes, classes that are too small; the first 20 and the count.
    """
    texts: dict[str, str] = {}
    found, problems = [], []
    for number, sample in enumerate(samples):
        if not (sample.text.strip() and sample.class_name.strip() and sample.dataset.strip()):
            problems.append(
                f"text {number} of {sample.dataset}/{sample.class_name}: text, data set and class need words"
            )
            continue
        digest = _digest(sample.text)
        texts[digest] = sample.text
        near = np.frombuffer(bytes.fromhex(_digest(text_key(sample.text) or sample.text)), dtype=np.uint64)
        excerpt = sample.text if len(sample.text) <= 60 else f"{sample.text[:57]}..."
        found.append(
            Sample(sample.dataset, sample.class_name, digest, repr(excerpt), digest, tuple(int(word) for word in near))
        )
    raise_problems(problems, "the pool cannot be made")
    return TextPool(make_pool(found, Path(), noun="text", **options), texts)


def question_samples(questions: Iterable[Question]) -> list[TextSample]:
    """Questions as texts: the data set is the task, the class the right answer, or the completion where there is none.

    Any format of `thurl.text.questions.read_questions` serves whose answers are few: choices, words.

    Raises:
        UsageError: a conversation; the pool holds texts, a template is put around them later.
    """
    samples = []
    for question in questions:
        if not isinstance(question.prompt, str):
            raise UsageError(f"a question of {question.task!r} is a conversation; a text pool takes texts alone")
        samples.append(
            TextSample(question.task, (question.answer or question.completion or "").strip(), question.prompt)
        )
    return samples


def file_samples(
    path: str | os.PathLike[str], class_names: Sequence[str], *, dataset: str | None = None
) -> list[TextSample]:
    """Texts of a file of `thurl.text.labelled.read_examples`.

    Args:
        class_names: name of each label, in the order of their numbers; a language model is asked for these words.
        dataset: name of the data set; that of the file when None.

    Raises:
        UsageError: a label without a name.
        MissingRequirementError, DataError: see `read_examples`.
    """
    examples = read_examples(path)
    if max(examples.labels) >= len(class_names):
        raise UsageError(
            f"{path}: labels reach to {max(examples.labels)}, {len(class_names)} names are given; name each"
        )
    name = dataset or Path(path).stem
    return [
        TextSample(name, class_names[label], text) for text, label in zip(examples.texts, examples.labels, strict=True)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
