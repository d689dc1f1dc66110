"""Knows how to invent flags that no country has, from the habits of real ones: stripes, crosses, cantons, crests.

A design says what all drawings of a flag share; how each hand draws it is the matter of `synthetic_flags`. A near copy
of a design has one thing changed.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


Colour = tuple[int, int, int]

PALETTE = (
    *((206, 17, 38), (255, 255, 255), (0, 56, 147), (252, 209, 22), (0, 122, 61), (0, 0, 0)),
    *((116, 172, 223), (255, 130, 0), (130, 20, 40), (0, 150, 150), (0, 30, 80), (90, 160, 40)),
)
_CUMULATIVE_WEIGHTS = list(itertools.accumulate((10, 10, 7, 7, 7, 4, 3, 2, 1, 1, 3, 2)))

# What stands here twice is twice as frequent.
BASES = "rows rows rows columns columns plain plain rising falling quarters saltire border".split()
HOISTS = "triangle triangle bar canton canton trapezium".split()
EMBLEMS = "star star star disc crescent shield shield medley bird ring sun stars stars triangle lozenge plus".split()
SPOTS = (
    (0.5, 0.5),
    (0.5, 0.5),
    (0.25, 0.25),
    (0.2, 0.5),
    (0.33, 0.5),
    (0.72, 0.5),
    (0.75, 0.6),
    (0.5, 0.25),
    (0.8, 0.25),
)


@dataclass(frozen=True)
class Part:
    """A small shape of a coat of arms; place and half sizes in radii of the emblem."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    colour: Colour


@dataclass(frozen=True)
class Emblem:
    kind: str
    colour: Colour
    second_colour: Colour
    count: int  # of stars or rays
    points: int  # of a star
    radius: float  # share of the flag's height
    rotation: float  # radians
    parts: tuple[Part, ...] = ()  # of shields, birds and medleys
    places: tuple[tuple[float, float], ...] = ()  # of many stars, in radii


@dataclass(frozen=True)
class Cross:
    colour: Colour
    border: Colour | None
    x: float
    width: float


@dataclass(frozen=True)
class Hoist:
    """What stands at the mast: a triangle, a bar, or a canton with or without a cross of its own."""

    kind: str
    colour: Colour
    second_colour: Colour
    width: float
    has_border: bool
    has_cross: bool


@dataclass(frozen=True)
class Design:
    base: str
    num_stripes: int
    colours: tuple[Colour, ...]
    widths: tuple[float, ...]
    cross: Cross | None
    hoist: Hoist | None
    emblems: tuple[tuple[tuple[float, float], Emblem], ...]


