"""Knows how to redraw a flag as another hand would have drawn it: other shades, frame, cloth and camera.

`augment` takes drawings that are tight on the flag through four stages, each step for a random share of the batch:
(1) colours and detail, as icon sets choose them; (2) `redraw`, one resampling for frame, shape, gloss and background;
(3) light; (4) the camera. What stays the same from one drawing to the next is what makes a flag that country's flag.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F


# Of this many pictures at a time every tensor fits into the processor's cache: a third less time than 200 at once.
CHUNK = 32


def augment(
    drawings: torch.Tensor, size: int, generator: torch.Generator, strength: float = 1.0, clean: float = 0.12
) -> torch.Tensor:
    """Redraws every flag in a style of its own.

    Args:
        drawings (`torch.Tensor`): (B, 3, H, W), `uint8` in 0..255 or float in 0..1, tight on the flag. A little larger
            than `size` keeps the result sharp.
        size (`int`): Side of the result in pixels; a multiple of 8, at least 24.
        generator (`torch.Generator`): The only source of chance.
        strength (`float`): Scales how often and how far pictures change; 0 only resizes.
        clean (`float`): Share of the pictures that are only resized, as the ones in a knowledge base are.

    Returns:
        `torch.Tensor`: (B, 3, size, size), float32 in 0..1.

    Raises:
        ValueError: If `size` is not a multiple of 8 or below 24.

    Example:

    ```python
    >>> red = torch.tensor([206, 17, 38], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 80, 80)
    >>> augment(red, 64, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 3, 64, 64])

    ```
    """
    if size % 8 or size < 24:
        raise ValueError(f"`size` is {size}, but the steps work in blocks of 8 pixels: pass 24, 32, ..., 64, ...")
    return torch.cat([_augment_chunk(chunk, size, generator, strength, clean) for chunk in drawings.split(CHUNK)])


def _augment_chunk(
    x: torch.Tensor, size: int, generator: torch.Generator, strength: float, clean: float
) -> torch.Tensor:
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    changes = torch.rand(len(x), generator=generator) >= (clean if strength else 1)
    result = x.new_empty(len(x), 3, size, size)
    if not changes.all():
        result[~changes] = F.interpolate(x[~changes], (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    if changes.any():
        result[changes] = restyle(x[changes], size, generator, strength)
    return result


def restyle(x: torch.Tensor, size: int, generator: torch.Generator, strength: float) -> torch.Tensor:
    """Detail and colour before the shape changes, light and camera after it. (B, 3, H, W) → (B, 3, size, size)."""
    # A patch cut out is rare: a plain flag and the same flag with a badge must stay two flags.
    before = [
        (0.15, thicken),
        (0.15, smooth_detail),
        (0.10, posterise),
        (0.06, cut_out),
        (0.75, shift_palette),
        (0.30, dim_white),
        (0.12, draw_edges),
    ]
    after = [(0.40, change_light), (0.12, shrink), (0.20, blur), (0.15, add_grain), (0.12, compress)]
    for share, step in before:
        x = _for_some(x, share * strength, step, generator)
    x = redraw(x, size, generator, strength)
    for share, step in after:
        x = _for_some(x, share * strength, step, generator)
    return x


def _for_some(x: torch.Tensor, share: float, step: Callable, generator: torch.Generator) -> torch.Tensor:
    """Spends time on the chosen pictures only."""
    chosen = (torch.rand(len(x), generator=generator) < share).nonzero()[:, 0]
    return x.index_copy(0, chosen, step(x[chosen], generator)) if len(chosen) else x


def _uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def _amounts(generator: torch.Generator, B: int, low: float, high: float, share: float = 1.0) -> torch.Tensor:
    """One number per picture, 0 for all but a `share` of them: (B, 1, 1)."""
    chosen = torch.rand(B, 1, 1, generator=generator) < share
    return _uniform(generator, B, 1, 1, low=low, high=high) * chosen


# --------------------------------------------------------------------------------------------- colours: icon sets


def shift_palette(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Another palette, each colour moved on its own: a smooth random map of the colour cube (4 x 4 x 4 shifts)."""
    B = len(x)
    shifts = torch.randn(B, 3, 4, 4, 4, generator=generator) * 0.26 * _uniform(generator, B, 1, 1, 1, 1)
    # Each colour is a place in the volume of shifts; `grid_sample` wants its coordinates as (blue, green, red).
    places = (x.permute(0, 2, 3, 1) * 2 - 1).flip(-1)[:, None]  # (B, 1, H, W, 3)
    return (x + F.grid_sample(shifts, places, align_corners=True, padding_mode="border")[:, :, 0]).clamp(0, 1)


