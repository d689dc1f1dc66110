"""The SQuAD metrics against published and hand-computed cases."""

from __future__ import annotations

import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.metrics import exact_match, normalize_answer, token_f1


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Eiffel Tower", "eiffel tower"),
        ("an apple, a day.", "apple day"),
        ("  white \t space\n here ", "white space here"),
        ("well-known", "wellknown"),  # deleted, not replaced by a space
        ("Washington, D.C.", "washington dc"),
        ("theatre another analog", "theatre another analog"),  # articles only as whole words
        ("A.", ""),
        ("the", ""),
        ("«Côte d’Ivoire»", "«côte d’ivoire»"),  # only ASCII punctuation goes
        ("the-a", "thea"),  # punctuation goes before articles: the order of the official script
        ("北京", "北京"),
    ],
)
def test_normalize_answer(text, normalised):
    assert normalize_answer(text) == normalised


def test_normalising_twice_changes_nothing():
    for text in ["The  U.S. dollar!", "a an the", "O'Higgins' 3,5 %"]:
        assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


# Question 56be4db0acb8001400a502ec of the SQuAD development set ("Where did Super Bowl 50 take place?") and its three
# answers; question 56be4db0acb8001400a502ee of the SQuAD metric cards of `datasets` and `evaluate` ("1976").
SUPER_BOWL = [
    "Santa Clara, California",
    "Levi's Stadium",
    "Levi's Stadium in the San Francisco Bay Area at Santa Clara, California.",
]


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1"),
    [
        ("1976", ["1976"], 1.0, 1.0),
        ("1999", ["1976"], 0.0, 0.0),
        ("Santa Clara California", SUPER_BOWL, 1.0, 1.0),
        ("the levis stadium", SUPER_BOWL, 1.0, 1.0),
        # words {santa, clara} of {santa, clara, california}: P = 1, R = 2/3
        ("Santa Clara", SUPER_BOWL, 0.0, 0.8),
        # {in, levis, stadium} against {levis, stadium}: P = 2/3, R = 1
        ("in Levi's Stadium", SUPER_BOWL, 0.0, 0.8),
        # multisets, not sets: one "red" of three matches, P = 1/3, R = 1
        ("red red red", ["red"], 0.0, 0.5),
        ("red red", ["red red blue"], 0.0, 0.8),
        ("", ["the"], 1.0, 1.0),  # both empty after normalising
        ("", ["red"], 0.0, 0.0),
        ("red", ["a"], 0.0, 0.0),
    ],
)
def test_exact_match_and_f1(prediction, answers, em, f1):
    assert exact_match(prediction, answers) == em
    assert token_f1(prediction, answers) == pytest.approx(f1)


def test_f1_is_symmetric_and_order_free():
    assert token_f1("red and white", "white stars") == token_f1("white stars", "white and red")


def test_lone_string_is_one_answer():
    assert exact_match("e", "euro") == 0.0
    assert exact_match("euro", "euro") == 1.0


@pytest.mark.parametrize("metric", [exact_match, token_f1])
def test_no_answers_is_an_error(metric):
    with pytest.raises(InvalidInputError, match="at least one"):
        metric("euro", [])
