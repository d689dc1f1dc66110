"""Knows how knowledge about flags goes wrong: strangers among what is found, twins, swapped texts, forged facts, gaps.

Every passage says in its metadata what it is about for those who know: `entity` is the country of its picture,
`text_of` the country whose facts its text tells. Only reports and labels look at that.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np

from flags.texts import passage_texts
from flags.world import World, drawing_group
from hf_ravlm import KnowledgeBase, RavlmRetriever
from hf_ravlm.images import safe_image
from hf_ravlm.retrieval import Evidence


FACTS = ("capital", "subregion", "region", "languages", "currency")


def true_rows(world: World, without: Collection[str] = ()) -> list[dict]:
    """All passages, each about the country of its picture; those of the countries in `without` are left out."""
    rows = [row for entity in world.entities if entity not in without for row in world.passages(entity)]
    return [_told_of(row, row["metadata"]["entity"]) for row in rows]


def rows_with_twins(world: World, rng: random.Random) -> list[dict]:
    """Every passage twice: once as it is, and once, under the same picture, with the text of another country."""
    rows = true_rows(world)
    return rows + [{**twin, "id": f"{twin['id']}/twin"} for twin in map(_other_texts(rows, rng), rows)]


def rows_with_swaps(world: World, rng: random.Random) -> list[dict]:
    """Half of the passages, drawn by chance, carry the text of another country in place of their own."""
    rows = true_rows(world)
    other, swapped = _other_texts(rows, rng), set(rng.sample(range(len(rows)), len(rows) // 2))
    return [other(row) if place in swapped else row for place, row in enumerate(rows)]


def rows_with_forgeries(world: World, rng: random.Random) -> list[dict]:
    """Half of the facts are those of another country, told in the name of their own: nothing gives them away.

    Of capitals, languages, currencies and parts of the world; the other kinds of passages stay true.
    """
    rows = true_rows(world)
    forged = set(rng.sample(range(len(rows)), len(rows) // 2))
    told = []
    for place, row in enumerate(rows):
        entity, kind = row["metadata"]["entity"], row["metadata"]["kind"]
        liar = rng.choice([other for other in world.entities if drawing_group(other) != drawing_group(entity)])
        facts = {name: world.entities[liar].get(name) for name in FACTS}
        texts = passage_texts({**world.entities[entity], **facts})
        if place in forged and kind in texts and texts[kind][1] != row["text"]:
            row = _told_of({**row, "text": texts[kind][1]}, liar)
        told.append(row)
    return told


def mix_strangers(retriever, found, images, questions: Sequence[str], entities: Sequence[str], rng: random.Random):
    """Puts a passage of another country, of the same kind, beside each passage found, now before it, now behind.

    So half of any even number of passages is wrong, and no right one is lost, as when two searches are joined of which
    one is broken. Scores are the true cosines.

    Returns:
        `list[list[Evidence]]`: twice as many passages per question.
    """
    base = retriever.knowledge_base
    of_kind: dict[str, list[int]] = {}
    for place, passage in enumerate(base):
        of_kind.setdefault(passage.metadata["kind"], []).append(place)
    vectors = retriever.encoder.encode_queries(images, list(questions))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mixed = []
    for vector, passages, entity in zip(vectors, found, entities, strict=True):
        row = []
        for passage in passages:
            places = of_kind[passage.metadata["kind"]]
            place = rng.choice(places)
            while drawing_group(base[place].metadata["entity"]) == drawing_group(entity):
                place = rng.choice(places)
            score = float(vector @ retriever.vectors[place])
            other = base[place]
            told = {"id": other.id, "text": other.text, "title": other.title, "metadata": other.metadata}
            pair = [passage, Evidence(**told, score=score, ranking_score=score)]
            row += pair if rng.random() < 0.5 else pair[::-1]
        mixed.append(row)
    return mixed


class FlagKnowledge:
    """Makes a retriever of any rows of passages, and reads every picture and every text only once for all of them.

    Args:
        encoder (`RavlmEncoder`): Its vector of a passage is the normalised weighted sum of those of picture and text.
    """

    def __init__(self, encoder):
        self.encoder = encoder
        weights = encoder.model.modality_log_weight.detach().exp().tolist()
        self.image_weight, self.text_weight = weights
        self._images: dict[bytes, np.ndarray] = {}
        self._texts: dict[str, np.ndarray] = {}

    def retriever(self, rows: Sequence[dict]) -> RavlmRetriever:
        texts = sorted({row["text"] for row in rows} - self._texts.keys())
        images = sorted({row["image"] for row in rows} - self._images.keys())
        if texts:
            self._texts |= dict(zip(texts, self.encoder.encode_passages(texts, [None] * len(texts)), strict=True))
        if images:
            decoded = [safe_image(image) for image in images]
            vectors = self.encoder.encode_passages([None] * len(images), decoded)
            self._images |= dict(zip(images, vectors, strict=True))
        sums = [
            self.image_weight * self._images[row["image"]] + self.text_weight * self._texts[row["text"]]
            for row in rows
        ]
        vectors = np.stack(sums).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return RavlmRetriever(KnowledgeBase.from_dicts(rows), self.encoder, vectors)


def is_about(passage, entity: str) -> bool:
    """Whether the text of a passage tells the facts of this country, or of one with the same drawing."""
    return drawing_group(passage.metadata["text_of"]) == drawing_group(entity)


def _told_of(row: dict, entity: str) -> dict:
    return {**row, "metadata": {**row["metadata"], "text_of": entity}}


def _other_texts(rows: Sequence[dict], rng: random.Random):
    """A function that gives a passage the title and text of a passage of the same kind about another country."""
    of_kind: dict[str, list[dict]] = {}
    for row in rows:
        of_kind.setdefault(row["metadata"]["kind"], []).append(row)

    def other(row: dict) -> dict:
        own = drawing_group(row["metadata"]["entity"])
        stranger = rng.choice(of_kind[row["metadata"]["kind"]])
        while drawing_group(stranger["metadata"]["entity"]) == own:
            stranger = rng.choice(of_kind[row["metadata"]["kind"]])
        changed = {**row, "title": stranger["title"], "text": stranger["text"]}
        return _told_of(changed, stranger["metadata"]["entity"])

    return other
