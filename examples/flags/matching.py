"""Knows how to teach an encoder that two drawings of one flag belong together: which pictures, and which pairs.

The shipped drawings alone would teach 150 flags by heart. Three things make every batch new: each picture is redrawn
by `augment`; real flags are altered into flags of no country (a strange badge, mirrored, other colours), which stand
beside their originals; and invented flags come in families of near copies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from flags.augmentation import augment
from flags.synthetic_flags import FAMILY, badges, procedural_flags
from flags.world import ENTRY_VIEW, VIEWS, World, drawing_group
from hf_ravlm.images import safe_image, trim_margins


PIXEL_MEAN, PIXEL_STD = 0.5, 0.3

# Mean differences per channel of two pictures at 16 x 16 pixels, as shares of full brightness.
SAME_PICTURE = 0.002  # the same flag in slightly other shades: Monaco and Indonesia
NEARLY_SAME_PICTURE = 0.008  # not to be called different, whoever drew it
COPIED_PICTURE = 0.012  # within one style: one flag file used for two countries

_BADGE_SIDE = 40
_BADGE_SPOTS = ((0.5, 0.5), (0.5, 0.5), (0.25, 0.3), (0.25, 0.5), (0.75, 0.5), (0.75, 0.5))
_CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
_FLIPS = ((), (-1,), (-2,), (-2, -1))


class FlagPairs(IterableDataset):
    """Endless batches of flags, each flag drawn twice; no batch is like another.

    Each batch is a dictionary of

    - `pixel_values` (`torch.Tensor`): (2n, 3, size, size) float32, `(x - PIXEL_MEAN) / PIXEL_STD` of x in 0..1. Rows i
      and i + n are two drawings of one flag.
    - `labels` (`torch.Tensor`): (2n,) int64, equal where rows show one flag: the two drawings, and flags that look
      alike before they are redrawn. A loss may not push rows of one label apart; apart from i and i + n it should not
      pull them together either, since some differ by a small badge. Numbers mean nothing beyond their batch.

    Args:
        world (`World`): Where the drawings are.
        countries (`Sequence[str]`): Whose flags may be seen, altered or not; pictures of others are never opened.
        views (`Sequence[str]`): Drawing styles that may be seen. A picture that shows another of the countries' flag
            is left out, see `wrong_flag_pictures`.
        size (`int`): Side of the pictures in pixels, a multiple of 8.
        seed (`int`): The same seed gives the same batches, bit for bit; each `DataLoader` worker has its own.
        num_real, num_altered, num_invented (`int`): Flags of each sort in a batch; n is their sum. Where there are
            fewer than `num_real` countries, all of them come.
        num_designs (`int`): Invented flags to draw from, a multiple of four.
        strength, clean (`float`): As in `augment`.

    Example:

    ```python
    world = load_world()
    loader = DataLoader(FlagPairs(world, world.train), batch_size=None)  # what it yields are batches already
    for batch in itertools.islice(loader, 500):
        embeddings = encoder(batch["pixel_values"])
    ```
    """

    def __init__(
        self,
        world: World,
        countries: Sequence[str],
        views: Sequence[str] = VIEWS,
        size: int = 64,
        seed: int = 0,
        *,
        num_real: int = 48,
        num_altered: int = 24,
        num_invented: int = 32,
        num_designs: int = 5000,
        strength: float = 1.0,
        clean: float = 0.12,
    ):
        if num_designs % FAMILY or num_designs < num_invented:
            raise ValueError(
                f"`num_designs` is {num_designs}: pass a multiple of {FAMILY}, and at least the {num_invented} "
                "invented flags of one batch."
            )
        self.size, self.seed, self.strength, self.clean = size, seed, strength, clean
        self.num_altered, self.num_invented = num_altered, num_invented
        # Larger than the result, so that redrawing has something to take detail from.
        side = size * 5 // 4
        keys = _picture_keys(world, countries, views)
        if not keys:
            raise ValueError(f"None of the {len(countries)} countries has a picture in the views {list(views)}.")
        pictures = _prepared_pictures(world, keys, side)
        wrong = _wrong_flags(keys, pictures)
        self.keys = [key for key in keys if key not in wrong]
        self.pictures = pictures[[key not in wrong for key in keys]]  # (N, 3, side, side) uint8, as `keys`
        self.countries = list(dict.fromkeys(entity for entity, _ in self.keys))
        self.num_real = min(num_real, len(self.countries))
        rows: dict[str, list[int]] = {country: [] for country in self.countries}
        for row, (entity, _) in enumerate(self.keys):
            rows[entity].append(row)
        self._rows_of = list(rows.values())
        generator = np.random.default_rng(seed)
        self.invented = _channels_first(procedural_flags(num_designs, side, generator))  # (N, 2, 3, side, side)
        self.badges = _channels_first(badges(num_designs * 3 // 10, _BADGE_SIDE, generator))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        generator = np.random.default_rng([self.seed, worker.id + 1 if worker else 0])
        torch_generator = torch.Generator().manual_seed(int(generator.integers(2**63)))
        by_family = False
        while True:
            drawings, names = self._drawings(generator, by_family)
            pictures = augment(drawings.flatten(0, 1), self.size, torch_generator, self.strength, self.clean)
            yield {"pixel_values": (pictures - PIXEL_MEAN) / PIXEL_STD, "labels": _labels(drawings, names)}
            by_family = not by_family

    def _drawings(self, generator: np.random.Generator, by_family: bool) -> tuple[torch.Tensor, list[str | None]]:
        """Two drawings of each flag, (2, n, 3, side, side) `uint8`, and for the real ones whose flag it is."""
        real = generator.choice(len(self.countries), self.num_real, replace=False)
        pairs = [self.pictures[self._two_rows(country, generator)] for country in real]
        # Half of the altered flags stand in pairs beside their originals, as the hardest negatives.
        num_originals = min(self.num_altered // 4, len(real))
        originals = np.repeat(generator.choice(real, num_originals, replace=False), 2)
        others = generator.integers(len(self.countries), size=self.num_altered - len(originals))
        for country in (*originals, *others):
            pairs.append(self._altered(self.pictures[self._two_rows(country, generator)], generator))
        flags = torch.cat([torch.stack(pairs), self.invented[self._some_designs(generator, by_family)]])
        names = [drawing_group(self.countries[country]) for country in real]
        return flags.transpose(0, 1), names + [None] * (len(flags) - len(names))

    def _two_rows(self, country: int, generator: np.random.Generator) -> np.ndarray:
        rows = self._rows_of[country]
        return generator.choice(rows, 2, replace=len(rows) < 2)

    def _some_designs(self, generator: np.random.Generator, by_family: bool) -> np.ndarray:
        if not by_family:
            return generator.choice(len(self.invented), self.num_invented, replace=False)
        families = generator.choice(len(self.invented) // FAMILY, self.num_invented // FAMILY, replace=False)
        return (families[:, None] * FAMILY + np.arange(FAMILY)).flatten()

    def _altered(self, pair: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """Both drawings (2, 3, S, S) of one flag made into a flag of no country, in the same way."""
        if generator.random() < 0.6:
            return paste_badge(
                pair,
                self.badges[generator.integers(len(self.badges))],
                spot=_BADGE_SPOTS[generator.integers(len(_BADGE_SPOTS))],
                share=generator.uniform(0.2, 0.55),
            )
        # Most flags look the same in one of the mirrors: such a change is none, and another one is tried.
        for code in generator.permutation(len(_FLIPS) * len(_CHANNEL_ORDERS)):
            flip, order = _FLIPS[code % len(_FLIPS)], _CHANNEL_ORDERS[code // len(_FLIPS)]
            altered = pair[:, list(order)].flip(flip)
            if torch.diagonal(_differences(pair, altered)).min() >= NEARLY_SAME_PICTURE:
                return altered
        return altered


def paste_badge(pictures: torch.Tensor, badge: torch.Tensor, spot: tuple[float, float], share: float) -> torch.Tensor:
    """Pastes drawings of a badge on drawings of a flag.

    Args:
        pictures (`torch.Tensor`): (V, 3, S, S) `uint8`.
        badge (`torch.Tensor`): (V, 4, s, s) `uint8`, opacity last.
        spot (`tuple[float, float]`): Centre of the badge, from the left and from the top, as shares of the side; it
            is moved so that the badge lies within the picture.
        share (`float`): Side of the badge as a share of the picture's.

    Returns:
        `torch.Tensor`: (V, 3, S, S) `uint8`, a copy.
    """
    size = pictures.shape[-1]
    side = max(6, int(share * size))
    left, top = (min(max(int(place * size - side / 2), 0), size - side) for place in spot)
    badge = F.interpolate(badge.float(), (side, side), mode="bilinear", antialias=True)
    colours, opacity = badge[:, :3], badge[:, 3:] / 255
    pictures = pictures.clone()
    patch = pictures[:, :, top : top + side, left : left + side]  # a view: writing to it writes to `pictures`
    patch.copy_((patch * (1 - opacity) + colours * opacity).clamp(0, 255))
    return pictures


# -------------------------------------------------------------------------------------- pictures, and which are alike


def prepared_picture(image: Image.Image, size: int) -> Image.Image:
    """A picture as the encoder sees it: upright RGB, without margins, square whatever its proportions were."""
    return trim_margins(safe_image(image)).resize((size, size), Image.Resampling.BILINEAR)


def wrong_flag_pictures(world: World, entities: Collection[str], views: Sequence[str] = VIEWS) -> set[tuple[str, str]]:
    """Finds pictures that show another country's flag: several icon sets draw the French flag for Guadeloupe.

    Such a picture equals another entity's picture of the same style, and is nearer to that entity's drawings in other
    styles than to its own. It is seen only if that other entity is among `entities` and both have several drawings.

    Args:
        world (`World`): Where the drawings are.
        entities (`Collection[str]`): Countries to compare.
        views (`Sequence[str]`): Drawing styles to compare.

    Returns:
        `set[tuple[str, str]]`: (entity, view) of each such picture.
    """
    keys = _picture_keys(world, entities, views)
    return _wrong_flags(keys, _prepared_pictures(world, keys, 64)) if keys else set()


def _wrong_flags(keys: Sequence[tuple[str, str]], pictures: torch.Tensor) -> set[tuple[str, str]]:
    owners, styles = (np.array(column) for column in zip(*keys, strict=True))
    groups = np.array([drawing_group(owner) for owner in owners])
    differences = _differences(pictures, pictures).numpy()  # (N, N)
    is_copy = (differences < COPIED_PICTURE) & (styles[:, None] == styles) & (groups[:, None] != groups)
    wrong = set()
    for i, j in zip(*np.nonzero(is_copy), strict=True):
        elsewhere = styles != styles[i]
        own = differences[i, elsewhere & (owners == owners[i])]
        other = differences[i, elsewhere & (owners == owners[j])]
        if len(own) and len(other) and np.median(own) > np.median(other) + 0.02:
            wrong.add(keys[i])
    return wrong


def same_picture_ties(world: World) -> list[tuple[str, ...]]:
    """Groups of entries that no retriever can tell apart by image: their pictures are the same but for a shade.

    Returns:
        `list[tuple[str, ...]]`: Entities, in the order of `world.entities`; among them are those of `SAME_DRAWING`.
    """
    entities = list(world.entities)
    pictures = _prepared_pictures(world, [(entity, ENTRY_VIEW) for entity in entities], 64)
    labels = _connected(_differences(pictures, pictures) < SAME_PICTURE).tolist()
    groups: dict[int, list[str]] = {}
    for entity, label in zip(entities, labels, strict=True):
        groups.setdefault(label, []).append(entity)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _picture_keys(world: World, entities: Collection[str], views: Sequence[str]) -> list[tuple[str, str]]:
    return [(entity, view) for entity in entities for view in views if (entity, view) in world.images]


def _prepared_pictures(world: World, keys: Sequence[tuple[str, str]], size: int) -> torch.Tensor:
    """(N, 3, size, size) `uint8`."""
    return _channels_first(np.stack([np.asarray(prepared_picture(world.images[key], size)) for key in keys]))


def _channels_first(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).movedim(-1, -3).contiguous()


def _differences(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean differences between any two pictures at 16 x 16 pixels: (N, 3, H, W), (M, 3, H, W) `uint8` → (N, M)."""
    first, second = (F.interpolate(x.float() / 255, (16, 16), mode="area").flatten(1) for x in (first, second))
    return torch.cdist(first, second, p=1) / first.shape[1]


def _labels(drawings: torch.Tensor, names: Sequence[str | None]) -> torch.Tensor:
    """Which of the drawings (2, n, 3, S, S) show one flag: (2n,), the first row of each flag standing for it."""
    n = drawings.shape[1]
    pictures = drawings.flatten(0, 1)
    flags = torch.arange(n).repeat(2)
    first_of = {name: i for i, name in reversed(list(enumerate(names)))}
    named = torch.tensor([i if name is None else first_of[name] for i, name in enumerate(names)])[flags]
    return _connected((_differences(pictures, pictures) < NEARLY_SAME_PICTURE) | (named[:, None] == named))


def _connected(alike: torch.Tensor) -> torch.Tensor:
    """Makes "alike" transitive: (N, N) `bool`, symmetric and true for itself → (N,), the smallest index of each group.

    Example:

    ```python
    >>> _connected(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 1, 1]]).bool())
    tensor([0, 1, 0, 0])

    ```
    """
    labels = torch.arange(len(alike))
    while True:
        smaller = torch.where(alike, labels, len(alike)).amin(1)
        if torch.equal(smaller, labels):
            return labels
        labels = smaller
