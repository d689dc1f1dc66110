"""Knows whether confidence deserves its name: expected calibration error, AUROC, accuracy and risk by coverage. NumPy.

A confidence is a number in 0..1 that a model gives with its answer; right and wrong are what came of it. All functions
take one of each per question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError


FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityBin:
    """The questions whose confidence lies in one interval.

    Attributes:
        lower, upper: The interval, without its lower end (the first one with it).
        count: How many questions.
        confidence, accuracy: Their means; 0 where there are none.
    """

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float


def reliability_bins(confidences: npt.ArrayLike, correct: npt.ArrayLike, num_bins: int = 15) -> list[ReliabilityBin]:
    """Confidence beside accuracy in `num_bins` intervals of one width: what a reliability diagram draws.

    Raises:
        InvalidInputError: The two differ in shape, or a confidence is not in 0..1.

    Example:

    ```python
    >>> bins = reliability_bins([0.25, 0.75, 1.0], [0, 1, 1], num_bins=2)
    >>> [(bin.count, bin.confidence, bin.accuracy) for bin in bins]
    [(1, 0.25, 0.0), (2, 0.875, 1.0)]

    ```
    """
    certain, right = _checked(confidences, correct)
    if num_bins < 1:
        raise InvalidInputError(f"num_bins must be at least 1; came: {num_bins}.")
    places = np.clip(np.ceil(certain * num_bins).astype(int) - 1, 0, num_bins - 1)
    bins = []
    for place in range(num_bins):
        inside = places == place
        count = int(inside.sum())
        means = (float(certain[inside].mean()), float(right[inside].mean())) if count else (0.0, 0.0)
        bins.append(ReliabilityBin(place / num_bins, (place + 1) / num_bins, count, *means))
    return bins


def expected_calibration_error(confidences: npt.ArrayLike, correct: npt.ArrayLike, num_bins: int = 15) -> float:
    """ECE: the gap between confidence and accuracy per bin, weighted by the questions in it; 0 is perfect.

    Guo et al. 2017, https://huggingface.co/papers/1706.04599, with their 15 bins of one width.

    Args:
        confidences (`np.ndarray` of shape `(Q,)`): In 0..1.
        correct (`np.ndarray` of shape `(Q,)`): 1 for right, 0 for wrong, or a score between.
        num_bins (`int`): More bins see more, and are noisier.

    Raises:
        InvalidInputError: There is no question, the two differ in shape, or a confidence is not in 0..1.

    Example: 90 % sure each time, right half of the times.

    ```python
    >>> round(expected_calibration_error([0.9, 0.9], [1, 0]), 6)
    0.4

    ```
    """
    bins = reliability_bins(confidences, correct, num_bins)
    total = sum(bin.count for bin in bins)
    if total == 0:
        raise InvalidInputError("The calibration error of no questions is undefined.")
    return sum(bin.count * abs(bin.confidence - bin.accuracy) for bin in bins) / total


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """How often a positive has a higher score than a negative, ties counting half; 0.5 is chance.

    Says of a confidence whether it tells right from wrong, and of a gate whether it tells questions that need
    retrieval.

    Returns:
        `float`: `nan` where there are only positives or only negatives.

    Example: of the four pairs, three are in order.

    ```python
    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75

    ```
    """
    values, marks = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=np.bool_)
    if values.ndim != 1 or values.shape != marks.shape:
        raise InvalidInputError(f"scores {values.shape} and positive {marks.shape} must have one shape (questions,).")
    num_positive, num_negative = int(marks.sum()), int((~marks).sum())
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = counts.cumsum() - (counts - 1) / 2  # 1-based, ties share the mean of their ranks
    rank_sum = mean_ranks[places][marks].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def accuracy_by_coverage(confidences: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """What the accuracy would be, if only the surest answers were given: a curve for choosing when to abstain.

    Returns:
        Two `np.ndarray` of shape `(Q,)`: the share of the questions answered, `1/Q .. 1`, and the accuracy on them.
        Among equal confidences the accuracy is that of all of them, so that their order does not matter.

    Example:

    ```python
    >>> coverage, accuracy = accuracy_by_coverage([0.9, 0.2, 0.8, 0.1], [1, 0, 1, 1])
    >>> coverage.tolist(), accuracy.round(2).tolist()
    ([0.25, 0.5, 0.75, 1.0], [1.0, 1.0, 0.67, 0.75])

    ```
    """
    certain, right = _checked(confidences, correct)
    order = np.argsort(-certain, kind="stable")
    certain, right = certain[order], right[order]
    _, places, counts = np.unique(-certain, return_inverse=True, return_counts=True)
    sums = np.bincount(places, weights=right, minlength=len(counts)) if len(right) else np.zeros(0)
    shared = (sums / counts)[places] if len(right) else right
    numbers = np.arange(1, len(right) + 1)
    return numbers / max(1, len(right)), shared.cumsum() / numbers


def area_under_risk_coverage(confidences: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """AURC: the mean share of wrong answers over all coverages, surest answers first; lower is better.

    Geifman, El-Yaniv 2017, https://huggingface.co/papers/1705.08500; one number for `accuracy_by_coverage`.

    Raises:
        InvalidInputError: There is no answer, the two differ in shape, or a confidence is not in 0..1.

    Example: risks 0, 1/2 and 1/3 at a coverage of 1/3, 2/3 and 1.

    ```python
    >>> round(area_under_risk_coverage([0.9, 0.8, 0.7], [1, 0, 1]), 4)
    0.2778

    ```
    """
    _, accuracy = accuracy_by_coverage(confidences, correct)
    if len(accuracy) == 0:
        raise InvalidInputError("The risk of no answers is undefined.")
    return float((1 - accuracy).mean())


def _checked(confidences: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    certain, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if certain.ndim != 1 or certain.shape != right.shape:
        raise InvalidInputError(
            f"confidences {certain.shape} and correct {right.shape} must have one shape (questions,)."
        )
    if not ((certain >= 0) & (certain <= 1)).all():
        raise InvalidInputError("Confidences must be probabilities, in 0..1; a logit or NaN came.")
    return certain, right
