"""Knows how words find passages: batches of questions and the passages that answer them, for the text tower.

Three kinds of query, as people ask them: a picture with a question, a question that names the country, and a picture
alone. Each fact that people ask for has a passage of its own, so one passage answers a question, and all others of the
batch are negatives, those of the same country included. With one exception: a picture alone tells no passage of its
country from another. Entries with the same drawing count as one country.

Questions come with a mask of the passages about what they ask for, whatever the country: words alone have to tell
kinds apart, too.

A third of the countries of a batch go by an invented name, in the query and in their passages, so that names are
matched by their letters and not learned by heart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import IterableDataset

from flags.pictures import picture_tensor
from flags.questions import BACKGROUND, KINDS, NAMED, ask
from flags.shuffled import ShuffledCountries
from flags.texts import DESCRIBING
from flags.world import ENTRY_VIEW, World, drawing_group
from hf_ravlm import RavlmModel, RavlmProcessor


WHOLE_PASSAGES_SHARE = 0.2
OTHERS = 3  # further passages of each country in a batch


class TextPairs(IterableDataset):
    """Endless batches for `RavlmModel`, ready made: queries, and passages of which the first `n` are their positives.

    Passage `i` answers query `i`; no passage with the label of a query is its negative. Three batches are questions,
    with `OTHERS` more passages of each country; the fourth is pictures alone, with one passage of each. In batches of
    questions `same_kind` (n, passages) is true where a passage tells what the question asks for, of any country.

    Args:
        processor (`RavlmProcessor`): prepares both sides.
        world (`World`): the flags world.
        countries (`list[str]`): whose pictures and passages may be seen.
        views (`list[str]`): drawing styles of the queries.
        seed (`int`): the same seed gives the same batches.
        countries_per_batch (`int`): `n`.
        ask (`Callable[[str, random.Random], str]`): words a question of a kind.
        beginning (`int`, *optional*): tokens to which four of five batches cut passages, which say at the beginning
            what they are about.
    """

    def __init__(
        self,
        processor: RavlmProcessor,
        world: World,
        countries: Sequence[str],
        views: Sequence[str],
        seed: int = 0,
        countries_per_batch: int = 24,
        ask: Callable[[str, random.Random], str] = ask,
        beginning: int | None = None,
    ):
        super().__init__()
        self.processor = processor
        self.countries = list(countries)
        self.countries_per_batch, self.ask, self.beginning = countries_per_batch, ask, beginning
        keys = [(e, v) for e in countries for v in dict.fromkeys([*views, ENTRY_VIEW]) if (e, v) in world.images]
        self.pictures = dict(zip(keys, picture_tensor(processor, world, keys), strict=True))
        self.picture_name = "pixel_values"
        self.views = {e: [v for v in views if (e, v) in self.pictures] for e in self.countries}
        self.passages = {
            entity: {row["metadata"]["kind"]: row["text"] for row in world.passages(entity)} for entity in countries
        }
        self.names = {entity: world.entities[entity]["name"] for entity in countries}
        self.random = random.Random(seed)
        self.invented = ShuffledCountries([world.entities[entity] for entity in countries], seed).names

    @torch.no_grad()
    def encode(self, encoder: RavlmModel) -> TextPairs:
        """The same batches with vectors `image_embeds` in the place of pictures: a tower that stands still works once.

        Args:
            encoder ([`RavlmModel`]): in eval mode; its picture tower is used.
        """
        keys = list(self.pictures)
        parts = torch.stack([self.pictures[key] for key in keys]).split(64)
        vectors = torch.cat([encoder.get_image_features(part).pooler_output for part in parts])
        self.pictures, self.picture_name = dict(zip(keys, vectors, strict=True)), "image_embeds"
        return self

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            for step in range(4):
                chosen = self.random.sample(self.countries, min(self.countries_per_batch, len(self.countries)))
                yield self._pictures_alone(chosen) if step == 3 else self._questions(chosen)

    def _questions(self, chosen: list[str]) -> dict[str, torch.Tensor]:
        queries, positives, others, told, told_by_others = [], [], [], [], []
        for entity in chosen:
            texts, name = self._texts_and_name(entity)
            kind = self.random.choice([k for k in (*KINDS, "background") if k in texts or k == "describe"])
            wanted = next(k for k in DESCRIBING if k in texts) if kind == "describe" else kind
            if self.random.random() < 0.3:
                question, picture = self.random.choice(NAMED[kind]).format(name=name), None
            else:
                question = self.random.choice(BACKGROUND) if kind == "background" else self.ask(kind, self.random)
                picture = self._picture(entity)
            entry, group = self.pictures[entity, ENTRY_VIEW], drawing_group(entity)
            queries.append((picture, question, (group, wanted)))
            positives.append((entry, texts[wanted], (group, wanted)))
            rest = self.random.sample([k for k in texts if k != wanted], min(OTHERS, len(texts) - 1))
            others += [(entry, texts[k], (group, k)) for k in rest]
            told.append(wanted)
            told_by_others += rest
        same_kind = torch.tensor([[kind == wanted for kind in told + told_by_others] for wanted in told])
        return self._batch(queries, positives + others) | {"same_kind": same_kind}

    def _pictures_alone(self, chosen: list[str]) -> dict[str, torch.Tensor]:
        queries, passages = [], []
        for entity in chosen:
            texts, _ = self._texts_and_name(entity)
            queries.append((self._picture(entity), None, drawing_group(entity)))
            text = self.random.choice(list(texts.values()))
            passages.append((self.pictures[entity, ENTRY_VIEW], text, drawing_group(entity)))
        return self._batch(queries, passages)

    def _texts_and_name(self, entity: str) -> tuple[dict[str, str], str]:
        texts, name = self.passages[entity], self.names[entity]
        if self.random.random() < 0.33:
            invented = self.invented.phrase()
            return {kind: text.replace(name, invented) for kind, text in texts.items()}, invented
        return texts, name

    def _picture(self, entity: str) -> torch.Tensor:
        return self.pictures[entity, self.random.choice(self.views[entity])]

    def _batch(self, queries: list[tuple], passages: list[tuple]) -> dict[str, torch.Tensor]:
        numbers: dict[object, int] = {}
        batch = {}
        for prefix, rows in (("", queries), ("passage_", passages)):
            blank = torch.zeros_like(passages[0][0])
            batch[prefix + self.picture_name] = torch.stack([blank if row[0] is None else row[0] for row in rows])
            batch[f"{prefix}image_mask"] = torch.tensor([row[0] is not None for row in rows])
            if any(row[1] for row in rows):
                encoded = self.processor.for_retrieval(texts=[row[1] for row in rows])
                if prefix and self.beginning and self.random.random() >= WHOLE_PASSAGES_SHARE:
                    encoded |= {name: encoded[name][:, : self.beginning] for name in ("input_ids", "attention_mask")}
                batch |= {f"{prefix}{name}": tensor for name, tensor in encoded.items()}
            labels = torch.tensor([numbers.setdefault(row[2], len(numbers)) for row in rows])
            batch["query_labels" if not prefix else "passage_labels"] = labels
        return batch
