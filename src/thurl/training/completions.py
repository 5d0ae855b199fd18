"""The table of completions that TRL writes with `log_completions: true`, as lines that any editor opens.

TRL's own file, `completions/completions_<step>.parquet`, has one row per completion of the last batch: `step`,
`prompt`, `completion`, a column per reward function, `advantage`, and what reward functions add by `log_extra`; the
same rows go to wandb and trackio. Conversations are turned into text before: a prompt with a picture has parts of
different shapes, for which wandb's table ends the training with a TypeError (TRL 1.16, wandb 0.31).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thurl.training.results import plain, write_atomically


__all__ = ["completion_table", "conversation_text", "write_completion_lines"]


def completion_table(output_dir: str, step: int) -> Path:
    """Where TRL writes the table of a step."""
    return Path(output_dir) / "completions" / f"completions_{step:05d}.parquet"


def write_completion_lines(table: Path, reward_names: Sequence[str]) -> Path:
    """Write a table again as `.jsonl` beside it.

    Args:
        table: as TRL wrote it.
        reward_names: the columns of the reward functions.

    Returns:
        the new file: per line `step`, `image_id` where there are pictures, `prompt`, `completion`, `score`
        and `failed` where scores are read, `rewards` by function, `reward` (their plain sum, null where none applies),
        `advantage`, and further columns as they are. What is undefined is null, never a number.
    """
    import pandas

    lines = []
    for row in pandas.read_parquet(table).to_dict("records"):
        row = plain(row)
        rewards = {name: row.pop(name) for name in reward_names}
        known = [reward for reward in rewards.values() if reward is not None]
        row["rewards"] = rewards
        row["reward"] = sum(known) if known else None
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False))
    target = table.with_suffix(".jsonl")
    write_atomically(target, "".join(f"{line}\n" for line in lines))
    return target


def conversation_text(messages: Any) -> str:
    """Words of a conversation: of each message its text, or the texts among its parts; text stays as it is."""
    if isinstance(messages, str):
        return messages
    words = []
    for message in messages:
        content = message["content"]
        words += [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
    return "\n".join(words)
