"""What becomes of images that cannot be used: an error, a grey image in their place, or a row left out.

Data sets decode images before a collator sees them, and fail at the first broken one: `undecoded(dataset)` hands on
the encoded bytes instead.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from PIL import Image

from ...errors import InvalidInputError


OnError = Literal["raise", "blank", "skip"]

_GREY = (127, 127, 127)


def blank_image() -> Image.Image:
    """What stands for an image that cannot be used.

    >>> blank_image().getpixel((0, 0))
    (127, 127, 127)
    """
    return Image.new("RGB", (64, 64), _GREY)


def check_on_error(on_error: str) -> None:
    """Refuses an unknown setting of `on_error`.

    Raises:
        InvalidInputError: With the choices.
    """
    if on_error not in get_args(OnError):
        raise InvalidInputError(f"on_error={on_error!r}: expected one of {list(get_args(OnError))}.")


def undecoded(dataset: Any) -> Any:
    """A data set of `datasets` whose images come as encoded bytes, so that a collator meets the broken ones.

    Anything that is no such data set comes back as it is.
    """
    if not hasattr(dataset, "cast_column"):
        return dataset
    from datasets import Image as ImageFeature

    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, ImageFeature) and feature.decode:
            dataset = dataset.cast_column(column, ImageFeature(decode=False))
    return dataset