def dim_white(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """White becomes light grey or cream, black dark grey, as icon sets draw them that are shown on white pages."""
    B = len(x)
    white = 1 - _uniform(generator, B, 3, 1, 1, high=0.1) * _uniform(generator, B, 1, 1, 1)
    black = _uniform(generator, B, 1, 1, 1, high=0.2)
    return black + x * (white - black)


def posterise(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Few levels per channel, as in small indexed GIFs."""
    levels = torch.randint(2, 6, (len(x), 1, 1, 1), generator=generator)
    return (x * levels).round() / levels


# --------------------------------------------------------------------------------------- detail: a bolder or finer pen


def _spread(x: torch.Tensor, extreme: Callable) -> torch.Tensor:
    """3 x 3 filter by shifts with `torch.maximum` or `torch.minimum`; much faster on a CPU than `max_pool2d`."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = extreme(extreme(x[..., :-2], x[..., 1:-1]), x[..., 2:])
    return extreme(extreme(x[..., :-2, :], x[..., 1:-1, :]), x[..., 2:, :])


def thicken(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Light or dark strokes grow, so that small parts get bolder or vanish."""
    grows_light = torch.rand(1, generator=generator) < 0.5
    return _spread(x, torch.maximum if grows_light else torch.minimum)


def smooth_detail(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A simplified drawing: the median of 5 pixels in a row, then in a column, keeps areas and drops fine parts."""
    least, most = torch.minimum, torch.maximum
    for padding, dim in (((2, 2, 0, 0), 3), ((0, 0, 2, 2), 2)):
        padded = F.pad(x, padding, mode="replicate")
        a, b, c, d, e = (padded.narrow(dim, start, x.shape[dim]) for start in range(5))
        # Of the first four the smallest and the largest cannot be the median of five.
        low, high = most(least(a, b), least(c, d)), least(most(a, b), most(c, d))
        x = most(least(low, high), least(e, most(low, high)))
    return x


def cut_out(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An elliptic patch takes a colour found elsewhere in the picture: an emblem hidden or left out."""
    B, _, H, W = x.shape
    centre = _uniform(generator, B, 2, 1, 1, low=0.15, high=0.85)
    radius = _uniform(generator, B, 2, 1, 1, low=0.04, high=0.12)
    down = (torch.linspace(0, 1, H).view(1, H, 1) - centre[:, 0]) / radius[:, 0]
    right = (torch.linspace(0, 1, W).view(1, 1, W) - centre[:, 1]) / radius[:, 1]
    patch = (down**2 + right**2 < 1)[:, None]  # (B, 1, H, W)
    pixel = torch.randint(0, H * W, (B,), generator=generator)
    return torch.where(patch, x.flatten(2)[torch.arange(B), :, pixel][:, :, None, None], x)


def draw_edges(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Dark lines where colours meet, as comic and outline icon sets draw them."""
    contrast = (_spread(x, torch.maximum) - _spread(x, torch.minimum)).amax(1, keepdim=True)
    line = ((contrast - 0.25) * 4).clamp(0, 1) * _uniform(generator, len(x), 1, 1, 1, low=0.3)
    return x * (1 - line) + line * _uniform(generator, len(x), 1, 1, 1, high=0.3)


# ------------------------------------------------------------------------------------------- shape: frame and cloth


def redraw(x: torch.Tensor, size: int, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Waving cloth, buttons, shields, cropped and padded icons: one resampling of (B, 3, H, W) to (B, 3, size, size).

    For each pixel of the result it is asked in turn where it lies in the frame (which fills -1..1), how the cloth is
    displaced there, and which place of the drawing it shows.
    """
    amount = partial(_amounts, generator, len(x))
    right, down = _frame_coordinates(size, amount, strength)
    right, down, shade = _wave(right, down, amount, strength)
    distance, radius = _frame_distance(right, down, generator, strength)
    outline = amount(0.02, 0.12, 0.3 * strength)
    places = _content_coordinates(right, down, outline, radius, generator, strength)
    y = F.grid_sample(x, places, padding_mode="border", align_corners=False) * shade[:, None]
    y = _shine(y, right, down, amount, strength)
    return _frame(y, distance, outline, generator, strength).clamp(0, 1)


def _frame_coordinates(size: int, amount: Callable, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """An icon smaller than its picture, turned, sheared, or seen from the side: two of (B, size, size)."""
    line = (torch.arange(size) * 2 + 1) / size - 1
    width, height = 1 - amount(0, 0.4, 0.35 * strength), 1 - amount(0, 0.5, 0.35 * strength)
    right = (line.view(1, 1, -1) - amount(-1, 1) * (1 - width)) / width
    down = (line.view(1, -1, 1) - amount(-1, 1) * (1 - height) * 0.5) / height
    angle = amount(-0.3, 0.3, 0.25 * strength)
    right, down = right * angle.cos() - down * angle.sin(), right * angle.sin() + down * angle.cos()
    shear_right, shear_down = amount(-0.25, 0.25, 0.2 * strength), amount(-0.2, 0.2, 0.2 * strength)
    right, down = right + shear_right * down, down + shear_down * right
    depth = 1 + amount(-0.25, 0.25, 0.25 * strength) * right + amount(-0.2, 0.2, 0.25 * strength) * down
    return right / depth, down / depth


def _wave(
    right: torch.Tensor, down: torch.Tensor, amount: Callable, strength: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cloth in the wind with light on its folds: the coordinates, and a brightness around 1, all (B, S, S)."""
    height = amount(0.02, 0.16, 0.3 * strength)
    phase = amount(1.2, 5.5) * right + amount(0, 2 * math.pi) + amount(-1, 1) * down
    down = down * (1 + height) + height * phase.sin()
    return right, down, 1 + height * amount(1, 4) * phase.cos()


def _frame_distance(
    right: torch.Tensor, down: torch.Tensor, generator: torch.Generator, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sharp, rounded or round frames, some of them shields: distance to the edge, negative inside, and radius."""
    amount = partial(_amounts, generator, len(right))
    kind = torch.rand(len(right), 1, 1, generator=generator)
    rounded = torch.where(kind < 0.45 * strength, amount(0.02, 0.45), 0.0)
    radius = torch.where(kind < 0.18 * strength, 1.0, rounded)  # radius 1 is a circle
    right = right / (1 - amount(0.2, 0.8, 0.06 * strength) * down.clamp(min=0) ** 2)  # a shield narrows to its foot
    beyond_x, beyond_y = right.abs() - (1 - radius), down.abs() - (1 - radius)
    outside = (beyond_x.clamp(min=0) ** 2 + beyond_y.clamp(min=0) ** 2 + 1e-9).sqrt()
    return outside + torch.maximum(beyond_x, beyond_y).clamp(max=0) - radius, radius


def _content_coordinates(
    right: torch.Tensor,
    down: torch.Tensor,
    outline: torch.Tensor,
    radius: torch.Tensor,
    generator: torch.Generator,
    strength: float,
) -> torch.Tensor:
    """Sides cut off, other proportions, a larger or smaller emblem: the place shown at each pixel, (B, S, S, 2)."""
    B, size = len(right), right.shape[-1]
    amount = partial(_amounts, generator, B)
    inset = 1 / (1 - outline * amount(0, 1, 0.7))  # some outlines cover the drawing's edge, some stand around it
    crop = 1 - amount(0, 0.45, 0.25 * strength) * torch.where(radius >= 1, 1.0, 0.8)
    keeps_left = torch.rand(B, 1, 1, generator=generator) >= 0.6
    edge = 1 - amount(-0.03, 0.12, 0.5 * strength)
    right, down = right * inset * crop * edge + (crop - 1) * keeps_left, down * inset * edge
    # Bicubic enlargement of 4 x 4 shifts, which is linear, as one product from either side.
    enlarge = F.interpolate(torch.eye(4)[None, None], (size, 4), mode="bicubic", align_corners=True)[0, 0]
    shifts = torch.randn(B, 2, 4, 4, generator=generator) * _amounts(generator, B, 0, 0.07 * strength, 0.6)[:, None]
    shifts = enlarge @ shifts @ enlarge.mT  # (B, 2, S, S)
    right, down = right + shifts[:, 0], down + shifts[:, 1]
    centre_x, centre_y = amount(-0.6, 0.6, 0.6), amount(-0.5, 0.5, 0.4)
    square_distance = (right - centre_x) ** 2 + (down - centre_y) ** 2
    zoom = amount(-0.55, 0.45, 0.35 * strength) * torch.exp(-square_distance / amount(0.08, 0.35))
    return torch.stack((right + (right - centre_x) * zoom, down + (down - centre_y) * zoom), -1)


def _shine(
    x: torch.Tensor, right: torch.Tensor, down: torch.Tensor, amount: Callable, strength: float
) -> torch.Tensor:
    """The glossy upper half of a button, or a gradient over the whole of it."""
    rim = 0.1 + amount(-0.3, 0.3) + amount(-0.3, 0.3) * right
    light = amount(0, 0.5, 0.15 * strength) * ((rim - down) * 8).sigmoid()
    light = light + amount(-0.35, 0.35, 0.2 * strength) * (down * amount(-1, 1) + right * amount(-1, 1))
    light = light[:, None].clamp(-0.8, 0.8)
    return torch.where(light > 0, x + (1 - x) * light, x * (1 + light))


def _frame(
    x: torch.Tensor, distance: torch.Tensor, outline: torch.Tensor, generator: torch.Generator, strength: float
) -> torch.Tensor:
    """A dark or coloured outline, a drop shadow, and the ground that the flag stands on, mostly white."""
    B, softness = len(x), x.shape[-1] / 2.5
    line = (((distance + outline) * softness).sigmoid() * (outline > 0))[:, None]
    grey = _uniform(generator, B, 1, 1, 1, high=0.45) * _uniform(generator, B, 1, 1, 1)
    is_coloured = torch.rand(B, 1, 1, 1, generator=generator) < 0.15
    x = x * (1 - line) + torch.where(is_coloured, _uniform(generator, B, 3, 1, 1), grey) * line
    has_ground = torch.rand(B, 1, 1, 1, generator=generator) < 0.15 * strength
    ground = torch.where(has_ground, _uniform(generator, B, 3, 1, 1), 1.0)
    shadow = _amounts(generator, B, 0, 0.5, 0.1 * strength) * torch.exp(-distance.clamp(min=0) / 0.06)
    outside = (distance * softness * 2).sigmoid()[:, None]
    return x * (1 - outside) + ground * (1 - shadow[:, None]) * outside


# ------------------------------------------------------------------------------------------------ light and camera


def change_light(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness, contrast, saturation and a small colour cast, as scans and photos have them."""
    B = len(x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _uniform(generator, B, 1, 1, 1, low=0.6, high=1.35)
    x = 0.5 + (x - 0.5) * _uniform(generator, B, 1, 1, 1, low=0.7, high=1.2)
    cast = _uniform(generator, B, 3, 1, 1, low=0.9, high=1.08)
    return (x * cast + _uniform(generator, B, 1, 1, 1, low=-0.08, high=0.06)).clamp(0, 1)


def shrink(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A tiny pixel icon, enlarged again smoothly or in blocks."""
    size = x.shape[-1]
    small = int(torch.randint(10, size // 2 + 1, (1,), generator=generator))
    by_area, in_blocks = torch.rand(2, generator=generator) < torch.tensor([0.5, 0.3])
    x = F.interpolate(x, (small, small), **({"mode": "area"} if by_area else {"mode": "bilinear", "antialias": True}))
    return F.interpolate(x, (size, size), mode="nearest" if in_blocks else "bilinear").clamp(0, 1)


def blur(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Slightly out of focus: part of the mean of 3 x 3 pixels."""
    share = _uniform(generator, len(x), 1, 1, 1, low=0.3)
    return torch.lerp(x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1), share)


def add_grain(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Grain of single pixels and of 2 x 2 blocks."""
    B, C, H, W = x.shape
    fine = torch.randn(B, C, H, W, generator=generator)
    coarse = F.interpolate(torch.randn(B, C, H // 2, W // 2, generator=generator), (H, W))
    return (x + (fine + coarse) * _uniform(generator, B, 1, 1, 1, high=0.06)).clamp(0, 1)


_FREQUENCY = torch.arange(8)
_COSINES = torch.cos((2 * _FREQUENCY + 1) * _FREQUENCY[:, None] * math.pi / 16) * 0.5  # (frequency, place)
_COSINES[0] /= math.sqrt(2)


def compress(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A JPEG saved too small: cosine transform of 8 x 8 blocks, rounded more coarsely the higher the frequency."""
    B, C, H, W = x.shape
    blocks = x.view(B, C, H // 8, 8, W // 8, 8).transpose(3, 4)  # (B, C, rows, columns, 8, 8)
    step = (1 + _FREQUENCY[:, None] + _FREQUENCY) * _uniform(generator, B, 1, 1, 1, 1, 1, low=0.02, high=0.12)
    waves = (_COSINES @ blocks @ _COSINES.mT / step).round() * step
    return (_COSINES.mT @ waves @ _COSINES).transpose(3, 4).reshape(B, C, H, W).clamp(0, 1)
