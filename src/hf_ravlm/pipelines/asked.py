"""What a pipeline is asked: a question, its images, each made safe, and what goes with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import InvalidInputError
from ..images import IMAGE_SUFFIXES, fetch_image, is_address, safe_image
from ..sequences import is_column


@dataclass(frozen=True)
class Asked:
    """One question: its image, a list of several, or `None`; other words to search with; its own system message."""

    question: str
    images: Any = None
    query: str | None = None
    system: str | None = None
    error: str | None = None  # why it cannot be asked


def check_keys(inputs: Mapping[str, Any]) -> None:
    """Refuses an image under a name that is not looked for; other columns of a row may be anything.

    Raises:
        InvalidInputError: With the name.

    >>> check_keys({"question": "What is this?", "img": "photo.jpg"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    hf_ravlm.errors.InvalidInputError: 'img' holds an image, and only 'image' and 'images' are looked at; ...
    """
    if not inputs.keys().isdisjoint(("image", "images")):
        return
    for name, value in inputs.items():
        is_file = isinstance(value, str) and os.path.splitext(value)[1].lower() in IMAGE_SUFFIXES
        if isinstance(value, Image.Image) or (is_file and name not in ("question", "text", "query")):
            raise InvalidInputError(
                f"{name!r} holds an image, and only 'image' and 'images' are looked at; rename it, or give "
                "'image': None to ask without one"
            )


def opened(images: Any, timeout: float | None) -> Any:
    """The image of a question, the list of its images, or `None`, each opened by `open_image`.

    Raises:
        UnsafeInputError: One cannot be used.
    """
    if images is None:
        return None
    if is_column(images):
        return [open_image(image, timeout) for image in images] or None
    return open_image(images, timeout)


def open_image(source: Any, timeout: float | None = None) -> Any:
    """An image, made safe; one that is named by its address is fetched, within bounds.

    Raises:
        InvalidInputError: The image could not be fetched.
        UnsafeInputError: It cannot be used.
    """
    return fetch_image(source, timeout) if is_address(source) else safe_image(source)
