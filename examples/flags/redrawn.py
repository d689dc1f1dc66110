"""Knows how to ask about countries that nothing was trained on: their one drawing, redrawn as other hands might.

The encoder has seen every drawing of the countries of training, and is surer of them than of any other. Whatever is
fitted to how sure it is wants countries that it has not seen, and is not reported on them.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from flags.augmentation import augment
from flags.measure import Task
from flags.questions import OFFICIAL, SHORT_KINDS
from flags.world import ENTRY_VIEW, World


SIDE = 128  # pixels of the drawing that is redrawn; of the result, three quarters
# With half of training's changes the cosine of the right entry is spread as over the real drawings of dev countries:
# its 5, 10, 25 and 50 % quantiles are 0.85, 0.89, 0.94, 0.97 (real ones 0.86, 0.89, 0.95, 0.99; with all of them
# 0.79, 0.83, 0.90, 0.94; drawings of training 0.92, 0.95, 0.97, 0.99).
STRENGTH = 0.5

Pictures = dict[tuple[str, str], Image.Image]


def redrawn_tasks(world: World, seed: int = 0) -> tuple[list[Task], Pictures]:
    """All short questions about the held-out countries, each about a redrawing of its own.

    Returns:
        The tasks, whose `view` is "redrawn for" and the kind, and their pictures by (entity, view).
    """
    tasks = [
        Task(entity, f"redrawn for {kind}", kind, OFFICIAL[kind], answers)
        for entity in world.held_out
        for kind, answers in short_answers(world.entities[entity]).items()
    ]
    drawings = []
    for task in tasks:
        drawing = world.images[task.entity, ENTRY_VIEW].resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        drawings.append(torch.from_numpy(np.array(drawing)).permute(2, 0, 1))
    generator = torch.Generator().manual_seed(seed)
    redrawn = augment(torch.stack(drawings), SIDE * 3 // 4, generator, strength=STRENGTH, clean=0.0)
    pictures = [Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()) for picture in redrawn]
    return tasks, {(task.entity, task.view): picture for task, picture in zip(tasks, pictures, strict=True)}


def short_answers(row: dict) -> dict[str, list[str]]:
    """The accepted answers to the short questions about a country, as in `vqa.jsonl`: kind → strings.

    Example:

    ```python
    >>> short_answers({"name": "Bhutan", "capital": None, "currency": ["Bhutanese ngultrum", "Indian rupee"]})
    {'name': ['Bhutan'], 'currency': ['Bhutanese ngultrum']}

    ```
    """
    known = {
        "name": [row.get("name")],
        "capital": [row.get("capital")],
        "language": row.get("languages") or [],
        "currency": (row.get("currency") or [])[:1],
        "subregion": [row.get("subregion")],
    }
    return {kind: known[kind] for kind in SHORT_KINDS if any(known[kind])}
