"""Pairs for matching drawings: who may be seen, which rows belong together, and the same batches for the same seed."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from flags.matching import (
    PIXEL_MEAN,
    PIXEL_STD,
    FlagPairs,
    _connected,
    _labels,
    paste_badge,
    prepared_picture,
    same_picture_ties,
    wrong_flag_pictures,
)
from flags.world import SAME_DRAWING, VIEWS, load_world


COUNTRIES = ["nl", "jp", "ke"]
SMALL = {"size": 24, "num_real": 3, "num_altered": 8, "num_invented": 8, "num_designs": 40}


@pytest.fixture(scope="module")
def world():
    return load_world()


def first_batches(dataset, num=3):
    return list(itertools.islice(dataset, num))


def test_batches_have_the_promised_shape(world):
    for batch in first_batches(FlagPairs(world, COUNTRIES, **SMALL), 4):
        assert batch["pixel_values"].shape == (2 * 19, 3, 24, 24)
        assert batch["pixel_values"].dtype == torch.float32
        pixels = batch["pixel_values"] * PIXEL_STD + PIXEL_MEAN
        assert -1e-5 <= pixels.min() < 0.1
        assert 0.9 < pixels.max() <= 1 + 1e-5
        assert batch["labels"].dtype == torch.int64
        assert torch.equal(*batch["labels"].chunk(2))
        assert batch["labels"].unique().numel() > 10


def test_a_seed_gives_the_same_batches_bit_for_bit(world):
    def batches(seed, **options):
        return first_batches(FlagPairs(world, COUNTRIES, seed=seed, **{**SMALL, **options}))

    first, again, other = batches(0), batches(0), batches(1)
    for one, two, three in zip(first, again, other):
        assert torch.equal(one["pixel_values"], two["pixel_values"])
        assert torch.equal(one["labels"], two["labels"])
        assert not torch.equal(one["pixel_values"], three["pixel_values"])
    assert not torch.equal(first[0]["pixel_values"], first[1]["pixel_values"])


def test_an_iterator_starts_anew_and_a_loader_hands_batches_on(world):
    dataset = FlagPairs(world, COUNTRIES, **SMALL)
    expected = first_batches(dataset, 2)
    for one, two in zip(expected, itertools.islice(DataLoader(dataset, batch_size=None), 2)):
        assert torch.equal(one["pixel_values"], two["pixel_values"])
    # Workers that repeated each other would show the encoder every batch twice.
    workers = first_batches(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork"), 2)
    assert not torch.equal(workers[0]["pixel_values"], workers[1]["pixel_values"])


class WatchedImages(dict):
    """Pictures that remember which of them were opened."""

    def __init__(self, images):
        super().__init__(images)
        self.opened = set()

    def __getitem__(self, key):
        self.opened.add(key)
        return super().__getitem__(key)


def test_only_the_given_countries_and_views_are_seen(world):
    views = ("coreui", "twemoji")
    keys = {(country, view) for country in COUNTRIES for view in views if (country, view) in world.images}
    watched = SimpleNamespace(images=WatchedImages({key: world.images[key] for key in [*keys, ("no", "coreui")]}))
    dataset = FlagPairs(watched, COUNTRIES, views, **SMALL)
    assert watched.images.opened == set(dataset.keys) == keys
    opened = watched.images.opened.copy()
    bank = {picture.numpy().tobytes() for picture in dataset.pictures}
    expected = [prepared_picture(world.images[key], 30) for key in keys]
    assert bank == {np.asarray(picture).transpose(2, 0, 1).tobytes() for picture in expected}
    drawings, names = dataset._drawings(np.random.default_rng(0), by_family=False)
    assert sorted(names[:3]) == sorted(COUNTRIES)
    assert all(picture.contiguous().numpy().tobytes() in bank for picture in drawings[:, :3].flatten(0, 1))
    first_batches(dataset)
    assert watched.images.opened == opened


def test_rows_of_a_pair_are_two_drawings_of_one_country(world):
    dataset = FlagPairs(world, COUNTRIES, **SMALL)
    owner = {picture.numpy().tobytes(): key for key, picture in zip(dataset.keys, dataset.pictures)}
    for seed in range(5):
        drawings, names = dataset._drawings(np.random.default_rng(seed), by_family=False)
        for i, name in enumerate(names[:3]):
            (first, view), (second, other_view) = (
                owner[drawings[v, i].contiguous().numpy().tobytes()] for v in (0, 1)
            )
            assert first == second == name
            assert view != other_view


def test_altered_flags_are_new_flags(world):
    dataset = FlagPairs(world, COUNTRIES, **SMALL)
    bank = {picture.numpy().tobytes() for picture in dataset.pictures}
    for seed in range(5):
        drawings, names = dataset._drawings(np.random.default_rng(seed), by_family=True)
        assert names[3:] == [None] * 16
        assert not any(picture.contiguous().numpy().tobytes() in bank for picture in drawings[:, 3:].flatten(0, 1))


def test_every_other_batch_holds_whole_families(world):
    dataset = FlagPairs(world, COUNTRIES, **SMALL)
    designs = dataset._some_designs(np.random.default_rng(0), by_family=True)
    assert (designs.reshape(2, 4) // 4 == designs[::4, None] // 4).all()
    assert len(set(designs)) == len(set(dataset._some_designs(np.random.default_rng(0), by_family=False))) == 8


def test_flags_that_look_alike_share_a_label():
    plain = torch.full((3, 20, 20), 100, dtype=torch.uint8)
    nearly = plain + 1
    other = plain + 100
    stripes = plain.clone()
    stripes[:, ::4] = 255
    drawings = torch.stack([torch.stack([plain, other, stripes]), torch.stack([other // 2, nearly, stripes // 2])])
    # Flags 0 and 1 are tied through drawings 0 of the one and 1 of the other; flag 2 stands alone.
    assert _labels(drawings, [None] * 3).tolist() == [0, 0, 2, 0, 0, 2]
    assert _labels(drawings, ["no", None, "no"]).tolist() == [0, 0, 0, 0, 0, 0]


def test_being_alike_is_made_transitive():
    chain = torch.eye(6, dtype=torch.bool)
    for i, j in ((5, 3), (3, 1), (4, 2)):
        chain[i, j] = chain[j, i] = True
    assert _connected(chain).tolist() == [0, 1, 2, 1, 2, 1]


def test_a_badge_is_pasted_within_the_picture():
    flag = torch.zeros(2, 3, 20, 20, dtype=torch.uint8)
    badge = torch.full((2, 4, 8, 8), 255, dtype=torch.uint8)
    pasted = paste_badge(flag, badge, spot=(1.0, 0.5), share=0.5)
    assert flag.sum() == 0
    assert pasted.shape == flag.shape
    assert (pasted[:, :, 5:15, 10:] == 255).all()
    assert (pasted == 255).sum() == 2 * 3 * 10 * 10
    badge[:, 3] = 0
    assert torch.equal(paste_badge(flag, badge, (0.5, 0.5), 0.5), flag)


def test_pictures_of_another_flag_are_found_and_left_out(world):
    wrong = wrong_flag_pictures(world, ["re", "mf", "gp", "nl", "no", "sj", "jp"])
    assert ("gp", "flagicons") in wrong  # drawn as the French flag, which Réunion flies
    assert {entity for entity, _ in wrong} == {"gp"}
    dataset = FlagPairs(world, ["re", "gp"], **SMALL)
    assert not wrong & set(dataset.keys)
    assert {entity for entity, _ in dataset.keys} == {"re", "gp"}
    assert wrong_flag_pictures(world, ["gp"]) == wrong_flag_pictures(world, []) == set()


def test_ties_hold_the_entries_with_one_picture(world):
    ties = same_picture_ties(world)
    assert {frozenset(group) for group in SAME_DRAWING} <= {frozenset(group) for group in ties}
    assert ("id", "mc") in ties
    assert sum(map(len, ties)) < 15


def test_mistakes_are_named(world):
    with pytest.raises(ValueError, match="None of the 1 countries.*no such style"):
        FlagPairs(world, ["nl"], ["no such style"], **SMALL)
    for num_designs in (4, 42):
        with pytest.raises(ValueError, match="multiple of 4, and at least the 8"):
            FlagPairs(world, COUNTRIES, **{**SMALL, "num_designs": num_designs})


def test_preparation_trims_and_squares(world):
    framed = world.images["nl", "openmoji"]
    assert prepared_picture(framed, 32).size == (32, 32)
    assert max(prepared_picture(framed, 64).getpixel((0, 32))) < 100  # the black frame, not the white margin
    assert prepared_picture(Image.new("RGBA", (9, 5), (255, 0, 0, 0)), 8).getpixel((0, 0)) == (255, 255, 255)
    assert set(VIEWS) == {view for _, view in world.images}
