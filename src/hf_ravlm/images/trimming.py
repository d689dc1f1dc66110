"""Images made smaller: to a number of pixels, or without the white margin around a drawing."""

from __future__ import annotations

import numpy as np
from PIL import Image


def shrunk(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The image with at most `max_pixels`, in the same shape; one that is small enough is returned as it is.

    >>> shrunk(Image.new("RGB", (4000, 3000)), 120_000).size, shrunk(Image.new("RGB", (40, 30)), 120_000).size
    ((400, 300), (40, 30))
    """
    if max_pixels is None or image.width * image.height <= max_pixels:
        return image
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    size = max(int(image.width * scale), 1), max(int(image.height * scale), 1)
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def trim_margins(image: Image.Image) -> Image.Image:
    """Cuts the white margin around a drawing, if there clearly is one.

    Icon sets draw the same thing at different sizes on their white squares, and a small encoder that sees images at
    one fixed size mistakes the margin for a part of it. White *in* a drawing reaches its edge too, so the margin is
    cut only where what is left looks like a whole drawing with edges of its own:

    - it stands in the middle: opposite margins differ by at most 6 % of the side;
    - it is 0.9 to 2.2 times as wide as high, at least 40 % of the image's width and 30 % of its height;
    - along each of its four edges at least half of the length is not white (in a strip as deep as 2 % of its height).

    Everything else is left alone: photographs, drawings that fill their image, objects off the centre, round or
    ragged objects, images that are all white.

    Args:
        image: An image on opaque ground, as `safe_image` returns it. White is 248 or more in every channel.

    Returns:
        The part inside the margin, or `image` itself where nothing is cut.

    Example:

    ```python
    >>> from PIL import Image
    >>> icon = Image.new("RGB", (72, 72), "white")
    >>> icon.paste("navy", (4, 16, 68, 56))
    >>> trim_margins(icon).size
    (64, 40)
    >>> icon.paste("white", (4, 16, 68, 36))  # a white upper half: the rest is no longer in the middle
    >>> trim_margins(icon).size
    (72, 72)

    ```
    """
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
    ink = (red < 248) | (green < 248) | (blue < 248)  # (H, W); bool: not white
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not len(rows):
        return image
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    width, height = right - left, bottom - top
    box, depth = ink[top:bottom, left:right], max(1, round(0.02 * height))
    edges = box[:depth], box[-depth:], box[:, :depth].T, box[:, -depth:].T
    is_whole_drawing = (
        (width, height) != image.size
        and abs(left - (image.width - right)) <= 0.06 * image.width
        and abs(top - (image.height - bottom)) <= 0.06 * image.height
        and 0.9 <= width / height <= 2.2
        and width >= 0.4 * image.width
        and height >= 0.3 * image.height
        and min(edge.any(axis=0).mean() for edge in edges) >= 0.5
    )
    return image.crop((left, top, right, bottom)) if is_whole_drawing else image
