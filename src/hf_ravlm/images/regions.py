"""Parts of an image: the one that a person marks, and those where most is to be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InvalidInputError


_GRID = 32  # cells of the map of details, on each side
_SIZES = (0.6, 0.4)  # of a crop, as shares of the image's sides
_MAX_OVERLAP = 0.5  # of two crops, as a share of the smaller one
MAX_CROPS = 8


def crop_region(image: Image.Image, region: Sequence[float]) -> Image.Image:
    """The part of an image in a region.

    Args:
        image: Upright, as `safe_image` returns it.
        region: Left edge, upper edge, width and height; in pixels, or, if none is above 1, as shares of the image.

    Raises:
        InvalidInputError: If these are not four numbers, or nothing of the image lies there.

    Example:

    >>> image = Image.new("RGB", (200, 100))
    >>> crop_region(image, (0.5, 0, 0.5, 1)).size, crop_region(image, (10, 10, 50, 20)).size
    ((100, 100), (50, 20))
    """
    values: Any = np.asarray(region, dtype=object).tolist() if isinstance(region, (list, tuple, np.ndarray)) else None
    numbers = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in values or ()]
    if values is None or len(values) != 4 or not all(numbers) or not np.isfinite(np.array(values, float)).all():
        raise InvalidInputError(f"region={str(region)[:80]}: expected four numbers, (x, y, width, height).")
    x, y, width, height = (float(value) for value in values)
    if max(values) <= 1:
        x, width, y, height = x * image.width, width * image.width, y * image.height, height * image.height
    left, top = max(round(x), 0), max(round(y), 0)
    right, bottom = min(round(x + width), image.width), min(round(y + height), image.height)
    if right <= left or bottom <= top:
        raise InvalidInputError(
            f"region={tuple(values)}: nothing of the image ({image.width} x {image.height} pixels) lies there."
        )
    return image.crop((left, top, right, bottom))


def detailed_crops(image: Image.Image, number: int) -> list[Image.Image]:
    """The parts of an image with most details (edges) for their size, which overlap by less than a half.

    Args:
        image: Upright, as `safe_image` returns it.
        number: At most so many, 0 to `MAX_CROPS`; none of an image that is narrower than 32 pixels.

    Raises:
        InvalidInputError: If the number is out of range.

    Example:

    >>> image = Image.new("RGB", (320, 320), "white")
    >>> image.paste(Image.effect_noise((64, 64), 90).convert("RGB"), (32, 32))
    >>> crop = detailed_crops(image, 1)[0]
    >>> crop.size, crop.getextrema() != Image.new("RGB", (9, 9), "white").getextrema()
    ((130, 130), True)
    """
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_CROPS:
        raise InvalidInputError(f"crops={number!r}: expected a whole number from 0 to {MAX_CROPS}.")
    if min(image.size) < _GRID:
        return []
    details = _details(image)
    total = np.zeros((_GRID + 1, _GRID + 1))
    total[1:, 1:] = details.cumsum(axis=0).cumsum(axis=1)
    scored = []
    for size in _SIZES:
        side = round(size * _GRID)
        inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
        for top, left in np.ndindex(*inside.shape):
            scored.append((float(inside[top, left]) / side**1.5, left, top, side))
    kept: list[tuple[int, int, int]] = []
    for _, left, top, side in sorted(scored, key=lambda entry: -entry[0]):
        if len(kept) == number:
            break
        if all(_overlap((left, top, side), other) <= _MAX_OVERLAP for other in kept):
            kept.append((left, top, side))
    return [crop_region(image, tuple(edge / _GRID for edge in (left, top, side, side))) for left, top, side in kept]


def _details(image: Image.Image) -> np.ndarray:
    """How much grey levels change in each cell of a grid, (_GRID, _GRID)."""
    small = np.asarray(image.convert("L").resize((8 * _GRID, 8 * _GRID), Image.Resampling.BOX), np.float64)
    change = np.abs(np.diff(small, axis=0, append=small[-1:])) + np.abs(np.diff(small, axis=1, append=small[:, -1:]))
    cells: np.ndarray = change.reshape(_GRID, 8, _GRID, 8).sum(axis=(1, 3))
    return cells


def _overlap(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """The common part of two squares (left, top, side), as a share of the smaller one."""
    spans = [min(a + first[2], b + second[2]) - max(a, b) for a, b in zip(first[:2], second[:2], strict=True)]
    return max(spans[0], 0) * max(spans[1], 0) / min(first[2], second[2]) ** 2


def box_in(box: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The left, upper, right and lower edge of a box, which must lie in an image.

    Args:
        box: `{"xmin": ..., "ymin": ..., "xmax": ..., "ymax": ...}` or `(x, y, width, height)`, in pixels.
        size: Width and height of the image. An edge may lie outside by a pixel, as rounding leaves it.

    Raises:
        InvalidInputError: If it is no box, is empty, or does not lie in the image.

    Example:

    >>> box_in((2, 3, 4, 5), (10, 10)), box_in({"xmin": 2, "ymin": 3, "xmax": 6, "ymax": 8}, (10, 10))
    ((2.0, 3.0, 6.0, 8.0), (2.0, 3.0, 6.0, 8.0))
    """
    edges = ("xmin", "ymin", "xmax", "ymax")
    named = isinstance(box, Mapping)
    values = [box.get(edge) for edge in edges] if named else np.asarray(box, dtype=object).reshape(-1).tolist()
    numbers = [isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values]
    if len(values) != 4 or not all(numbers) or not np.isfinite(np.array(values, float)).all():
        raise InvalidInputError(
            f"box={str(box)[:80]}: expected {', '.join(edges)}, or four numbers (x, y, width, height)."
        )
    left, top, right, bottom = (float(value) for value in values)
    if not named:
        right, bottom = left + right, top + bottom
    if right <= left or bottom <= top:
        raise InvalidInputError(f"box={str(box)[:80]}: it is empty; expected xmin < xmax and ymin < ymax.")
    if left < -1 or top < -1 or right > size[0] + 1 or bottom > size[1] + 1:
        raise InvalidInputError(
            f"box={str(box)[:80]}: it lies outside of its image of {size[0]} x {size[1]} pixels. Are the numbers "
            "pixels of this image, and (x, y, width, height) where they have no names?"
        )
    return max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1]))
