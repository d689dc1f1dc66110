"""Invented flags: families of near copies, two drawings each, the same for the same seed."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from flags.flag_designs import BASES, EMBLEMS, HOISTS, change_one_thing, invent_design, invent_emblem
from flags.synthetic_flags import FAMILY, badges, draw_flag, procedural_flags


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


@pytest.fixture(scope="module")
def pictures():
    return procedural_flags(80, 32, np.random.default_rng(0))


def test_flags_are_drawn_twice_and_reproducibly(pictures):
    assert pictures.shape == (80, 2, 32, 32, 3)
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(procedural_flags(8, 32, np.random.default_rng(0)), pictures[:8])
    assert not np.array_equal(procedural_flags(8, 32, np.random.default_rng(1)), pictures[:8])


def test_drawings_of_one_design_are_nearer_than_strangers(pictures):
    drawings = [difference(first, second) for first, second in pictures]
    strangers = [difference(pictures[i, 0], pictures[(i + FAMILY) % len(pictures), 0]) for i in range(len(pictures))]
    family = [difference(pictures[i, 0], pictures[i + 1, 0]) for i in range(0, len(pictures), FAMILY)]
    assert np.median(drawings) < np.median(family) < np.median(strangers)


def test_a_near_copy_differs_in_one_thing():
    generator = np.random.default_rng(0)
    for _ in range(300):
        design = invent_design(generator)
        copy = change_one_thing(design, generator)
        assert len([f for f in fields(design) if getattr(design, f.name) != getattr(copy, f.name)]) == 1


def test_every_kind_can_be_drawn():
    generator = np.random.default_rng(0)
    designs = [invent_design(generator) for _ in range(600)]
    assert {design.base for design in designs} == set(BASES)
    assert {design.hoist.kind for design in designs if design.hoist} == set(HOISTS)
    assert {emblem.kind for design in designs for _, emblem in design.emblems} == set(EMBLEMS)
    assert any(design.cross and design.cross.border for design in designs)
    for design in designs:
        picture = draw_flag(design, 24, generator)
        assert picture.shape == (24, 24, 3)
        assert picture.std() > 0


def test_emblems_stand_out_from_their_ground():
    generator = np.random.default_rng(0)
    assert all(invent_emblem(generator, (255, 255, 255)).colour != (255, 255, 255) for _ in range(100))


def test_badges_have_a_transparent_ground():
    pictures = badges(40, 20, np.random.default_rng(0))
    assert pictures.shape == (40, 2, 20, 20, 4)
    opacity = pictures[..., 3]
    assert (opacity.max((2, 3)) > 200).all()
    assert np.median(opacity[:, :, 0, 0]) == 0
    np.testing.assert_array_equal(badges(2, 20, np.random.default_rng(0)), pictures[:2])
