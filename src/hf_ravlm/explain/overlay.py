"""A heat map on the image it explains, and the part of an image that a model sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..images import safe_image, shrunk, trim_margins


# Dark violet, red, orange, pale yellow; each step is lighter than the one before it.
HEAT = np.array([[20, 11, 53], [120, 28, 109], [203, 66, 72], [249, 142, 9], [252, 255, 164]], np.float32)
SHOWN_PIXELS = 1_000_000  # a map of 49 million would take a gigabyte in each of its steps
PALEST, DENSEST = 0.25, 0.85  # how much of the heat's colour covers the image
FRAME, FRAME_COLOUR, PALENESS = 0.004, (207, 34, 46), 0.4  # of a box: its width as a share of the image's


def heat_overlay(image: Image.Image, heat: Any) -> Image.Image:
    """The image in grey, with its heat in colour above it.

    Args:
        image (`PIL.Image.Image`): what the map lies on, see `seen_image`.
        heat (array or tensor of shape `(height, width)`): from 0 to 1; it is stretched over the image.

    Returns:
        `PIL.Image.Image` in RGB, as large as `image`.

    Example: all of the heat is on the right.

    >>> hot = heat_overlay(Image.new("RGB", (2, 1), "gray"), [[0.0, 1.0]])
    >>> hot.getpixel((0, 0)), hot.getpixel((1, 0))
    ((101, 99, 109), (233, 236, 159))
    """
    given = np.clip(np.nan_to_num(np.asarray(heat, np.float32)), 0, 1)
    strength = np.asarray(Image.fromarray(given).resize(image.size, Image.Resampling.BILINEAR))  # (height, width)
    steps, places = np.arange(len(HEAT)), strength * (len(HEAT) - 1)
    colours = np.stack([np.interp(places, steps, HEAT[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    share = PALEST + (DENSEST - PALEST) * strength[..., None]
    return Image.fromarray((grey * (1 - share) + colours * share).round().astype(np.uint8))


def box_overlay(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The image with a frame around a region of it, and everything else paler.

    Args:
        image (`PIL.Image.Image`): such as the page of a PDF file.
        box (four numbers): left, top, right and bottom, as shares of the image's size, from its upper left corner.

    Returns:
        `PIL.Image.Image` in RGB, as large as `image`.

    Example:

    >>> page = box_overlay(Image.new("RGB", (100, 100), "black"), (0.2, 0.2, 0.8, 0.8))
    >>> page.getpixel((50, 50)), page.getpixel((5, 5))
    ((0, 0, 0), (102, 102, 102))
    """
    shown = image.convert("RGB")
    edges = [side * size for side, size in zip(box, (*shown.size, *shown.size), strict=True)]
    around = max(2, round(min(shown.size) * FRAME))
    left, top, right, bottom = (round(edge) for edge in edges)
    outer = (
        max(left - around, 0),
        max(top - around, 0),
        min(right + around, shown.width),
        min(bottom + around, shown.height),
    )
    pale = Image.blend(shown, Image.new("RGB", shown.size, "white"), PALENESS)
    pale.paste(shown.crop(outer), outer[:2])
    ImageDraw.Draw(pale).rectangle(
        (outer[0], outer[1], outer[2] - 1, outer[3] - 1), outline=FRAME_COLOUR, width=around
    )
    return pale


def seen_image(processor: Any, image: Any) -> Image.Image:
    """The part of an image that the vision tower sees, over which a map of it is to be stretched.

    An image processor that resizes alone sees all of it, and it is shown with at most a million pixels; of one that
    crops or pads the pixels themselves are shown.

    Args:
        processor: a [`RavlmProcessor`].
        image: anything that the processor takes.
    """
    steps = processor.image_processor
    whole = safe_image(image)
    whole = trim_margins(whole) if processor.trim_image_margins else whole
    if not (getattr(steps, "do_center_crop", None) or getattr(steps, "do_pad", None)):
        return shrunk(whole, SHOWN_PIXELS)
    pixels = np.asarray(processor.for_retrieval(images=[image])["pixel_values"][0])  # (3, height, width)
    if getattr(steps, "do_normalize", None):
        pixels = pixels * np.reshape(steps.image_std, (3, 1, 1)) + np.reshape(steps.image_mean, (3, 1, 1))
    if getattr(steps, "do_rescale", None):
        pixels = pixels / steps.rescale_factor
    return Image.fromarray(np.moveaxis(pixels, 0, 2).clip(0, 255).round().astype(np.uint8))
