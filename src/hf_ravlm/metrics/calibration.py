"""Confidence against what was right: calibration error, AUROC, accuracy and risk by coverage, and calibrators.

All functions take one confidence, in 0..1, and one value for what came of it per question, both `(Q,)`: 1 for right, 0
for wrong, or a score between. Other shapes and values are an `InvalidInputError`.

A fitted calibrator maps confidences to probabilities of being right and keeps their order, and so AUROC (isotonic
regression may make neighbours equal). Fit on questions that neither the model nor the report has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError


FloatArray = npt.NDArray[np.float64]

_EPSILON = 1e-6  # confidences of 0 and 1 have no logit
_LOG_TEMPERATURES = (-5.0, 5.0)


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
    """Confidence beside accuracy in `num_bins` intervals of one width, for a reliability diagram.

    Raises:
        InvalidInputError: `num_bins` is below 1.

    >>> bins = reliability_bins([0.25, 0.75, 1.0], [0, 1, 1], num_bins=2)
    >>> [(bin.count, bin.confidence, bin.accuracy) for bin in bins]
    [(1, 0.25, 0.0), (2, 0.875, 1.0)]
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

    Guo et al. 2017, https://huggingface.co/papers/1706.04599, with their 15 bins of one width; more see more, and are
    noisier.

    Raises:
        InvalidInputError: There is no question.

    Example: 90 % sure each time, right half of the times.

    >>> round(expected_calibration_error([0.9, 0.9], [1, 0]), 6)
    0.4
    """
    bins = reliability_bins(confidences, correct, num_bins)
    total = sum(bin.count for bin in bins)
    if total == 0:
        raise InvalidInputError("The calibration error of no questions is undefined.")
    return sum(bin.count * abs(bin.confidence - bin.accuracy) for bin in bins) / total


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """How often a positive has a higher score than a negative, ties counting half; 0.5 is chance.

    Returns:
        `float`: `nan` where there are only positives or only negatives.

    Raises:
        InvalidInputError: The two are not of one shape `(Q,)`.

    Example: of the four pairs, three are in order.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
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

    >>> coverage, accuracy = accuracy_by_coverage([0.9, 0.2, 0.8, 0.1], [1, 0, 1, 1])
    >>> coverage.tolist(), accuracy.round(2).tolist()
    ([0.25, 0.5, 0.75, 1.0], [1.0, 1.0, 0.67, 0.75])
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
        InvalidInputError: There is no answer.

    Example: risks 0, 1/2 and 1/3 at a coverage of 1/3, 2/3 and 1.

    >>> round(area_under_risk_coverage([0.9, 0.8, 0.7], [1, 0, 1]), 4)
    0.2778
    """
    _, accuracy = accuracy_by_coverage(confidences, correct)
    if len(accuracy) == 0:
        raise InvalidInputError("The risk of no answers is undefined.")
    return float((1 - accuracy).mean())


@dataclass(frozen=True)
class TemperatureCalibrator:
    """Divides logits of confidences by one number: `sigmoid(logit(confidence) / temperature)`.

    Guo et al. 2017, https://huggingface.co/papers/1706.04599, in the binary case: right or wrong.

    Attributes:
        temperature: Above 1 makes confidences humbler, below 1 bolder.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise InvalidInputError(f"temperature={self.temperature} must be a positive number.")

    def __call__(self, confidences: npt.ArrayLike) -> FloatArray:
        """Calibrated confidences, of the same shape."""
        return _sigmoid(_logits(_in_range(confidences)) / self.temperature)


@dataclass(frozen=True)
class IsotonicCalibrator:
    """A rising curve: straight lines between the points, flat beyond the first and the last.

    Attributes:
        confidences, probabilities (`tuple[float]`): The points, both rising.
    """

    confidences: tuple[float, ...] = field(repr=False)
    probabilities: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        points = np.array([self.confidences, self.probabilities], np.float64)
        if points.ndim != 2 or points.shape[1] == 0 or not ((points >= 0) & (points <= 1)).all():
            raise InvalidInputError("A curve needs as many confidences as probabilities, one at least, all in 0..1.")
        if (np.diff(points[0]) <= 0).any() or (np.diff(points[1]) < 0).any():
            raise InvalidInputError("The points of a calibration curve must rise, no confidence twice.")

    def __call__(self, confidences: npt.ArrayLike) -> FloatArray:
        """Calibrated confidences, of the same shape."""
        return np.asarray(np.interp(_in_range(confidences), self.confidences, self.probabilities), np.float64)


