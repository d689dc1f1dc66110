"""Knows when an answer in words is right: exact match and token F1 of SQuAD. Strings in, numbers out.

Definitions as in the official SQuAD evaluation script (Rajpurkar et al. 2016,
https://huggingface.co/papers/1606.05250; `evaluate-v2.0.py` of Rajpurkar et al. 2018,
https://huggingface.co/papers/1806.03822). Every function judges one prediction; the mean over a data set is the
caller's, who may want it per question kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..errors import InvalidInputError
from .answers import normalize_answer


def exact_match(prediction: str, answers: str | Sequence[str]) -> float:
    """1.0 if the normalised `prediction` equals any of the normalised `answers`, else 0.0.

    Args:
        prediction (`str`): What the model said.
        answers (`str` or sequence of `str`): The accepted answers; one is enough.

    Raises:
        InvalidInputError: `answers` is empty: nothing can be right.

    Example:

    ```python
    >>> exact_match("the Euro.", ["Euro", "euros"])
    1.0
    >>> exact_match("Euro, Swiss franc", "Euro")
    0.0

    ```
    """
    said = normalize_answer(prediction)
    return float(any(said == normalize_answer(answer) for answer in _accepted(answers)))


def token_f1(prediction: str, answers: str | Sequence[str]) -> float:
    """Overlap of words between the normalised `prediction` and the best-matching of the `answers`, in 0..1.

    With the word multisets `p` and `a`, precision is `|p ∩ a| / |p|`, recall is `|p ∩ a| / |a|`, and F1 is their
    harmonic mean. If either side has no words left, F1 is 1 when both are empty and 0 otherwise (the rule of SQuAD 2).

    Args:
        prediction (`str`): What the model said.
        answers (`str` or sequence of `str`): The accepted answers; the highest F1 counts.

    Raises:
        InvalidInputError: `answers` is empty: nothing can be right.

    Example: two of three words predicted are among the four of the answer, so precision 2/3, recall 1/2.

    ```python
    >>> round(token_f1("red means blood", ["red: blood of heroes"]), 4)
    0.5714

    ```
    """
    said = normalize_answer(prediction).split()
    return max(_f1(said, normalize_answer(answer).split()) for answer in _accepted(answers))


def _f1(said: list[str], accepted: list[str]) -> float:
    if not said or not accepted:
        return float(said == accepted)
    num_common = (Counter(said) & Counter(accepted)).total()
    # 2·P·R / (P + R) with P = common/said and R = common/accepted
    return 2 * num_common / (len(said) + len(accepted))


def _accepted(answers: str | Sequence[str]) -> Sequence[str]:
    """A lone string is one answer, not a sequence of letters."""
    if isinstance(answers, str):
        return [answers]
    if len(answers) == 0:
        raise InvalidInputError("No accepted answer was given (answers=[]); pass at least one string.")
    return answers
