"""Knows what becomes of pictures that cannot be used: an error, a grey picture in their place, or a row left out.

Data sets decode pictures before a collator sees them, and fail at the first broken one: `undecoded(dataset)` leaves
that to whoever opens them.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from PIL import Image

from ...errors import InvalidInputError


OnBroken = Literal["raise", "blank", "skip"]

_GREY = (127, 127, 127)


def blank_picture() -> Image.Image:
    """What stands for a picture that cannot be used.

    >>> blank_picture().getpixel((0, 0))
    (127, 127, 127)
    """
    return Image.new("RGB", (64, 64), _GREY)


def check_on_broken(on_broken: str) -> None:
    """Refuses an unknown policy.

    Raises:
        `InvalidInputError`: With the choices.
    """
    if on_broken not in get_args(OnBroken):
        raise InvalidInputError(f"on_broken={on_broken!r}: expected one of {list(get_args(OnBroken))}.")


def undecoded(dataset: Any) -> Any:
    """A data set of `datasets` whose pictures come as encoded bytes, so that a broken one is the collator's matter.

    What is no such data set comes back as it is.
    """
    if not hasattr(dataset, "cast_column"):
        return dataset
    from datasets import Image as ImageFeature

    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, ImageFeature) and feature.decode:
            dataset = dataset.cast_column(column, ImageFeature(decode=False))
    return dataset
