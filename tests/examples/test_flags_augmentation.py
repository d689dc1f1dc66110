"""Redrawing: any flag stays a picture of the asked size, changes, and does so by the given generator alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flags import augmentation
from flags.augmentation import augment, redraw


STEPS = [
    augmentation.thicken,
    augmentation.smooth_detail,
    augmentation.posterise,
    augmentation.cut_out,
    augmentation.shift_palette,
    augmentation.dim_white,
    augmentation.draw_edges,
    augmentation.change_light,
    augmentation.shrink,
    augmentation.blur,
    augmentation.add_grain,
    augmentation.compress,
]


def flags(B: int = 6, side: int = 40) -> torch.Tensor:
    """White-red-blue stripes of different heights with a black bar, (B, 3, side, side) uint8."""
    pictures = torch.full((B, 3, side, side), 255, dtype=torch.uint8)
    for i in range(B):
        pictures[i, 1:, 5 + i : 20] = 30
        pictures[i, :2, 20 + i :] = 60
        pictures[i, :, 10:30, 4:9] = 0
    return pictures


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("B", [1, 6, 2 * augmentation.CHUNK + 1])
def test_result_has_the_asked_size_and_stays_in_range(B):
    for drawings in (flags(B), flags(B).float() / 255):
        pictures = augment(drawings, 32, seeded())
        assert pictures.shape == (B, 3, 32, 32)
        assert pictures.dtype == torch.float32
        assert 0 <= pictures.min() <= pictures.max() <= 1
    assert torch.equal(pictures, augment(flags(B), 32, seeded()))


def test_chance_comes_from_the_generator_alone():
    first = augment(flags(), 32, seeded())
    torch.manual_seed(5)
    assert torch.equal(augment(flags(), 32, seeded()), first)
    assert not torch.equal(augment(flags(), 32, seeded(1)), first)
    state = torch.get_rng_state()
    augment(flags(), 32, seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_change_each_in_its_own_way_and_the_input_does_not():
    drawings = flags(1).expand(20, -1, -1, -1)
    before = drawings.clone()
    pictures = augment(drawings, 32, seeded(), clean=0)
    plain = F.interpolate(drawings.float() / 255, (32, 32), mode="bilinear", antialias=True)
    assert ((pictures - plain).abs().mean((1, 2, 3)) > 0.01).all()
    assert (torch.pdist(pictures.flatten(1), 1) / pictures[0].numel() > 0.01).all()
    assert torch.equal(drawings, before)


def test_clean_pictures_are_only_resized():
    plain = F.interpolate(flags().float() / 255, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(augment(flags(), 32, seeded(), clean=1), plain)
    torch.testing.assert_close(augment(flags(), 32, seeded(), strength=0, clean=0), plain)
    drawings = flags(1).expand(400, -1, -1, -1)
    untouched = (augment(drawings, 24, seeded(), clean=0.25) - augment(drawings, 24, seeded(), strength=0)).abs()
    assert 0.18 < (untouched.amax((1, 2, 3)) < 1e-6).float().mean() < 0.32


def test_redrawing_without_strength_is_nearly_resizing():
    drawings = flags().float() / 255
    changed = redraw(drawings, 32, seeded(), strength=0) - F.interpolate(drawings, (32, 32), mode="bilinear")
    assert changed[:, :, 2:-2, 2:-2].abs().max() < 0.02


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_every_step_changes_pictures_within_their_range(step):
    drawings = F.interpolate(flags().float() / 255, (32, 32), mode="bilinear")
    changed = step(drawings, seeded())
    assert changed.shape == drawings.shape
    assert changed.min() > -1e-5
    assert changed.max() < 1 + 1e-5
    assert (changed - drawings).abs().max() > 0.01
    assert torch.equal(changed, step(drawings, seeded()))


def test_smoothing_is_the_median():
    row = torch.rand(1, 1, 1, 50, generator=seeded()).expand(1, 1, 9, 50)
    expected = F.pad(row, (2, 2, 0, 0), mode="replicate").unfold(3, 5, 1).median(-1).values
    torch.testing.assert_close(augmentation.smooth_detail(row, seeded()), expected)


def test_spreading_is_pooling():
    x = torch.rand(2, 3, 12, 12, generator=seeded())
    torch.testing.assert_close(augmentation._spread(x, torch.maximum), F.max_pool2d(x, 3, 1, 1))


@pytest.mark.parametrize("size", [16, 30])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=str(size)):
        augment(flags(), size, seeded())
