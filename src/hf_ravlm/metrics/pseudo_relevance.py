"""Which passages hold an answer, for data sets that do not say which passage is the right one.

`hit_at_k` of `relevance_from_answers` is what the papers on OK-VQA call PRRecall@K, pseudo-relevance recall;
`precision_at_k` is their precision. "Pseudo", since a passage may hold the words of the answer and say nothing about
the question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError


_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?")
_TOLERANCE = 0.1


def relevance_from_answers(
    passages: Sequence[Sequence[str]],
    answers: Sequence[Sequence[str]],
    match: Literal["substring", "word", "numeric"] = "substring",
) -> npt.NDArray[np.bool_]:
    """Mark which passages hold any of the answers.

    Args:
        passages (`Q` sequences of `str`): The texts that were found, best first. Rows may differ in length; short ones
            are filled with `False`.
        answers (`Q` sequences of `str`): The accepted answers. Pass only that of the majority for what RA-VQA calls
            "gold" recall and precision.
        match (`str`):
            - `"substring"`: the lower-cased answer is part of the lower-cased passage, as in the published figures;
              "on" is found in "contract".
            - `"word"`: it also begins and ends at the border of a word.
            - `"numeric"`: a number in the passage is within 10 % of the number that is the answer.

    Returns:
        `np.ndarray` of shape `(Q, K)` and type bool, `K` the length of the longest row of passages.

    Raises:
        InvalidInputError: The two have different lengths, a string stands where a list belongs, a query has no answer,
            or one that is empty or not a number.

    Example:

    >>> relevance_from_answers([["A contract.", "It lies on top."]], [["on"]])
    array([[ True,  True]])
    >>> relevance_from_answers([["A contract.", "It lies on top."]], [["on"]], match="word")
    array([[False,  True]])
    >>> relevance_from_answers([["It is 1,052 m high.", "Built in 1889."]], [["1000"]], match="numeric")
    array([[ True, False]])
    """
    if match not in _MATCHERS:
        raise InvalidInputError(f"match={match!r} is not known. Choose one of {', '.join(_MATCHERS)}.")
    if len(passages) != len(answers):
        raise InvalidInputError(f"{len(passages)} rows of passages came with {len(answers)} rows of answers.")
    for name, rows in {"passages": passages, "answers": answers}.items():
        if strings := [row for row in rows if isinstance(row, str)]:
            raise InvalidInputError(f"{name} holds {strings[0]!r}; each query needs a list of strings.")
    relevant = np.zeros((len(passages), max(map(len, passages), default=0)), dtype=np.bool_)  # (Q, K)
    for marks, texts, accepted in zip(relevant, passages, answers, strict=True):
        if not accepted or not all(answer.strip() for answer in accepted):
            raise InvalidInputError(f"Every query needs answers that are not empty; came: {accepted!r}.")
        finders = [_MATCHERS[match](answer) for answer in accepted]
        marks[: len(texts)] = [any(finds(text) for finds in finders) for text in texts]
    return relevant


def _substring(answer: str) -> Callable[[str], bool]:
    lowered = answer.lower()
    return lambda text: lowered in text.lower()


def _word(answer: str) -> Callable[[str], bool]:
    pattern = re.compile(rf"(?<!\w){re.escape(answer.strip().lower())}(?!\w)")
    return lambda text: pattern.search(text.lower()) is not None


def _numeric(answer: str) -> Callable[[str], bool]:
    try:
        right = float(answer.replace(",", ""))
    except ValueError:
        raise InvalidInputError(f'The answer {answer!r} is not a number; use match="word" for words.') from None
    return lambda text: any(
        abs(float(number.replace(",", "")) - right) <= _TOLERANCE * abs(right) for number in _NUMBER.findall(text)
    )


_MATCHERS = {"substring": _substring, "word": _word, "numeric": _numeric}