def choose(generator: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of `choices`, each as likely as the others."""
    return choices[int(generator.random() * len(choices))]  # much faster than `generator.choice`


def _colour(generator: np.random.Generator, avoid: Collection[Colour] = ()) -> Colour:
    while True:
        place = generator.random() * _CUMULATIVE_WEIGHTS[-1]
        colour = PALETTE[bisect.bisect_right(_CUMULATIVE_WEIGHTS, place)]
        if colour not in avoid:
            return colour


def invent_emblem(generator: np.random.Generator, ground: Colour | None = None) -> Emblem:
    """An emblem that stands out from `ground`."""
    emblem = Emblem(
        kind=choose(generator, EMBLEMS),
        colour=_colour(generator, (ground,)),
        second_colour=_colour(generator),
        count=int(generator.integers(3, 10)),
        points=choose(generator, (4, 5, 5, 5, 6, 7, 8, 12, 16)),
        radius=generator.uniform(0.12, 0.34),
        rotation=generator.uniform(0, 2 * math.pi) if generator.random() < 0.2 else 0.0,
    )
    if emblem.kind == "stars":
        return replace(emblem, places=_star_places(emblem.count, generator))
    if emblem.kind in ("shield", "medley", "bird"):
        return replace(emblem, parts=_emblem_parts(emblem, generator))
    return emblem


def _star_places(count: int, generator: np.random.Generator) -> tuple[tuple[float, float], ...]:
    """A ring of stars, a row of them, or a sky."""
    order = choose(generator, ("ring", "row", "sky"))
    if order == "ring":
        angles = [2 * math.pi * i / count for i in range(count)]
        return tuple((1.1 * math.sin(angle), -1.1 * math.cos(angle)) for angle in angles)
    if order == "row":
        return tuple(((i - (count - 1) / 2) * 0.6, generator.uniform(-0.1, 0.1)) for i in range(count))
    return tuple((generator.uniform(-1.4, 1.4), generator.uniform(-1.4, 1.4)) for _ in range(count))


def _emblem_parts(emblem: Emblem, generator: np.random.Generator) -> tuple[Part, ...]:
    colours = [_colour(generator) for _ in range(3)] + [emblem.second_colour, emblem.colour]
    return tuple(
        Part(
            kind=choose(generator, ("disc", "disc", "box", "box", "star")),
            x=generator.normal(0, 0.4),
            y=generator.normal(0, 0.45),
            width=generator.uniform(0.08, 0.4),
            height=generator.uniform(0.08, 0.4),
            colour=choose(generator, colours),
        )
        for _ in range(int(generator.integers(4, 17)))
    )


def invent_design(generator: np.random.Generator) -> Design:
    """A flag of chance, never a single plain colour."""
    base, num_stripes = choose(generator, BASES), choose(generator, (2, 3, 3, 3, 4, 5, 7, 9))
    colours = _stripe_colours(num_stripes, generator)
    cross, hoist = None, None
    if generator.random() < (0.25 if base in ("plain", "quarters") else 0.04):
        border = _colour(generator) if generator.random() < 0.5 else None
        x, width = choose(generator, (0.36, 0.36, 0.5)), generator.uniform(0.06, 0.12)
        cross = Cross(_colour(generator, (colours[0],)), border, x, width)
    if generator.random() < 0.35:
        hoist = Hoist(
            kind=choose(generator, HOISTS),
            colour=_colour(generator, (colours[0],)),
            second_colour=_colour(generator),
            width=generator.uniform(0.3, 0.5),
            has_border=generator.random() < 0.3,
            has_cross=generator.random() < 0.3,
        )
    spots = [choose(generator, SPOTS) for _ in range(choose(generator, (0, 0, 1, 1, 1, 1, 2)))]
    if base == "plain" and not (cross or hoist or spots):
        spots = [(0.5, 0.5)]
    emblems = tuple((spot, invent_emblem(generator, colours[0])) for spot in spots)
    widths = tuple(choose(generator, (1, 1, 1, 1, 2, 0.3)) for _ in colours)
    return Design(base, num_stripes, colours, widths, cross, hoist, emblems)


def _stripe_colours(num_stripes: int, generator: np.random.Generator) -> tuple[Colour, ...]:
    """Nine colours, neighbours different; often symmetric, and only two of them where stripes are many."""
    colours = [_colour(generator)]
    for _ in range(8):
        colours.append(_colour(generator, (colours[-1],)))
    if num_stripes > 5:
        return tuple(colours[i % 2] for i in range(9))
    if generator.random() < 0.4 and num_stripes % 2:
        for i in range(num_stripes // 2):
            colours[num_stripes - 1 - i] = colours[i]
    return tuple(colours)


def change_one_thing(design: Design, generator: np.random.Generator) -> Design:
    """A near copy: another emblem, one less or one more, stripes turned or reversed, or one colour changed."""
    colours, n = design.colours, design.num_stripes
    change = int(generator.integers(6))
    if change == 0 and design.emblems:
        (spot, _), *others = design.emblems
        return replace(design, emblems=((spot, invent_emblem(generator, colours[0])), *others))
    if change == 1 and design.emblems:
        if design.base != "plain" or design.hoist or design.cross:
            return replace(design, emblems=design.emblems[1:])
        return replace(design, emblems=(((0.25, 0.3), design.emblems[0][1]),))
    if change == 2 and not design.emblems:
        return replace(design, emblems=(((0.5, 0.5), invent_emblem(generator, colours[0])),))
    if change == 3 and design.base in ("rows", "columns"):
        return replace(design, base="columns" if design.base == "rows" else "rows")
    if change == 4 and colours[0] != colours[n - 1]:
        return replace(design, colours=(*colours[:n][::-1], *colours[n:]))
    # Of colours that the base does not show none may change, or the copy would be the same flag.
    num_shown = {"plain": 1, "saltire": 2, "border": 2}.get(design.base, min(n, 3))
    i = 0 if change == 4 else int(generator.integers(num_shown))
    return replace(design, colours=(*colours[:i], _colour(generator, (colours[i],)), *colours[i + 1 :]))
