"""Decisions by a threshold, and what they are worth: to retrieve or not, to answer or to abstain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it earns.

    Attributes:
        value: Yes from this score on. Halfway between two scores, `-inf` for always yes, `inf` for never.
        utility: The mean over the questions.
    """

    value: float
    utility: float


@dataclass(frozen=True)
class Abstention:
    """What abstaining did; a share of nothing is `None`.

    Attributes:
        coverage: The share of the questions that were answered.
        accuracy: The share of right answers among those that were given.
        precision: The share of the withheld answers that would have been wrong.
        recall: The share of the wrong answers that were withheld.
    """

    coverage: float
    accuracy: float | None
    precision: float | None
    recall: float | None


def best_threshold(scores: npt.ArrayLike, value_of_yes: npt.ArrayLike, value_of_no: npt.ArrayLike = 0.0) -> Threshold:
    """The threshold with the highest mean utility on these questions; among equals, the one with the most yes.

    Retrieve or not, by the gate's probability: yes is worth the score of the answer with evidence less what a search
    costs, no the score without. Answer or abstain, by the confidence: yes is worth 1 where the answer is right and
    `-penalty` where it is wrong, no is worth 0.

    Args:
        scores (`np.ndarray` of shape `(Q,)`): Higher for yes.
        value_of_yes, value_of_no (`np.ndarray` of shape `(Q,)`, or one number): The utility of either.

    Raises:
        InvalidInputError: There is no question, a value is NaN, or the shapes differ.

    Example: answer from 0.65 on; a wrong answer costs what a right one earns.

    >>> best_threshold([0.2, 0.5, 0.8, 0.9], [-1, -1, 1, 1])
    Threshold(value=0.65, utility=0.5)
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InvalidInputError(f"scores must be of shape (questions,), one question at least; came {values.shape}.")
    try:
        gains = np.broadcast_to(np.asarray(value_of_yes, np.float64) - np.asarray(value_of_no), values.shape)
        base = np.broadcast_to(np.asarray(value_of_no, np.float64), values.shape)
    except ValueError:
        raise InvalidInputError(
            f"The values of yes {np.shape(value_of_yes)} and no {np.shape(value_of_no)} must be one number each, or "
            f"have the shape of the scores {values.shape}."
        ) from None
    if np.isnan(values).any() or np.isnan(gains).any():
        raise InvalidInputError("A score or a value is NaN.")
    levels, places = np.unique(values, return_inverse=True)
    sums = np.bincount(places, gains, minlength=len(levels))
    from_level_on = np.append(sums[::-1].cumsum()[::-1], 0.0)  # yes from the first level on, ..., from none on
    best = int(from_level_on.argmax())
    cuts = np.concatenate([[-np.inf], (levels[:-1] + levels[1:]) / 2, [np.inf]])
    return Threshold(float(cuts[best]), float((from_level_on[best] + base.sum()) / len(values)))


def withholding_threshold(confidences: npt.ArrayLike, correct: npt.ArrayLike, precision: float) -> float:
    """The highest threshold below which at least this share of the answers is wrong; 0, which withholds none, if none.

    Args:
        confidences (`np.ndarray` of shape `(Q,)`): In 0..1.
        correct (`np.ndarray` of shape `(Q,)`): Whether each answer is right.
        precision (`float`): In 0..1.

    Raises:
        InvalidInputError: There is no question, the shapes differ, or the precision is no share.

    Example: two of three withheld answers are wrong.

    >>> withholding_threshold([0.1, 0.2, 0.3, 0.9], [False, False, True, True], precision=0.6)
    0.6
    """
    values, right = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    if values.ndim != 1 or values.shape != right.shape or values.size == 0:
        raise InvalidInputError(
            f"Expected a confidence and a mark for each question; came {values.shape} and {right.shape}."
        )
    if not 0 <= precision <= 1:
        raise InvalidInputError(f"precision={precision}: expected a share in 0..1.")
    levels, places = np.unique(values, return_inverse=True)
    wrong = np.bincount(places, ~right).cumsum() / np.bincount(places).cumsum()
    fitting = np.flatnonzero(wrong >= precision)
    if not len(fitting):
        return 0.0
    cuts = np.append((levels[:-1] + levels[1:]) / 2, 1.1)
    return float(cuts[fitting[-1]])


def abstention(answered: npt.ArrayLike, correct: npt.ArrayLike) -> Abstention:
    """Coverage, accuracy of what was answered, and precision and recall of the abstentions.

    Args:
        answered, correct (`np.ndarray` of shape `(Q,)`, bool): A withheld answer is right if it would have been.

    Raises:
        InvalidInputError: There is no question, or the two are not bool arrays of one shape.

    Example: two of three withheld answers would have been wrong, and one wrong answer was given.

    >>> abstention([True, True, False, False, False], [True, False, False, False, True])
    Abstention(coverage=0.4, accuracy=0.5, precision=0.6666666666666666, recall=0.6666666666666666)
    """
    given, right = np.asarray(answered), np.asarray(correct)
    if given.dtype != np.bool_ or right.dtype != np.bool_ or given.ndim != 1 or given.shape != right.shape:
        raise InvalidInputError(
            f"Expected bool arrays of one shape (questions,); came {given.dtype} {given.shape} and {right.dtype} "
            f"{right.shape}."
        )
    if given.size == 0:
        raise InvalidInputError("Abstention from no questions is undefined.")
    return Abstention(
        coverage=float(given.mean()),
        accuracy=_share(right[given]),
        precision=_share(~right[~given]),
        recall=_share(~given[~right]),
    )


def _share(marks: npt.NDArray[np.bool_]) -> float | None:
    return float(marks.mean()) if marks.size else None
