"""Two sets of labelled pictures that packages ship: stamps by kind, and flags by country in several drawing styles.

Stamps are those of Tux Paint (GPL-2), photographs and drawings on white: `apt-get download tuxpaint-stamps-default`.
Their class is the folder they lie in (animals/birds, food/fruit, ...), which gives a long tail. Flags are those of
`examples/flags/data`; of a country every picture is another drawing style, and no style is in two parts.
"""

from __future__ import annotations

import io
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flags.world import VIEWS, load_world
from photographs.debian import files_in_package


MIN_IMAGES = 8  # of a class
VALIDATION, TEST = 2, 0.4  # pictures of a class at most, and the share of the rest
FLAG_STYLES = {"test": ("openmoji", "svgcf"), "validation": ("coreui",)}


@dataclass(frozen=True)
class LabelledSet:
    """Pictures with their classes, in three parts that share none.

    Attributes:
        name: Of the set.
        images: All pictures.
        labels: Of each the name of its class.
        train, validation, test: Numbers of pictures. Of `train`, the first `k` of a class are its `k` shots.
    """

    name: str
    images: list[Image.Image]
    labels: list[str]
    train: list[int]
    validation: list[int]
    test: list[int]


def stamps(package: str | Path, seed: int) -> LabelledSet:
    """The stamps of the Debian package; every class is cut anew for each seed."""
    images, labels = [], []
    for name, content in files_in_package(package, lambda name: "/stamps/" in name and name.endswith(".png")):
        folders = [part for part in name.split("/stamps/")[1].split("/")[:-1] if part != "cartoon"][:2]
        with Image.open(io.BytesIO(content)) as picture:
            picture.thumbnail((256, 256))
            images.append(on_white(picture))
        labels.append(" ".join(reversed(folders)).replace("_", " "))  # "birds animals"
    of_class = defaultdict(list)
    for number, label in enumerate(labels):
        of_class[label].append(number)
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    draw = random.Random(seed)
    for _, numbers in sorted(of_class.items()):
        if len(numbers) < MIN_IMAGES:
            continue
        draw.shuffle(numbers)
        tested = round(TEST * len(numbers))
        parts["test"] += numbers[:tested]
        parts["validation"] += numbers[tested : tested + VALIDATION]
        parts["train"] += numbers[tested + VALIDATION :]
    return LabelledSet("stamps", images, labels, **parts)


def flags(seed: int) -> LabelledSet:
    """Flags by country; which styles come first among the shots is drawn by the seed."""
    world = load_world()
    countries = [*world.train, *world.dev]
    styles = [style for style in VIEWS if style not in sum(FLAG_STYLES.values(), ())]
    random.Random(seed).shuffle(styles)
    keys = [(country, style) for country in countries for style in (*styles, *sum(FLAG_STYLES.values(), ()))]
    keys = [key for key in keys if key in world.images.encoded]
    images = [square(world.images[key]) for key in keys]
    labels = [f"flag of {world.entities[country]['name']}" for country, _ in keys]
    part = {name: [n for n, (_, style) in enumerate(keys) if style in own] for name, own in FLAG_STYLES.items()}
    return LabelledSet("flags", images, labels, [n for n, (_, style) in enumerate(keys) if style in styles], **part)


def on_white(picture: Image.Image) -> Image.Image:
    """A picture on white, made square."""
    picture = picture.convert("RGBA")
    side = max(picture.size)
    sheet = Image.new("RGBA", (side, side), "white")
    sheet.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return sheet.convert("RGB")


def square(picture: Image.Image) -> Image.Image:
    """A flag on white, made square."""
    return on_white(picture)
