"""Scenes composed of drawings and photographs that packages ship, with exact boxes.

Things are the flags of `examples/flags/data` (their classes are countries) or, with the Debian package
`tuxpaint-stamps-default`, the stamps of Tux Paint (photographs and drawings; their classes are kinds). They are pasted
on gradients with clutter of plain shapes. Base classes are in the scenes that a detector learns from; novel ones have
entries and stand in test scenes, and nothing is trained on them.
"""

from __future__ import annotations

import io
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from flags.world import VIEWS, load_world
from photographs.debian import files_in_package


SIDE, SIZES, MOST = 96, (32, 56), 2  # of a scene, of its things (the longer side), and how many
ENTRY_STYLES, TEST_STYLES = ("mledoze", "flagicons", "coreui"), ("twemoji", "svgcf")


@dataclass(frozen=True)
class Things:
    """Cut-out pictures by class, in three parts that share none.

    Attributes:
        train, test, entries: Of every class its pictures (RGBA); of novel classes there are none to train on.
        base, novel: The names of the classes.
    """

    train: dict[str, list[Image.Image]]
    test: dict[str, list[Image.Image]]
    entries: dict[str, list[Image.Image]]
    base: list[str]
    novel: list[str]


def flag_things(seed: int, num_base: int = 40, num_novel: int = 20) -> Things:
    """Flags: base countries of those that the shipped towers were trained on, novel ones of the others.

    Entries and tests are drawn in styles of their own; the detector learns from all styles of base countries but those
    of the tests.
    """
    world, draw = load_world(), random.Random(seed)
    base, novel = draw.sample(sorted(world.train), num_base), draw.sample(sorted(world.dev), num_novel)
    learned = [style for style in VIEWS if style not in TEST_STYLES]

    def pictures(countries: list[str], styles: Any) -> dict[str, list[Image.Image]]:
        names = {country: world.entities[country]["name"] for country in countries}
        keys = {c: [(c, style) for style in styles if (c, style) in world.images.encoded] for c in countries}
        return {names[c]: [world.images[key].convert("RGBA") for key in keys[c]] for c in countries}

    parts = [pictures(base, learned), *(pictures(base + novel, styles) for styles in (TEST_STYLES, ENTRY_STYLES))]
    told = [[world.entities[country]["name"] for country in part] for part in (base, novel)]
    return Things(*parts, *told)


def stamp_things(package: str | Path, seed: int, novel_share: float = 0.3) -> Things:
    """Stamps by kind (birds, fruit, tools, ...), of kinds with at least ten; a third of each is kept for tests."""
    of_kind = defaultdict(list)
    for name, content in files_in_package(package, lambda name: "/stamps/" in name and name.endswith(".png")):
        folders = [part for part in name.split("/stamps/")[1].split("/")[:-1] if part != "cartoon"][:2]
        if folders[0] != "symbols":
            with Image.open(io.BytesIO(content)) as picture:
                picture.thumbnail((2 * SIZES[1], 2 * SIZES[1]))
                of_kind[" ".join(reversed(folders))].append(trimmed(picture.convert("RGBA")))
    kinds = sorted(kind for kind, pictures in of_kind.items() if len(pictures) >= 10)
    draw = random.Random(seed)
    novel = draw.sample(kinds, round(novel_share * len(kinds)))
    parts: list[dict[str, list]] = [{}, {}, {}]
    for kind in kinds:
        draw.shuffle(of_kind[kind])
        tested = len(of_kind[kind]) // 3
        parts[1][kind], parts[2][kind] = of_kind[kind][:tested], of_kind[kind][tested:]
        if kind not in novel:
            parts[0][kind] = parts[2][kind]
    return Things(*parts, [kind for kind in kinds if kind not in novel], novel)


def trimmed(picture: Image.Image) -> Image.Image:
    """A cut-out without its empty margins."""
    return picture.crop(picture.getchannel("A").getbbox() or (0, 0, *picture.size))


class Scenes(Dataset):
    """Scenes by number: the same `seed` and number give the same scene.

    Args:
        things: Pictures by class.
        size: How many scenes there are.
        seed: Of all of them.
    """

    def __init__(self, things: dict[str, list[Image.Image]], size: int, seed: int):
        self.things = {name: pictures for name, pictures in sorted(things.items()) if pictures}
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < self.size:
            raise IndexError(number)
        draw = random.Random(f"{self.seed}-{number}")
        scene, objects = background(draw), []
        for _ in range(draw.randint(1, MOST)):
            name = draw.choice(list(self.things))
            picture = draw.choice(self.things[name])
            scale = draw.randint(*SIZES) / max(picture.size)
            width, height = (max(round(side * scale), 4) for side in picture.size)
            for _ in range(20):  # until it covers no other
                left, top = draw.randint(0, SIDE - width), draw.randint(0, SIDE - height)
                box = {"xmin": left, "ymin": top, "xmax": left + width, "ymax": top + height}
                if not any(overlapping(box, one["box"]) for one in objects):
                    shown = picture.resize((width, height), Image.Resampling.LANCZOS)
                    scene.paste(shown, (left, top), shown)
                    objects.append({"label": name, "box": box})
                    break
        return {"image": scene, "objects": objects}


def background(draw: random.Random) -> Image.Image:
    """A gradient with a few plain shapes, which are nothing to find."""
    corners = Image.new("RGB", (2, 2))
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corners.putpixel(place, tuple(draw.randint(40, 230) for _ in range(3)))
    scene = corners.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(scene)
    for _ in range(draw.randint(0, 4)):
        colour = tuple(draw.randint(0, 255) for _ in range(3))
        points = [(draw.randint(-20, SIDE + 20), draw.randint(-20, SIDE + 20)) for _ in range(3)]
        if draw.random() < 0.5:
            pen.line(points[:2], fill=colour, width=draw.randint(1, 5))
        else:
            pen.polygon(points, outline=colour)
    return scene


def overlapping(first: dict[str, int], second: dict[str, int]) -> bool:
    """Whether two boxes have a pixel in common."""
    apart = first["xmax"] <= second["xmin"] or second["xmax"] <= first["xmin"]
    return not (apart or first["ymax"] <= second["ymin"] or second["ymax"] <= first["ymin"])
