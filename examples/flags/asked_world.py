"""Knows questions about training countries as rows for the trainers, and the passages that answer them.

Rows are those of `hf_ravlm.training.batches.rows`, with the passage that answers beside its id, as
`RetrievalCollator` takes it. Pictures are prepared once: whoever trains on them opens no file again.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch

from flags.matching import prepared_picture, wrong_flag_pictures
from flags.questions import SHORT_KINDS, ask
from flags.shuffled import Shown, answers_from
from flags.world import ENTRY_VIEW, VIEWS, World, drawing_group
from hf_ravlm import KnowledgeBase


SIDE = 80  # of the prepared pictures, in pixels; more than a tower of 64 needs


class AskedWorld(torch.utils.data.Dataset):
    """Short questions about pictures of some countries; drawing, kind and wording follow from `seed` and the row.

    Args:
        world (`World`): The flags world.
        countries (`Sequence[str]`): Whom to ask about; nothing of others is seen.
        num_rows (`int`): How many questions there are.
        seed (`int`): Of the questions.

    Example:

    ```python
    >>> from flags.world import load_world
    >>> row = AskedWorld(load_world(), ["nl", "jp"], num_rows=8, seed=0)[3]
    >>> row["question"], row["answer"], row["gold_ids"]
    ('Who flies this flag?', 'Japan', ['jp/name'])

    ```
    """

    def __init__(self, world: World, countries: Sequence[str], num_rows: int, seed: int):
        self.num_rows, self.seed = num_rows, seed
        self.facts = {country: world.entities[country] for country in countries}
        self.texts = {
            country: {
                row["metadata"]["kind"]: row["text"]
                for row in world.passages(country)
                if row["metadata"]["kind"] in SHORT_KINDS
            }
            for country in countries
        }
        wrong = wrong_flag_pictures(world, countries)
        keys = [(country, view) for country in countries for view in VIEWS if (country, view) in world.images]
        self.pictures = {key: prepared_picture(world.images[key], SIDE) for key in keys}
        self.asked = [key for key in keys if key[1] != ENTRY_VIEW and key not in wrong]

    def with_length(self, num_rows: int) -> AskedWorld:
        """The same questions, and more or fewer of them."""
        other = copy.copy(self)
        other.num_rows = num_rows
        return other

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> dict:
        rng = random.Random(f"{self.seed} {row}")
        country, view = rng.choice(self.asked)
        texts = self.texts[country]
        kind = rng.choice(list(texts))
        return {
            "id": f"{row}: {country}/{kind}",
            "image": self.pictures[country, view],
            "question": ask(kind, rng),
            "answer": answers_from([Shown(kind, self.facts[country], "")])[kind],
            "gold_ids": [f"{country}/{kind}"],
            "gold_text": texts[kind],
            "gold_image": self.pictures[country, ENTRY_VIEW],
            "label": f"{drawing_group(country)}/{kind}",
        }

    def knowledge_base(self) -> KnowledgeBase:
        """The passages of these countries that answer short questions, each with the picture of the entry."""
        return KnowledgeBase.from_dicts(
            [
                {
                    "id": f"{country}/{kind}",
                    "text": text,
                    "image": self.pictures[country, ENTRY_VIEW],
                    "metadata": {"entity": country},
                }
                for country, texts in self.texts.items()
                for kind, text in texts.items()
            ]
        )
