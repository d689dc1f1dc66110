"""Measures of classifiers: how often the right class is among the best, over images and over classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError


def top_k_accuracy(scores: npt.ArrayLike, labels: npt.ArrayLike, k: int = 1) -> float:
    """The share of images whose class is among the `k` with the highest scores; a tie counts against it.

    Args:
        scores (`np.ndarray` of shape `(n, C)`), labels (`np.ndarray` of shape `(n,)`): Classes from 0 on.

    Raises:
        InvalidInputError: There is no image, or the shapes do not fit.

    >>> top_k_accuracy([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]], [0, 2]), top_k_accuracy([[0.1, 0.7, 0.2]], [2], k=2)
    (0.5, 1.0)
    """
    numbers, right = np.asarray(scores, np.float64), np.asarray(labels)
    if numbers.ndim != 2 or right.shape != numbers.shape[:1] or len(right) == 0:
        raise InvalidInputError(
            f"scores of shape {numbers.shape} came with labels {right.shape}; expected (n, C), (n,)"
        )
    own = np.take_along_axis(numbers, right[:, None], axis=1)
    not_below = (numbers >= own).sum(axis=1)  # itself included
    return float((not_below <= k).mean())


def macro_recall(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The share of images of a class that were told, averaged over the classes that occur among `labels`.

    >>> macro_recall([0, 0, 0, 1], [0, 0, 1, 1])
    0.75
    """
    said, right = np.asarray(predictions), np.asarray(labels)
    if said.shape != right.shape or right.ndim != 1 or len(right) == 0:
        raise InvalidInputError(f"{said.shape} predictions came with labels {right.shape}; expected one each")
    return float(np.mean([(said[right == name] == name).mean() for name in np.unique(right)]))
