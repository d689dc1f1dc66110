"""What searching with a part of an image is worth: hit@1 of the photographs with `region=` and `crops=`, and without.

    (make the data as examples/photographs/card.md says, then)
    python benchmarks/crops.py --data runs/photographs/data

Single pictures show one thing, mostly in the middle. In a collage of four the asked one fills a quarter: `region=`
names it, `crops=` looks for itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any


os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import numpy as np
import torch
from PIL import Image

from hf_ravlm.images import safe_image
from photographs.parts import build_retriever, load_parts
from photographs.world import load_world


SIDE = 224


def collage(pictures: list[Image.Image], first: int) -> Image.Image:
    """Four pictures in a square; the asked one stands at the upper left."""
    whole = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    for place in range(4):
        picture = pictures[(first + 7 * place) % len(pictures)].resize((SIDE, SIDE))
        whole.paste(picture, (SIDE * (place % 2), SIDE * (place // 2)))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/photographs/data"))
    parser.add_argument("--limit", type=int, default=200, help="pictures to ask with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = load_world(arguments.data)
    model, processor, keys = load_parts()
    retriever = build_retriever(model, processor, keys, list(world.entries.values()))
    asked = [row for row in world.dev if row["kind"] in ("class", "seen")][: arguments.limit]
    pictures = [safe_image(row["image"]) for row in asked]
    gold = [row["gold_ids"] for row in asked]

    def hit(images: list[Image.Image], **options: Any) -> float:
        found = retriever.retrieve(images=images, k=1, **options)
        return float(np.mean([one[0].id in wanted for one, wanted in zip(found, gold, strict=True)]))

    collages = [collage(pictures, place) for place in range(len(pictures))]
    print(f"{len(pictures)} pictures, {len(retriever)} entries\n\n| images | whole | crops=1 | 2 | 4 | region= |")
    print("|---|---|---|---|---|---|")
    for name, images, region in (
        ("single pictures", pictures, (0.125, 0.125, 0.75, 0.75)),
        ("collages of four", collages, (0, 0, 0.5, 0.5)),
    ):
        figures = [hit(images), *(hit(images, crops=number) for number in (1, 2, 4)), hit(images, region=region)]
        print(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