Calibrator = TemperatureCalibrator | IsotonicCalibrator


def fit_temperature(confidences: npt.ArrayLike, correct: npt.ArrayLike) -> TemperatureCalibrator:
    """The temperature with the least negative log-likelihood of what was right and wrong, between e^-5 and e^5.

    A few dozen answers are enough; it cannot mend a confidence that is wrong at one end only.

    Example: 90 % sure each time, right three times of four; `sigmoid(logit(0.9) / 2) = 0.75`.

    >>> calibrate = fit_temperature([0.9, 0.9, 0.9, 0.9], [1, 1, 1, 0])
    >>> round(calibrate.temperature, 4), calibrate([0.9]).round(4).tolist()
    (2.0, [0.75])
    """
    certain, right = _checked(confidences, correct, is_fit=True)
    logits = _logits(certain)

    def slope(log_temperature: float) -> float:
        """Of the negative log-likelihood by the inverse temperature, which is convex."""
        return float(((_sigmoid(logits * np.exp(-log_temperature)) - right) * logits).sum())

    low, high = _LOG_TEMPERATURES
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return TemperatureCalibrator(float(np.exp((low + high) / 2)))


def fit_isotonic(confidences: npt.ArrayLike, correct: npt.ArrayLike) -> IsotonicCalibrator:
    """The rising curve nearest to what was right, in squared error: pool adjacent violators.

    Barlow et al. 1972; for probabilities Zadrozny, Elkan 2002, https://doi.org/10.1145/775047.775151. Fits any rising
    shape, and wants some hundred answers: with few it follows chance.

    Example: the middle pair is in the wrong order and shares its mean.

    >>> fit_isotonic([0.1, 0.4, 0.6, 0.9], [0, 1, 0, 1])([0.1, 0.4, 0.6, 0.75, 0.9]).tolist()
    [0.0, 0.5, 0.5, 0.75, 1.0]
    """
    certain, right = _checked(confidences, correct, is_fit=True)
    points, places, counts = np.unique(certain, return_inverse=True, return_counts=True)
    means = np.bincount(places, right) / counts
    blocks: list[tuple[float, int, int]] = []  # (mean, answers, points) of neighbours that share their mean
    for mean, count in zip(means.tolist(), counts.tolist(), strict=True):
        size = 1
        while blocks and blocks[-1][0] >= mean:
            before, answers, before_size = blocks.pop()
            mean = (before * answers + mean * count) / (answers + count)
            count, size = count + answers, size + before_size
        blocks.append((mean, count, size))
    curve = np.repeat([mean for mean, _, _ in blocks], [size for _, _, size in blocks]).clip(0, 1)
    # Within a block only its ends shape the curve.
    kept = np.ones(len(points), np.bool_)
    kept[1:-1] = (np.diff(curve)[:-1] != 0) | (np.diff(curve)[1:] != 0)
    return IsotonicCalibrator(tuple(points[kept].tolist()), tuple(curve[kept].tolist()))


def _logits(confidences: FloatArray) -> FloatArray:
    clipped = confidences.clip(_EPSILON, 1 - _EPSILON)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), np.float64)


def _sigmoid(logits: FloatArray) -> FloatArray:
    return np.asarray((1 + np.tanh(logits / 2)) / 2, np.float64)  # overflows nowhere


def _in_range(confidences: npt.ArrayLike) -> FloatArray:
    values = np.asarray(confidences, np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise InvalidInputError("Confidences must be probabilities, in 0..1; a logit or NaN came.")
    return values


def _checked(
    confidences: npt.ArrayLike, correct: npt.ArrayLike, is_fit: bool = False
) -> tuple[FloatArray, FloatArray]:
    certain, right = _in_range(confidences), np.asarray(correct, np.float64)
    if certain.ndim != 1 or certain.shape != right.shape or (is_fit and certain.size == 0):
        raise InvalidInputError(
            f"confidences {certain.shape} and correct {right.shape} must have one shape (questions,)"
            f"{', not empty' if is_fit else ''}."
        )
    if is_fit and not ((right >= 0) & (right <= 1)).all():
        raise InvalidInputError("What was right must be in 0..1: 1 for right, 0 for wrong.")
    return certain, right
