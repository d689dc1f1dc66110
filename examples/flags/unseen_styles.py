"""Finds the pictures of `unseen/`: dev countries in drawing styles that no training picture has.

They are there to be shown and reported on. Nothing may train on them, nor choose a checkpoint by them.
"""

from __future__ import annotations

import json
from pathlib import Path


UNSEEN = Path(__file__).resolve().parent / "unseen"


def unseen_pictures(folder: str | Path = UNSEEN) -> list[tuple[str, str, Path]]:
    """List (entity, style, path) of every picture in a folder that `prepare_unseen.py` wrote, sorted.

    Raises:
        FileNotFoundError: If the folder has no such picture.

    Example:

    ```python
    >>> [(entity, style) for entity, style, _ in unseen_pictures()][:3]
    [('ax', 'circleflags'), ('ax', 'emojione'), ('ax', 'notowaved')]

    ```
    """
    paths = sorted(Path(folder).glob("??__*.png"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no picture named <entity>__<style>.png; prepare_unseen.py makes them")
    return [(*path.stem.split("__", 1), path) for path in paths]


def unseen_sources(folder: str | Path = UNSEEN) -> dict[str, dict[str, str]]:
    """Whose work the pictures are: style → package, source, author, version, licence, url and notice."""
    return json.loads((Path(folder) / "sources.json").read_text(encoding="utf-8"))
