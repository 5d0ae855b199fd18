"""Reading answers: what counts, what is marked as unreadable, and that nothing is guessed."""

import pytest

from thurl.text.answers import CHOICES, canonical_answer, choice_kind, extract_answer


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("2 + 2 = 4\n#### 18", "18", "18"),
        ("#### 1,250", "1250", "1250"),
        ("#### $1,250.50.", "1250.5", "1250.5"),
        ("#### $ 18", "18", "18"),
        ("#### -5", "-5", "-5"),
        ("#### \N{MINUS SIGN}5", "-5", "-5"),
        ("#### 50%", "50", "50"),
        ("#### 007", "7", "7"),
        ("#### -0.0", "0", "0"),
        ("The answer is: 3.50", "3.5", "3.5"),
        ("the answer is **18**.", "18", "18"),
        ("so the answer is 18 dollars.", "18", "18"),
        (r"hence \boxed{7}", "7", "7"),
        ("#### 18\nThe answer is: 18", "18", "18"),
        # Markers that disagree, no marker, or no number behind it.
        ("#### 18\n#### 19", None, "19"),
        ("18", None, "18"),
        ("it costs 3 and then 18 dollars", None, "18"),
        ("#### x = 3", None, "3"),
        ("#### half", None, None),
        ("####", None, None),
        ("", None, None),
        # Not numbers we know how to compare: a fraction, a formula, misplaced separators, an exponent.
        ("#### 3/4", None, "4"),
        (r"The answer is: $\frac{1}{2}$", None, "2"),
        ("#### 1e5", None, None),
        ("#### 10,10", None, None),
        ("#### 1.2.3", None, None),
    ],
)
def test_numbers(text, strict, lenient):
    assert extract_answer(text, "number") == strict
    assert extract_answer(text, "number", "lenient") == lenient


@pytest.mark.parametrize(
    ("text", "kind", "strict", "lenient"),
    [
        ("the correct answer is true", "boolean", "true", "true"),
        ("TRUE.", "boolean", "true", "true"),
        ("true, that is: true", "boolean", "true", "true"),
        ("true or false?", "boolean", None, "true"),
        ("untrue", "boolean", None, None),
        ("yes", "boolean", None, None),
        ("the correct answer is answer3", "answer", "answer3", "answer3"),
        ("answer10", "answer", None, None),
        ("answer 1", "answer", None, None),
        ("answer2 and not answer1", "answer", None, "answer2"),
        ("ending4", "ending", "ending4", "ending4"),
        ("ending5", "ending", None, None),
        ("solution2", "solution", "solution2", "solution2"),
        ("option1", "option", "option1", "option1"),
        ("option1", "solution", None, None),
        ("", "option", None, None),
    ],
)
def test_choices(text, kind, strict, lenient):
    assert extract_answer(text, kind) == strict
    assert extract_answer(text, kind, "lenient") == lenient


def test_text_is_compared_whole():
    assert extract_answer(" 3142 \n", "text") == "3142"
    assert extract_answer(" \n", "text") is None


def test_right_answers_are_their_own_canonical_form():
    for kind, words in CHOICES.items():
        for word in words:
            assert choice_kind(f" {word.upper()} ") == kind
            assert canonical_answer(word.upper(), kind) == word == extract_answer(word, kind)
    assert choice_kind("answer6") is None and canonical_answer("answer6", "answer") is None
    assert canonical_answer("1,000.0", "number") == "1000" and canonical_answer("one", "number") is None
    assert canonical_answer("  ", "text") is None


def test_long_numbers_are_compared_digit_by_digit():
    first, second = "1" * 40, "1" * 39 + "2"
    assert extract_answer(f"#### {first}", "number") == first != canonical_answer(second, "number")
