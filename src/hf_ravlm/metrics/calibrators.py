"""Knows how to make confidences honest: temperature scaling and isotonic regression, fitted on judged answers.

A fitted calibrator maps confidences in 0..1 to probabilities of being right and never changes their order, so that
AUROC stays as it is (isotonic regression may make neighbours equal). Fit on questions that neither the model nor the
report has seen. NumPy; scikit-learn, whose isotonic regression is the same, would be a large dependency for one page.
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
        logits = _logits(_checked(confidences)) / self.temperature
        return _sigmoid(logits)


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
        return np.asarray(np.interp(_checked(confidences), self.confidences, self.probabilities), np.float64)


Calibrator = TemperatureCalibrator | IsotonicCalibrator


def fit_temperature(confidences: npt.ArrayLike, correct: npt.ArrayLike) -> TemperatureCalibrator:
    """The temperature with the least negative log-likelihood of what was right and wrong, between e^-5 and e^5.

    One number, so a few dozen answers are enough; it cannot mend a confidence that is wrong at one end only.

    Args:
        confidences (`np.ndarray` of shape `(Q,)`): In 0..1.
        correct (`np.ndarray` of shape `(Q,)`): 1 for right, 0 for wrong.

    Raises:
        InvalidInputError: There is no answer, the two differ in shape, or a value is not in 0..1.

    Example: 90 % sure each time, right three times of four; `sigmoid(logit(0.9) / 2) = 0.75`.

    ```python
    >>> calibrate = fit_temperature([0.9, 0.9, 0.9, 0.9], [1, 1, 1, 0])
    >>> round(calibrate.temperature, 4), calibrate([0.9]).round(4).tolist()
    (2.0, [0.75])

    ```
    """
    certain, right = _checked_pairs(confidences, correct)
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

    Args:
        confidences (`np.ndarray` of shape `(Q,)`): In 0..1.
        correct (`np.ndarray` of shape `(Q,)`): 1 for right, 0 for wrong, or a score between.

    Raises:
        InvalidInputError: There is no answer, the two differ in shape, or a value is not in 0..1.

    Example: the middle pair is in the wrong order and shares its mean.

    ```python
    >>> fit_isotonic([0.1, 0.4, 0.6, 0.9], [0, 1, 0, 1])([0.1, 0.4, 0.6, 0.75, 0.9]).tolist()
    [0.0, 0.5, 0.5, 0.75, 1.0]

    ```
    """
    certain, right = _checked_pairs(confidences, correct)
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


def _checked(confidences: npt.ArrayLike) -> FloatArray:
    values = np.asarray(confidences, np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise InvalidInputError("Confidences must be probabilities, in 0..1; a logit or NaN came.")
    return values


def _checked_pairs(confidences: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    certain, right = _checked(confidences), np.asarray(correct, np.float64)
    if certain.ndim != 1 or certain.shape != right.shape or certain.size == 0:
        raise InvalidInputError(
            f"confidences {certain.shape} and correct {right.shape} must have one shape (questions,), not empty."
        )
    if not ((right >= 0) & (right <= 1)).all():
        raise InvalidInputError("What was right must be in 0..1: 1 for right, 0 for wrong.")
    return certain, right
