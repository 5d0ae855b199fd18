import json
from pathlib import Path

import pytest

from thurl.rl.parsing import format_reward, parse_score


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vqr1_rewards.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["number_cases"], ids=lambda case: case["text"])
def test_golden_numbers(case):
    assert parse_score(case["text"], mode="official") == case["expected"]
    assert parse_score(f"<think>9</think><answer> {case['text']} </answer>", mode="official") == case["expected"]


@pytest.mark.parametrize("case", GOLDEN["reward_cases"], ids=lambda case: case["name"])
def test_golden_completions(case):
    scores = [parse_score(text, mode="official") for text in case["completions"]]
    assert scores == case["official_score"]
    random_officially = [score is None for score in scores]
    assert random_officially == case["official_random_fallback"]
    assert format_reward(case["completions"]) == case["official_format_reward"]


def test_golden_format():
    texts = [case["text"] for case in GOLDEN["format_cases"]]
    assert format_reward(texts, mode="official") == [case["expected"] for case in GOLDEN["format_cases"]]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("3.5", 3.5),
        (" 4 ", 4.0),
        ("\n2.25\n", 2.25),
        (".5", 0.5),
        ("3.", 3.0),
        ("-2", -2.0),
        ("+3", 3.0),
        ("10", 10.0),
    ],
)
def test_strict_takes_one_plain_number(answer, score):
    assert parse_score(f"<think>2 dogs</think><answer>{answer}</answer>") == score


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "good",
        "4,5",
        "4/5",
        "1e3",
        "between 2 and 3",
        "Score: 4",
        "5.00.1",
        "0x1F",
        "\u22122",
        "\u0664",
        "nan",
        "inf",
        "9" * 400,
    ],
)
def test_strict_marks_everything_else_as_failed(answer):
    assert parse_score(f"<think>x</think><answer>{answer}</answer>") is None


@pytest.mark.parametrize("text", ["", "4.5", "I see 2 dogs", "<answer>4.5", "4.5</answer>", "<ANSWER>4</ANSWER>"])
def test_strict_needs_the_answer_tag(text):
    assert parse_score(text) is None


def test_the_last_answer_counts():
    text = "<answer>1</answer><think>no</think><answer>4.5</answer>"
    assert parse_score(text) == parse_score(text, mode="official") == 4.5
    assert parse_score("<answer>4</answer><answer>none</answer>") is None


def test_official_number_too_long_for_a_float():
    assert parse_score("9" * 400, mode="official") == float("inf")


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>sharp</think><answer>3</answer>", 1.0),
        ("\n<think>sharp</think>\n<answer> 3.25 </answer>\n", 1.0),
        ("<think></think><answer>3</answer>", 0.0),
        ("<think>a</think><answer>good</answer>", 0.0),
        ("<think>a</think><answer></answer>", 0.0),
        ("<think>a</think><answer>1</answer> <answer>2</answer>", 0.0),
        ("<think>a</think>b</think><answer>3</answer>", 0.0),
        ("<think>a</think>x<answer>3</answer>", 0.0),
        ("well <think>a</think><answer>3</answer>", 0.0),
    ],
)
def test_strict_format(text, reward):
    assert format_reward([text], mode="strict") == [reward]


def test_unknown_mode():
    with pytest.raises(ValueError, match="'lenient'.*'strict' or 'official'"):
        parse_score("4", mode="lenient")
    with pytest.raises(ValueError, match="'strict' or 'official'"):
        format_reward([], mode="loose")
