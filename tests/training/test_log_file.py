"""The log that every training writes, and the table of completions as lines."""

import json
import logging
from types import SimpleNamespace

import pandas
import pytest

from thurl.training.completions import completion_table, conversation_text, write_completion_lines
from thurl.training.log_file import LOG_FILE, LogFile


def state(*entries):
    return SimpleNamespace(log_history=list(entries))


def lines(folder):
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def log(callback, arguments, *entries):
    for place in range(len(entries)):
        callback.on_log(arguments, state(*entries[: place + 1]), None)


def arguments(folder, should_save=True):
    return SimpleNamespace(output_dir=str(folder), should_save=should_save)


ONE, TWO, THREE = ({"loss": loss, "step": step} for step, loss in enumerate((1.0, 0.5, 0.25), start=1))


def test_a_training_begins_the_file_anew_after_what_came_before_it(tmp_path):
    (tmp_path / LOG_FILE).write_text('{"step": 9}\n')
    callback, before = LogFile(), {"eval_loss": 2.0, "step": 0}
    log(callback, arguments(tmp_path), before)
    callback.on_train_begin(arguments(tmp_path), state(), None)
    log(callback, arguments(tmp_path), ONE, TWO)
    assert lines(tmp_path) == [before, ONE, TWO]


def test_a_resumed_run_ends_with_the_file_of_an_uninterrupted_one(tmp_path):
    (tmp_path / LOG_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in (ONE, TWO)) + '{"loss": 0.2')
    callback = LogFile()
    callback.on_train_begin(arguments(tmp_path), state(ONE), None)  # the checkpoint is older than the kill
    callback.on_log(arguments(tmp_path), state(ONE, TWO), None)
    callback.on_log(arguments(tmp_path), state(ONE, TWO, THREE), None)
    assert lines(tmp_path) == [ONE, TWO, THREE]


def test_undefined_numbers_are_null(tmp_path):
    log(LogFile(), arguments(tmp_path), {"loss": float("nan"), "step": 1})
    assert lines(tmp_path) == [{"loss": None, "step": 1}]


def test_processes_that_may_not_save_write_nothing(tmp_path):
    callback = LogFile()
    callback.on_train_begin(arguments(tmp_path, False), state(), None)
    log(callback, arguments(tmp_path, False), ONE)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, caplog):
    (tmp_path / LOG_FILE).mkdir()
    callback = LogFile()
    with caplog.at_level(logging.WARNING):
        callback.on_train_begin(arguments(tmp_path), state(), None)
        log(callback, arguments(tmp_path), ONE, TWO)
    assert len(caplog.messages) == 1 and "the training goes on" in caplog.messages[0]


# --- completions -----------------------------------------------------------------------------------------------------


def test_a_completion_without_a_score_is_marked_and_undefined(tmp_path):
    table = completion_table(str(tmp_path), 7)
    assert table.name == "completions_00007.parquet"
    table.parent.mkdir()
    pandas.DataFrame(
        {
            "step": [7, 7],
            "prompt": ["Rate it.", "Rate it."],
            "completion": ["<answer>4</answer>", "none"],
            "thurstone_fidelity": [0.9, float("nan")],
            "format": [1.0, float("nan")],
            "image_id": ["five/a.png", "five/a.png"],
            "score": [4.0, None],
            "failed": [False, True],
            "advantage": [0.5, -0.5],
        }
    ).to_parquet(table)
    written = write_completion_lines(table, ["thurstone_fidelity", "format"])
    read, failed = [json.loads(line) for line in written.read_text().splitlines()]
    assert written.name == "completions_00007.jsonl"
    assert (read["prompt"], read["completion"]) == ("Rate it.", "<answer>4</answer>")
    assert read["rewards"] == {"thurstone_fidelity": 0.9, "format": 1.0} and read["reward"] == pytest.approx(1.9)
    assert (read["image_id"], read["score"], read["failed"]) == ("five/a.png", 4.0, False)
    assert (failed["score"], failed["failed"], failed["reward"]) == (None, True, None)


def test_the_words_of_a_conversation():
    prompt = [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Rate it."}]},
    ]
    assert conversation_text(prompt) == "Be fair.\nRate it."
    assert conversation_text("as it is") == "as it is"
