"""Knows how to draw flags that no country has, each of them as several hands would.

Designs come in families of four, one flag and three near copies with one thing changed: telling those apart is what an
encoder has to learn, and 150 countries teach it too rarely. Loose emblems come as badges, to be pasted on real flags.
Drawings of one design differ in what differs between icon sets: proportions, sizes of emblems, widths of stripes and
lines, and how much of a coat of arms is drawn at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from flags.flag_designs import (
    Colour,
    Cross,
    Design,
    Emblem,
    Hoist,
    change_one_thing,
    choose,
    invent_design,
    invent_emblem,
)


FAMILY = 4  # designs in a row that are near copies of each other
NUM_DRAWINGS = 2  # of each design


def procedural_flags(num_designs: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Invents flags in families of `FAMILY`: design i belongs to family `i // FAMILY`.

    Args:
        num_designs (`int`): How many flags.
        size (`int`): Side of the pictures in pixels; the proportions of a flag are not kept, as in an encoder's input.
        generator (`np.random.Generator`): The only source of chance.

    Returns:
        `np.ndarray`: (num_designs, NUM_DRAWINGS, size, size, 3), `uint8`.

    Example:

    ```python
    >>> procedural_flags(4, 32, np.random.default_rng(0)).shape
    (4, 2, 32, 32, 3)

    ```
    """
    flags = np.empty((num_designs, NUM_DRAWINGS, size, size, 3), np.uint8)
    for i in range(num_designs):
        if i % FAMILY == 0:
            first = design = invent_design(generator)
        else:
            design = change_one_thing(first, generator)
        for drawing in range(NUM_DRAWINGS):
            flags[i, drawing] = draw_flag(design, size, generator)
    return flags


