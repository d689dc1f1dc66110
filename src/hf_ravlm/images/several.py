"""The images of one question: none, one, or several in a list."""

from __future__ import annotations

from typing import Any

from ..sequences import is_column


def several(images: Any) -> list[Any]:
    """The images of one question, as a list; `None` and an empty list are a question without an image.

    >>> several(None), several("kite.png"), several(["front.png", None, "back.png"])
    ([], ['kite.png'], ['front.png', 'back.png'])
    """
    if images is None:
        return []
    return [image for image in images if image is not None] if is_column(images) else [images]


def first_of(images: Any) -> Any:
    """The image that a question is searched with: the first; `None` if it has none.

    >>> first_of(["front.png", "back.png"]), first_of([])
    ('front.png', None)
    """
    return next(iter(several(images)), None)
