"""Images that cannot be used: an error, a grey image in their place, or a row left out."""

from __future__ import annotations

from typing import Literal, get_args

from PIL import Image

from ...errors import InvalidInputError


OnError = Literal["raise", "blank", "skip"]


def blank_image() -> Image.Image:
    """The grey image in the place of one that cannot be used.

    >>> blank_image().getpixel((0, 0))
    (127, 127, 127)
    """
    return Image.new("RGB", (64, 64), (127, 127, 127))


def check_on_error(on_error: str) -> None:
    """Refuses an unknown setting of `on_error`.

    Raises:
        InvalidInputError: With the choices.
    """
    if on_error not in get_args(OnError):
        raise InvalidInputError(f"on_error={on_error!r}: expected one of {list(get_args(OnError))}.")