def badges(num_badges: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Invents emblems on transparent ground.

    Returns:
        `np.ndarray`: (num_badges, NUM_DRAWINGS, size, size, 4), `uint8`, the last channel being the opacity.
    """
    nowhere = (1, 2, 3)  # no emblem has this colour, so it marks the ground
    pictures = np.empty((num_badges, NUM_DRAWINGS, size, size, 4), np.uint8)
    for i in range(num_badges):
        emblem = invent_emblem(generator)
        for drawing in range(NUM_DRAWINGS):
            canvas = Image.new("RGB", (120, 120), nowhere)
            radius = 34 * generator.uniform(0.8, 1.25)
            draw_emblem(ImageDraw.Draw(canvas), emblem, 60, 60, radius, nowhere, generator)
            red, green, blue = np.moveaxis(np.asarray(canvas), 2, 0)
            opaque = (red != nowhere[0]) | (green != nowhere[1]) | (blue != nowhere[2])
            canvas.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
            pictures[i, drawing] = np.asarray(canvas.resize((size, size), Image.Resampling.BOX))
    return pictures


def draw_flag(design: Design, size: int, generator: np.random.Generator) -> np.ndarray:
    """One hand's drawing, (size, size, 3) `uint8`: chance moves what differs between real drawings of one flag."""
    W, H = 192, choose(generator, (128, 96, 144, 115))
    picture = Image.new("RGB", (W, H), design.colours[0])
    canvas = ImageDraw.Draw(picture)

    def vary(share: float = 0.12) -> float:
        return generator.uniform(1 - share, 1 + share)

    _draw_base(canvas, design, W, H, vary)
    if design.cross:
        _draw_cross(canvas, design.cross, W, H, vary)
    if design.hoist:
        _draw_hoist(canvas, design.hoist, W, H, vary)
    for (x, y), emblem in design.emblems:
        x, y = x * W * vary(0.04), y * H * vary(0.04)
        radius = emblem.radius * H * generator.uniform(0.6, 1.5)
        draw_emblem(canvas, emblem, x, y, radius, picture.getpixel((int(x), int(y))), generator)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def _draw_base(canvas: ImageDraw.ImageDraw, design: Design, W: int, H: int, vary: Callable[..., float]) -> None:
    _, second, third = design.colours[:3]
    if design.base in ("rows", "columns"):
        n = design.num_stripes
        widths = [width * vary(0.06) if n <= 3 else 1 for width in design.widths[:n]]
        edges = [edge / sum(widths) for edge in itertools.accumulate(widths, initial=0)]
        for start, end, colour in zip(edges[:-1], edges[1:], design.colours[:n], strict=True):
            box = (0, start * H, W, end * H) if design.base == "rows" else (start * W, 0, end * W, H)
            canvas.rectangle(box, fill=colour)
    elif design.base in ("rising", "falling"):
        line, corner = ((0, H, W, 0), (0, 0)) if design.base == "rising" else ((0, 0, W, H), (0, H))
        canvas.polygon([line[:2], line[2:], corner], fill=second)
        canvas.line(line, fill=third, width=int(W * design.widths[0] * 0.08 * vary(0.3)))
    elif design.base == "quarters":
        canvas.rectangle((W / 2, 0, W, H / 2), fill=second)
        canvas.rectangle((0, H / 2, W / 2, H), fill=second if design.num_stripes % 2 else third)
    elif design.base == "saltire":
        for line in ((0, 0, W, H), (0, H, W, 0)):
            canvas.line(line, fill=second, width=int(W * 0.1 * vary(0.3)))
    elif design.base == "border":
        border = H * 0.12 * vary(0.3)
        canvas.rectangle((border, border, W - border, H - border), fill=second)


def _draw_cross(canvas: ImageDraw.ImageDraw, cross: Cross, W: int, H: int, vary: Callable[..., float]) -> None:
    x, width = cross.x * W, cross.width * W * vary()
    for colour, share in [(cross.border, 1.0), (cross.colour, 0.5)] if cross.border else [(cross.colour, 0.8)]:
        canvas.rectangle((x - width * share, 0, x + width * share, H), fill=colour)
        canvas.rectangle((0, H / 2 - width * share, W, H / 2 + width * share), fill=colour)


def _draw_hoist(canvas: ImageDraw.ImageDraw, hoist: Hoist, W: int, H: int, vary: Callable[..., float]) -> None:
    width = hoist.width * W * vary(0.1)
    if hoist.kind == "triangle":
        if hoist.has_border:
            canvas.polygon([(0, -H * 0.12), (width * 1.2, H / 2), (0, H * 1.12)], fill=hoist.second_colour)
        canvas.polygon([(0, 0), (width, H / 2), (0, H)], fill=hoist.colour)
    elif hoist.kind == "bar":
        canvas.rectangle((0, 0, width * 0.7, H), fill=hoist.colour)
    elif hoist.kind == "trapezium":
        canvas.polygon([(0, 0), (width / 2, H * 0.33), (width / 2, H * 0.67), (0, H)], fill=hoist.colour)
    else:
        canvas.rectangle((0, 0, width, H / 2), fill=hoist.colour)
        if hoist.has_cross:
            for line in ((0, 0, width, H / 2), (0, H / 2, width, 0)):
                canvas.line(line, fill=hoist.second_colour, width=int(4 * vary(0.3)))
            canvas.rectangle((width * 0.42, 0, width * 0.58, H / 2), fill=hoist.second_colour)
            canvas.rectangle((0, H * 0.2, width, H * 0.3), fill=hoist.second_colour)


def draw_emblem(
    canvas: ImageDraw.ImageDraw,
    emblem: Emblem,
    x: float,
    y: float,
    radius: float,
    ground: Colour,
    generator: np.random.Generator,
) -> None:
    """Draws an emblem about (x, y), `radius` in pixels; of its small parts every drawing leaves some out."""

    def polygon(points: Sequence[tuple[float, float]], colour: Colour) -> None:
        canvas.polygon([(x + right * radius, y + down * radius) for right, down in points], fill=colour)

    def shape(kind: str, colour: Colour, right: float, down: float, width: float, height: float) -> None:
        if kind == "star":
            polygon([(right + width * px, down + width * py) for px, py in star_points(5, 0.38)], colour)
            return
        centre_x, centre_y, width, height = x + right * radius, y + down * radius, width * radius, height * radius
        draw = canvas.ellipse if kind == "disc" else canvas.rectangle
        draw((centre_x - width, centre_y - height, centre_x + width, centre_y + height), fill=colour)

    kind, colour, is_odd = emblem.kind, emblem.colour, emblem.count % 2
    if kind in _OUTLINES:
        polygon(_OUTLINES[kind], colour)
    if kind == "star":
        polygon(star_points(emblem.points, 0.38 if emblem.points == 5 else 0.6, emblem.rotation), colour)
    elif kind == "sun":
        polygon(star_points(12 + emblem.count, 0.6), colour)
        shape("disc", emblem.second_colour, 0, 0, 0.45, 0.45)
    elif kind in ("disc", "ring", "crescent"):
        shape("disc", colour, 0, 0, 1, 1)
    if kind == "ring":
        shape("disc", ground if is_odd else emblem.second_colour, 0, 0, 0.65, 0.65)
    if kind == "crescent":
        shape("disc", ground, 0.3, 0, 0.8, 0.8)
        if is_odd:
            shape("star", colour, 0.6, 0, 0.45, 0.45)
    for right, down in emblem.places:
        shape("star", colour, right, down, 0.35 * generator.uniform(0.8, 1.3), 0)
    for part in emblem.parts:
        if generator.random() >= 0.15:
            shape(part.kind, part.colour, part.x, part.y, part.width, part.height)


_OUTLINES = {
    "triangle": ((0, -1), (1, 0.8), (-1, 0.8)),
    "lozenge": ((0, -1), (1.3, 0), (0, 1), (-1.3, 0)),
    "plus": (
        *((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)),
        *((0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
    ),
    "shield": ((-0.7, -0.8), (0.7, -0.8), (0.7, 0.2), (0, 1), (-0.7, 0.2)),
    "bird": ((0, -0.3), (1.3, -1), (1, 0.2), (0, 1), (-1, 0.2), (-1.3, -1)),
}


def star_points(num_points: int, inner: float, rotation: float = 0.0) -> list[tuple[float, float]]:
    """Corners of a star of radius 1, the first straight up; `inner` is the radius of the corners between the points.

    Example:

    ```python
    >>> [(round(x, 6) + 0.0, round(y, 6) + 0.0) for x, y in star_points(2, 0.5)]
    [(0.0, -1.0), (0.5, 0.0), (0.0, 1.0), (-0.5, 0.0)]

    ```
    """
    corners = [(rotation + math.pi * i / num_points, inner if i % 2 else 1.0) for i in range(2 * num_points)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle, radius in corners]
