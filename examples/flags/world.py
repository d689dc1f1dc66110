"""Knows the flags world: countries, drawings, questions, who may be trained on, and whose work each passage is.

```python
from flags.world import load_world  # with `examples/` on the path, as for any program in that folder

world = load_world()
knowledge_base = KnowledgeBase.from_dicts([p for entity in world.entities for p in world.passages(entity)])
picture = world.images["nl", "openmoji"]
```
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from flags.questions import SHORT_KINDS
from flags.texts import passage_texts


DATA = Path(__file__).resolve().parent / "data"
FACT_KINDS = (*SHORT_KINDS, "facts")  # the rest is the almanac's words
ENTRY_VIEW = "mledoze"  # the drawing style of the pictures in the knowledge base
VIEWS = ("coreui", "flagicons", "flagpack", "mledoze", "openmoji", "svgcf", "twemoji")

# Entries whose picture is the same drawing, byte for byte: no retriever can tell them apart by image.
SAME_DRAWING = (("no", "sj", "bv"), ("re", "mf"), ("au", "hm"), ("us", "um"))
_REPRESENTATIVE = {entity: group[0] for group in SAME_DRAWING for entity in group}


class FlagImages(Mapping[tuple[str, str], Image.Image]):
    """The pictures by (entity, view), each decoded to RGB anew when it is asked for; encoded they take 4 MB in all."""

    def __init__(self, encoded: dict[tuple[str, str], bytes]):
        self.encoded = encoded

    def __getitem__(self, key: tuple[str, str]) -> Image.Image:
        with Image.open(io.BytesIO(self.encoded[key])) as picture:
            return picture.convert("RGB")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.encoded)

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True)
class World:
    """Everything about the flags, loaded once.

    Attributes:
        entities (`dict[str, dict]`): Lower-case two-letter code → row of `kb.jsonl`, in the order of the file.
        images (`FlagImages`): (entity, view) → picture.
        questions (`list[dict]`): Rows with `entity`, `type`, `question` and `answer` (list of accepted strings); only
            countries of `train` and `dev` have any.
        licences (`dict`): As in `licences.json`: `["images"][view]`, `["facts"]` and `["factbook"]`.
        train, dev (`list[str]`): Countries to learn from, and countries to choose by, never trained on; in several
            drawing styles.
        held_out (`list[str]`): Countries in the knowledge base only, with one drawing each; never trained on either.
    """

    entities: dict[str, dict]
    images: FlagImages
    questions: list[dict]
    licences: dict
    train: list[str]
    dev: list[str]
    held_out: list[str]

    def passages(self, entity: str) -> list[dict]:
        """The knowledge about one country as rows for `KnowledgeBase.from_dicts`, kinds without text left out.

        Each row has `id` ("ad/facts"), `title`, `text`, `image` (the encoded bytes of the entry's picture, the same
        object in all rows), `source`, `licence` and `url` of the *text*, and `metadata` with `entity` and `kind`.
        Whose work the picture is stands in `licences["images"]["mledoze"]`.

        Example:

        ```python
        >>> [passage["id"] for passage in load_world().passages("ad")][:3]
        ['ad/name', 'ad/capital', 'ad/language']

        ```
        """
        row = self.entities[entity]
        image = self.images.encoded[entity, ENTRY_VIEW]
        return [
            {
                "id": f"{entity}/{kind}",
                "title": title,
                "text": text,
                "image": image,
                **self._provenance(kind, row),
                "metadata": {"entity": entity, "kind": kind},
            }
            for kind, (title, text) in passage_texts(row).items()
        ]

    def _provenance(self, kind: str, row: dict) -> dict[str, str]:
        """Whose words these are.

        "More facts" take a few fields from the almanac, which asks for nothing; the facts that people ask for do not.
        """
        origins = [self.licences["facts"]] if kind in FACT_KINDS else []
        origins += [self.licences["factbook"]] if row["factbook"] and kind not in SHORT_KINDS else []
        main = origins[0]
        return {
            "source": "; ".join(f"{origin['source']} ({origin['author']})" for origin in origins),
            "licence": main["licence"],
            "url": main["url"] if kind in FACT_KINDS else f"{main['url']}/blob/master/{row['factbook']}",
        }


def load_world(folder: str | Path = DATA) -> World:
    """Read a folder that `prepare_data.py` wrote."""
    folder = Path(folder)
    columns = pq.read_table(folder / "images.parquet").to_pydict()
    keys = list(zip(columns["entity"], columns["view"], strict=True))
    splits = dict(zip(columns["entity"], columns["split"], strict=True))
    train, dev = split_entities([entity for entity, split in splits.items() if split == "train"])
    return World(
        entities={row["id"]: row for row in _read_rows(folder / "kb.jsonl")},
        images=FlagImages({key: image["bytes"] for key, image in zip(keys, columns["image"], strict=True)}),
        questions=_read_rows(folder / "vqa.jsonl"),
        licences=json.loads((folder / "licences.json").read_text(encoding="utf-8")),
        train=train,
        dev=dev,
        held_out=sorted(entity for entity, split in splits.items() if split == "test"),
    )


def split_entities(entities: Sequence[str], num_dev: int = 40, seed: int = 0) -> tuple[list[str], list[str]]:
    """Set `num_dev` countries aside: the same ones for the same `seed`, whatever the order of `entities`.

    Entries whose drawing is another entry's too stay in training: aside, they would be seen in training all the same.

    Returns:
        `tuple[list[str], list[str]]`: Countries to train on, and dev countries, both sorted.

    Example:

    ```python
    >>> split_entities(["fr", "nl", "de"], num_dev=1)
    (['de', 'nl'], ['fr'])

    ```
    """
    candidates = sorted(entity for entity in entities if entity not in _REPRESENTATIVE)
    dev = sorted(random.Random(seed).sample(candidates, num_dev))
    return [entity for entity in sorted(entities) if entity not in set(dev)], dev


def drawing_group(entity: str) -> str:
    """The name under which entries with the same drawing count as one country.

    Example:

    ```python
    >>> drawing_group("sj"), drawing_group("no"), drawing_group("nl")
    ('no', 'no', 'nl')

    ```
    """
    return _REPRESENTATIVE.get(entity, entity)


def _read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
