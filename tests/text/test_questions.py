"""Readers of question files: the layouts as released, and what is refused."""

import json
import logging

import pytest

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.text.commands import COMMANDS, command_questions
from thurl.text.prompts import PromptStyle, training_rows
from thurl.text.questions import Question, read_questions, shuffle_answers


BOOLQ = {
    "instruction": "Please answer the following question with true or false, question: is it?\n\nAnswer format: x",
    "input": "",
    "output": "the correct answer is true",
    "answer": "true",
}
PIQA = {
    "instruction": "Which?",
    "input": "Solution1: a Solution2: b",
    "output": "the correct answer is solution2",
    "answer": "solution2",
}


def write(path, rows, lines=True):
    text = "\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_commonsense(tmp_path):
    first, second = read_questions("commonsense", write(tmp_path / "boolq" / "test.json", [BOOLQ, PIQA], lines=False))
    assert first == Question(BOOLQ["instruction"], "boolq", BOOLQ["output"], "true", "boolean")
    assert second.prompt == "Which?\n\nSolution1: a Solution2: b" and second.kind == "solution"


def test_gsm8k_takes_the_last_marker(tmp_path):
    rows = [{"question": "How many?", "answer": "The answer is 3 at first, <<3+1,000=1003>>.\n#### 1,003"}]
    (question,) = read_questions("gsm8k", write(tmp_path / "gsm8k.jsonl", rows), task="GSM8K")
    assert (question.task, question.answer, question.kind) == ("GSM8K", "1003", "number")
    assert question.completion == rows[0]["answer"]


def test_metamath_keeps_what_cannot_be_checked_for_training(tmp_path):
    rows = [
        {"query": "a", "response": "So.\n#### 4\nThe answer is: 4"},
        {"query": "b", "response": r"The answer is: $\frac{1}{2}$"},
    ]
    for lines in (True, False):  # the release is one list, the Hub's conversion has lines
        path = write(tmp_path / f"m{lines}.json", rows, lines)
        first, second = read_questions("metamath", path)
        assert first.answer == "4" and second.answer is None and second.completion


def test_ones_own_prompts_and_conversations(tmp_path):
    rows = [{"prompt": "2+2=", "completion": "4", "task": "sums"}, {"prompt": "3+3=", "answer": 6}]
    first, second = read_questions("prompt_completion", write(tmp_path / "own.jsonl", rows), kind="number")
    assert (first.task, first.answer) == ("sums", None)  # "4" without a marker: trained on, not compared
    assert (second.task, second.completion, second.answer) == ("own", None, "6")
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "#### 4"}]
    (chat,) = read_questions("chat", write(tmp_path / "chat.jsonl", [{"messages": turns}]), kind="number")
    assert (chat.prompt, chat.completion, chat.answer) == ((turns[0],), "#### 4", "4")


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        ("commonsense", {**BOOLQ, "answer": "maybe"}, "`answer` is 'maybe', but must be one of true, false"),
        ("commonsense", {"instruction": "x", "answer": "true"}, "`output` is missing"),
        ("commonsense", {**BOOLQ, "input": 3}, "`input` is 3"),
        ("gsm8k", {"question": "x", "answer": "18"}, "must end with `#### ` and a number"),
        ("gsm8k", {"question": "x", "answer": "#### many"}, "must end with"),
        ("gsm8k", {"question": "", "answer": "#### 1"}, "`question` is ''"),
        ("metamath", {"query": "x", "response": None}, "`response` is None"),
        ("prompt_completion", {"prompt": "x"}, "neither a completion nor an `answer`"),
        ("prompt_completion", {"prompt": "x", "completion": " "}, "must be text"),
        ("prompt_completion", {"prompt": "x", "answer": ""}, "is no answer of the kind `text`"),
        ("prompt_completion", {"prompt": "x", "answer": "1", "task": 3}, "`task` is 3"),
        ("chat", {"messages": []}, "`messages` is missing or no list"),
        ("chat", {"messages": [{"role": "tool", "content": "x"}]}, "not system, user or assistant"),
        ("chat", {"messages": [{"role": "user", "content": 1}]}, "no text `role` and `content`"),
        ("chat", {"messages": [{"role": "assistant", "content": "x"}]}, "a message of the user"),
        ("chat", {"messages": [{"role": "user", "content": "x"}]}, "neither a message of the assistant nor"),
    ],
)
def test_a_broken_row_stops_the_reading_and_is_named(tmp_path, format, row, message):
    good = {
        "commonsense": BOOLQ,
        "gsm8k": {"question": "x", "answer": "#### 1"},
        "metamath": {"query": "x", "response": "y"},
        "prompt_completion": {"prompt": "x", "completion": "y"},
        "chat": {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    }[format]
    path = write(tmp_path / "rows.json", [good, row, good], lines=format != "commonsense")
    with pytest.raises(DataError, match=r"1 of 3 rows are no .*row 2: ") as error:
        read_questions(format, path)
    assert message in str(error.value)


def test_many_broken_rows_are_counted_and_a_few_shown(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"question": "x", "answer": "no"}] * 8)
    with pytest.raises(DataError, match="8 of 8 rows.*row 5.*and 3 more"):
        read_questions("gsm8k", path)


