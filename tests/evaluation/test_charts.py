"""The curve of accuracy over coverage, read off its pixels."""

from __future__ import annotations

import numpy as np
from PIL import ImageColor

from hf_ravlm.evaluation.charts import CURVES, coverage_chart


def rows_of_colour(image, colour: str) -> list[int]:
    """Rows of the plot with a long run of the colour, from the top."""
    pixels = np.asarray(image)[:, :500]  # without the names at the right
    return np.flatnonzero((pixels == ImageColor.getrgb(colour)).all(axis=-1).sum(axis=1) > 20).tolist()


def test_a_curve_that_is_always_right_lies_above_one_that_is_wrong():
    number = 50
    sure = np.linspace(1, 0.1, number)
    image = coverage_chart(
        {"right": (sure, np.ones(number)), "half": (np.full(number, 0.5), np.arange(number) % 2)}, "two systems"
    )
    right, half = rows_of_colour(image, CURVES[0]), rows_of_colour(image, CURVES[1])
    assert right
    assert half
    assert max(right) < min(half)
    top, bottom = 58, image.height - 58  # of the plot
    assert abs(np.mean(right) - top) <= 1
    assert abs(np.mean(half) - (top + bottom) / 2) <= 1
