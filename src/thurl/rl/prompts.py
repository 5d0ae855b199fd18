"""The words put to the model, and the chat messages around them.

The strings are those of VisualQuality-R1 (arXiv 2505.14460; GitHub TianheWu/VisualQuality-R1), character by character:
released checkpoints answer these and no paraphrase. One user turn holds the picture first and the text after it; there
is no system message of our own, so a chat template that has a default one inserts it.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from thurl.errors import DataError, UsageError
from thurl.training.results import write_atomically


__all__ = [
    "DESCRIBE",
    "DIRECT_SUFFIX",
    "MODES",
    "PRESETS",
    "PROMPT_FILE",
    "QUESTION",
    "THINK_SUFFIX",
    "PromptPreset",
    "load_prompt",
    "save_prompt",
]

logger = logging.getLogger(__name__)

QUESTION = (
    "You are doing the image quality assessment task. Here is the question: What is your overall rating on the "
    "quality of this picture? The rating should be a float between 1 and 5, rounded to two decimal places, with 1 "
    "representing very poor quality and 5 representing excellent quality."
)
THINK_SUFFIX = (
    "First output the thinking process in <think> </think> tags and then output the final answer with only one score "
    "in <answer> </answer> tags."
)
DIRECT_SUFFIX = "Please only output the final answer with only one score in <answer> </answer> tags."
DESCRIBE = "Please describe the quality of this image."

MODES = ("think", "direct", "expected", "describe")
PROMPT_FILE = "thurl_prompt.json"
# What Qwen's chat template writes before the first picture with `add_vision_id=True`.
_VISION_ID = "Picture 1: "


@dataclass(frozen=True)
class PromptPreset:
    """A question and how it is asked.

    Args:
        question: the question, without the instruction on the answer format.
        think_suffix: instruction to think first; follows the question after one space.
        direct_suffix: instruction to answer at once; follows the question after one space.
        describe: the whole text of the free description mode.
        vision_id: put `Picture 1: ` in front of the picture. The published inference code of VisualQuality-R1 does,
            its training code does not; a model should be asked the way it was trained.
        system: system message; None leaves it to the chat template.
        name: how the preset is called in results.

    Raises:
        UsageError: an empty question, or a field of the wrong type.
    """

    question: str = QUESTION
    think_suffix: str = THINK_SUFFIX
    direct_suffix: str = DIRECT_SUFFIX
    describe: str = DESCRIBE
    vision_id: bool = False
    system: str | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        problems = []
        for field in fields(self):
            value = getattr(self, field.name)
            wanted: tuple[type, ...] = (bool,) if field.name == "vision_id" else (str,)
            if field.name == "system":
                wanted = (str, type(None))
            if not isinstance(value, wanted):
                names = " or ".join(kind.__name__ for kind in wanted)
                problems.append(f"prompt field `{field.name}` is {value!r}: it must be {names}")
        if isinstance(self.question, str) and not self.question.strip():
            problems.append("prompt field `question` is empty: the model needs a question")
        if problems:
            raise UsageError(problems)

    def text(self, mode: str) -> str:
        """The text after the picture.

        Args:
            mode: "think", "direct", "expected" (same text as "direct") or "describe".

        Raises:
            UsageError: another mode.
        """
        if mode == "describe":
            return self.describe
        if mode not in MODES:
            raise UsageError(f"mode {mode!r} does not exist: choose one of {', '.join(MODES)}")
        suffix = self.think_suffix if mode == "think" else self.direct_suffix
        return f"{self.question} {suffix}" if suffix else self.question

    def messages(self, mode: str, image: Any = None) -> list[dict[str, Any]]:
        """Conversational messages: an optional system turn and one user turn of picture, then text.

        Args:
            mode: as in `text`.
            image: put into the image block as `image`; None leaves a bare placeholder, for a processor that receives
                its pictures separately.
        """
        block: dict[str, Any] = {"type": "image"} if image is None else {"type": "image", "image": image}
        content: list[dict[str, Any]] = [block, {"type": "text", "text": self.text(mode)}]
        if self.vision_id:
            # A text block gives the very string of `add_vision_id=True`, with any chat template.
            content.insert(0, {"type": "text", "text": _VISION_ID})
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system is not None:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        return turns


PRESETS = {
    "thurl": PromptPreset(name="thurl"),
    # For `TianheWu/VisualQuality-R1-7B` as its README calls it.
    "official": PromptPreset(name="official", vision_id=True),
}


def save_prompt(folder: str | os.PathLike[str], preset: PromptPreset) -> Path:
    """Write `preset` as `thurl_prompt.json` beside a model, so the model is scored with the question it learnt."""
    path = Path(folder) / PROMPT_FILE
    write_atomically(path, json.dumps(asdict(preset), indent=2, ensure_ascii=False) + "\n")
    return path


def load_prompt(folder: str | os.PathLike[str]) -> PromptPreset | None:
    """Read `thurl_prompt.json` from `folder`; None when there is none.

    Unknown keys are dropped with a warning, so that a file of a newer version can be read.

    Raises:
        DataError: the file is no JSON object, lacks the question or holds values of the wrong type.
    """
    path = Path(folder) / PROMPT_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error}): save the prompt again or delete the file") from None
    if not isinstance(values, dict) or "question" not in values:
        raise DataError(f"{path} holds no `question`: save the prompt again or delete the file")
    known = {field.name for field in fields(PromptPreset)}
    if unknown := sorted(set(values) - known):
        logger.warning("%s: unknown keys %s are ignored (written by a newer version?)", path, ", ".join(unknown))
    try:
        return PromptPreset(**{key: value for key, value in values.items() if key in known})
    except UsageError as error:
        raise DataError(f"{path}: {error}") from None