def test_files_that_are_none_of_these(tmp_path):
    with pytest.raises(MissingRequirementError, match="no such file"):
        read_questions("gsm8k", tmp_path / "gone.jsonl")
    with pytest.raises(UsageError, match="not one of commonsense"):
        read_questions("squad", tmp_path / "gone.jsonl")
    for name, text, message in [
        ("a.jsonl", "", "holds no question"),
        ("b.jsonl", '{"question": "x"\n', "line 1: not JSON"),
        ("c.jsonl", '"text"\n', r"rows \[1\] are no objects"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message):
            read_questions("gsm8k", tmp_path / name)
    (tmp_path / "d.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match="must hold a list"):
        read_questions("commonsense", tmp_path / "d.json")
    (tmp_path / "e.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_questions("gsm8k", tmp_path / "e.jsonl")


def test_completions_that_contradict_their_answers_are_warned_of(tmp_path, caplog):
    path = write(tmp_path / "x.json", [BOOLQ, {**BOOLQ, "answer": "false"}], lines=False)
    with caplog.at_level(logging.WARNING):
        questions = read_questions("commonsense", path)
    assert [question.answer for question in questions] == ["true", "false"]
    assert "the completions of 1 of 2 rows say another answer" in caplog.text


def test_a_part_is_drawn_without_order_or_repetition_changing(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"prompt": str(n), "completion": "y"} for n in range(50)])

    def drawn(seed):
        return [int(q.prompt) for q in read_questions("prompt_completion", path, max_rows=20, seed=seed)]

    assert drawn(0) == sorted(set(drawn(0))) and len(drawn(0)) == 20
    assert drawn(0) == drawn(0) != drawn(1)
    assert len(read_questions("prompt_completion", path, max_rows=99)) == 50


def test_shuffled_answers_stay_in_their_task_and_leave_their_question():
    questions = [Question(str(n), f"task{n % 2}", f"c{n}", f"a{n}") for n in range(40)]
    shuffled = shuffle_answers(questions, 0)
    assert [(q.prompt, q.task) for q in shuffled] == [(q.prompt, q.task) for q in questions]
    assert all(now.answer != then.answer for now, then in zip(shuffled, questions, strict=True))
    assert all(now.completion == f"c{now.answer[1:]}" for now in shuffled)  # an answer keeps its completion
    for task in ("task0", "task1"):
        assert sorted(q.answer for q in shuffled if q.task == task) == sorted(
            q.answer for q in questions if q.task == task
        )
    assert shuffle_answers(questions, 0) == shuffled != shuffle_answers(questions, 1)


def test_commands_do_what_they_say_and_never_share_digits_between_training_and_test():
    expected = {
        "copy": "3142", "reverse": "2413", "plus_one": "4253", "minus_one": "2031", "rotate": "1423",
        "reverse_plus_one": "3524", "plus_two": "5364", "complement": "6857", "rise": "4253", "fall": "2031",
    }  # fmt: skip
    assert {name: "".join(map(str, act([3, 1, 4, 2]))) for name, (_, act) in COMMANDS.items()} == expected
    letters = [letter for letter, _ in COMMANDS.values()]
    assert [name for name, (letter, _) in COMMANDS.items() if letters.count(letter) > 1] == ["rise", "fall"]
    train = command_questions(list(COMMANDS), 800, split="train", lengths=(3,))
    test = command_questions(list(COMMANDS), 400, split="test", lengths=(3,), seed=5)
    digits = [{question.prompt[2:-1] for question in part} for part in (train, test)]
    assert not digits[0] & digits[1]
    assert [question.task for question in test[: len(COMMANDS)]] == list(COMMANDS)
    for question in train:
        letter, act = COMMANDS[question.task]
        assert question.prompt[0] == letter
        assert question.answer == "".join(map(str, act(list(map(int, question.prompt[2:-1])))))
    with pytest.raises(UsageError, match="choose of copy"):
        command_questions(["copi"], 1, split="train")


def test_prompts():
    text = Question("2+2?", "sums", "4", "4")
    chat = Question(({"role": "user", "content": "2+2?"},), "sums", "4", "4")
    plain = PromptStyle("Q: {question}\nA: ")
    assert training_rows([text], plain) == [{"prompt": "Q: 2+2?\nA: ", "completion": "4"}]
    talk = PromptStyle(chat=True, system="Be brief.")
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    answer = [{"role": "assistant", "content": "4"}]
    assert training_rows([text, chat], talk) == [{"prompt": asked, "completion": answer}] * 2
    with pytest.raises(UsageError, match="is a conversation"):
        plain.prompt(chat)
    with pytest.raises(UsageError, match="exactly once"):
        PromptStyle("Q:")
    with pytest.raises(UsageError, match="no completion to learn"):
        training_rows([Question("x", "t", None, "1")], plain)
