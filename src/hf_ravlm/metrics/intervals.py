"""Percentile bootstrap intervals of means over questions, and paired ones of differences.

Efron, Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 16.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError


_DRAWS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of the interval that holds it."""

    mean: float
    lower: float
    upper: float


def bootstrap_interval(
    values: npt.ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of `values` and its percentile bootstrap interval.

    For the difference of two systems on the same questions pass the differences per question: a paired interval, which
    is narrower than either system's own, and says more.

    Args:
        values (`np.ndarray` of shape `(Q,)`): One per question.
        clusters (`Q` labels, *optional*): Questions with one label, about one image, say, are drawn together; else
            their interval is too narrow.
        num_resamples (`int`): 1,000 give the ends to about a tenth of the width.
        level (`float`): How often the interval is to hold the mean, in 0..1.
        seed (`int`): Of the draws; one seed, one result.

    Raises:
        InvalidInputError: There is no value, one is NaN, the clusters differ in number, or `level` is not in 0..1.

    Example:

    >>> interval = bootstrap_interval([1, 0, 1, 1] * 25)
    >>> interval.mean, round(interval.lower, 2), round(interval.upper, 2)
    (0.75, 0.67, 0.84)
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or np.isnan(numbers).any():
        raise InvalidInputError(f"Expected one value per question, none of them NaN; came an array {numbers.shape}.")
    if not 0 < level < 1 or num_resamples < 1:
        raise InvalidInputError(f"level={level} must be between 0 and 1 and num_resamples={num_resamples} positive.")
    labels = range(len(numbers)) if clusters is None else clusters
    if len(labels) != len(numbers):
        raise InvalidInputError(f"{len(numbers)} values came with {len(labels)} clusters.")
    numbering = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    row_clusters = np.array([numbering[label] for label in labels])
    sums = np.asarray(np.bincount(row_clusters, numbers), np.float64)
    sizes = np.asarray(np.bincount(row_clusters), np.float64)
    means = _resampled_means(sums, sizes, num_resamples, np.random.default_rng(seed))
    lower, upper = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(numbers.mean()), float(lower), float(upper))


def _resampled_means(
    sums: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], num_resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Some rows at a time, so that memory stays small with many questions."""
    means = []
    rows_at_once = max(1, _DRAWS_AT_ONCE // len(sums))
    for start in range(0, num_resamples, rows_at_once):
        rows = min(rows_at_once, num_resamples - start)
        drawn = rng.integers(len(sums), size=(rows, len(sums)))  # (resamples, clusters)
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)
