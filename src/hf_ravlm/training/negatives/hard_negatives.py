"""Mining of hard negatives: passages that look right to a retriever, or to a reader, and are wrong.

(1) Every kind of candidate gives each query a ranking:

| kind | candidates | what it teaches |
|---|---|---|
| `"nearest"` | the passages that the current model puts on top | what it confuses now (ANCE) |
| `"lexical"` | passages with the words of the question, by BM25 | that shared words are not enough (DPR) |
| `"same_entity"` | other passages about what the gold passage is about | the right section (EchoSight, ReflectiVA) |
| `"other_modality"` | the nearest of another modality than the gold passage | modality is no clue (MM-Embed) |

(2) `NegativeRules` strike out what may be right. (3) The kinds take turns until there are enough; random passages fill
what is missing.

References: Karpukhin et al. 2020 (arXiv 2004.04906), Xiong et al. 2021 (arXiv 2007.00808), Moreira et al. 2024
(arXiv 2407.15831, positive-aware mining), Lin et al. 2024 (arXiv 2411.02571).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from ...errors import InvalidInputError, UnsafeInputError
from ...images import safe_image
from ...retrieval import RavlmRetriever
from ...retrieval.indexes.exact_search import exact_search
from ...retrieval.passage import ids_digest, input_digest
from ...retrieval.ranking.channels import encode_queries
from ..batches.leakage import differing_bits, holds_answer, image_hash
from ..batches.passage_view import PassageView
from ..batches.rows import NumberedRows, TrainingRow, check_gold_ids, gold_ids_of
from .mining_cache import MiningCache


Kind = Literal["nearest", "lexical", "same_entity", "other_modality"]


@dataclass(frozen=True)
class NegativeRules:
    """Which passages are left out of the negatives; gold passages and their exact copies always are.

    Attributes:
        positive_ratio: Leave out passages that score above this share of the best gold passage's score, if that is
            above 0 (NV-Retriever's TopK-PercPos): they are often right and only not marked. `None`: no limit.
        positive_margin: Leave out passages that score above the gold's score less this margin. `None`: no limit.
        allow_answers: Whether a passage may hold an accepted answer.
        near_duplicate_bits: Leave out passages whose image differs from the query's in at most so many of the 576
            bits of `image_hash`. `None`: images are not compared.
    """

    positive_ratio: float | None = 0.95
    positive_margin: float | None = None
    allow_answers: bool = False
    near_duplicate_bits: int | None = 24


class HardNegatives(NamedTuple):
    """The negatives of one query: ids, their kinds (`"random"` for filling), and scores (cosines)."""

    ids: list[str]
    kinds: list[str]
    scores: list[float]


def mine_hard_negatives(
    retriever: RavlmRetriever,
    rows: Any,
    num_negatives: int = 8,
    *,
    kinds: Sequence[Kind] = ("nearest", "lexical", "same_entity", "other_modality"),
    rules: NegativeRules | None = None,
    num_candidates: int = 50,
    entity: str = "title",
    batch_size: int = 256,
    seed: int = 0,
    cache: str | PathLike[str] | None = None,
    process: tuple[int, int] = (0, 1),
) -> list[HardNegatives]:
    """The hard negatives of every row, in order.

    Args:
        retriever: Of the model that is to learn; `"lexical"` needs `hf_ravlm[hybrid]`.
        rows: A sequence or data set of training rows with `gold_ids`, see `hf_ravlm.training.batches.rows`.
        num_negatives: How many per query; a small knowledge base may give fewer.
        kinds: Which kinds take turns, see the table of this module.
        rules: `None` for the defaults of `NegativeRules`.
        num_candidates: How many candidates each kind proposes per query.
        entity: What `"same_entity"` goes by: a column such as `"title"` or `"source"`, or `"metadata.page"`.
        batch_size: How many queries are encoded and searched at once.
        seed: Of the random passages.
        cache: A folder that keeps finished batches: a run with the same rows, knowledge and weights reads them.
        process: Rank and number of processes that share the work through `cache`; each returns all negatives.

    Raises:
        InvalidInputError: If a row has no gold passage or the knowledge base misses one, an argument is out of range,
            or several processes have no cache.
        UnsafeInputError: If an image cannot be used.
        TimeoutError: If no batch of another process arrives for an hour.

    Example, with an encoder that counts letters:

    >>> from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
    >>> class LetterEncoder:
    ...     name, fingerprint = "letters", "0" * 64
    ...
    ...     def encode_queries(self, images, texts):
    ...         return np.array([[text.count(letter) for letter in "abnow"] for text in texts], np.float32)
    ...
    ...     def encode_passages(self, texts, images):
    ...         return self.encode_queries(images, texts)
    >>> rows = [{"id": "swan", "text": "a swan"}, {"id": "owl", "text": "a brown owl"}, {"id": "wren", "text": "wren"}]
    >>> retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), LetterEncoder())
    >>> mined = mine_hard_negatives(
    ...     retriever, [{"question": "a swan ?", "gold_ids": ["swan"], "answers": ["wren"]}], 2, kinds=["nearest"]
    ... )
    >>> [(negatives.ids, negatives.kinds) for negatives in mined]  # the wren holds the answer
    [(['owl'], ['nearest'])]
    """
    from transformers.utils.logging import tqdm

    sizes = {"num_negatives": num_negatives, "num_candidates": num_candidates, "batch_size": batch_size}
    for name, size in sizes.items():
        if size < 1:
            raise InvalidInputError(f"{name}={size}: expected at least 1.")
    if not kinds or not set(kinds) <= set(_PROPOSALS):
        raise InvalidInputError(f"kinds={list(kinds)}: expected some of {list(_PROPOSALS)}.")
    if process[1] > 1 and cache is None:
        raise InvalidInputError(f"{process[1]} processes share their work through files: give a folder as `cache`.")
    rules = NegativeRules() if rules is None else rules
    miner = _Miner(PassageView(retriever, entity), tuple(kinds), rules, num_negatives, num_candidates, seed)
    rows = NumberedRows(rows)
    check_gold_ids(gold_ids_of(rows) or [], retriever.knowledge_base)  # before hours of mining
    batches = [range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
    store = None if cache is None else MiningCache(cache, miner.identity())
    mined: dict[int, list[Any]] = {}
    for number in tqdm(range(process[0], len(batches), process[1]), desc="Mining negatives", delay=5):
        taken = [TrainingRow.parse(rows[row]) for row in batches[number]]
        done = None if store is None else store.read(number, taken)
        if done is None:
            done = miner.mine(taken, batches[number].start)
            if store is not None:
                store.write(number, taken, done)
        mined[number] = done
    for number, batch in enumerate(batches):
        if number not in mined and store is not None:
            mined[number] = store.wait_for(number, [TrainingRow.parse(rows[row]) for row in batch])
    return [HardNegatives(*negatives) for number in range(len(batches)) for negatives in mined[number]]


@dataclass(frozen=True)
class _Miner:
    view: PassageView
    kinds: tuple[Kind, ...]
    rules: NegativeRules
    num_negatives: int
    num_candidates: int
    seed: int

    def identity(self) -> dict[str, Any]:
        """What decides the result, beside the rows."""
        return {
            "kinds": self.kinds,
            "num_negatives": self.num_negatives,
            "num_candidates": self.num_candidates,
            "seed": self.seed,
            "rules": asdict(self.rules),
            "entity": self.view.entity,
            "vectors_by": self.view.retriever.encoder_fingerprint,
            "queries_by": self.view.retriever.encoder.fingerprint,
            "passages": input_digest(self.view.knowledge_base.table),
            "ids": ids_digest(self.view.knowledge_base.table),
        }

    def mine(self, rows: Sequence[TrainingRow], first: int) -> list[HardNegatives]:
        """The negatives of rows, of which the first is row `first` of the data set."""
        queries = _queries(rows, self.view)
        proposed = zip(
            *(_PROPOSALS[kind](queries, self.view, self.num_candidates) for kind in self.kinds), strict=True
        )
        return [
            self._choose(query, dict(zip(self.kinds, candidates, strict=True)), number)
            for number, (query, candidates) in enumerate(zip(queries, proposed, strict=True), start=first)
        ]

    def _choose(self, query: _Query, proposals: dict[Kind, np.ndarray], number: int) -> HardNegatives:
        kept = {kind: iter(self._allowed(query, rows)) for kind, rows in proposals.items()}
        chosen: dict[int, str] = {}
        while len(chosen) < self.num_negatives and kept:
            for kind in list(kept):
                row = next((row for row in kept[kind] if row not in chosen), None)
                if row is None:
                    del kept[kind]
                elif len(chosen) < self.num_negatives:
                    chosen[row] = kind
        if len(chosen) < self.num_negatives:
            order = np.random.default_rng([self.seed, number]).permutation(len(self.view))
            some = order[: self.num_candidates + self.num_negatives]
            fill = self._allowed(query, some[~np.isin(some, list(chosen))])
            chosen |= dict.fromkeys(fill[: self.num_negatives - len(chosen)], "random")
        scores = self.view.vectors[list(chosen)] @ query.vector if chosen else np.zeros(0)
        return HardNegatives(self.view.ids([*chosen]), [*chosen.values()], scores.astype(float).tolist())

    def _allowed(self, query: _Query, rows: np.ndarray) -> list[int]:
        """The candidates that no rule strikes out, in their order."""
        rules, scores = self.rules, self.view.vectors[rows] @ query.vector
        keep = ~np.isin(rows, query.excluded)
        if rules.positive_ratio is not None and query.positive_score > 0:
            keep &= scores <= rules.positive_ratio * query.positive_score
        if rules.positive_margin is not None:
            keep &= scores <= query.positive_score - rules.positive_margin
        kept = rows[keep].tolist()
        if not kept:
            return []
        copies = {text for text in self.view.texts(query.gold) if text}
        answers = () if rules.allow_answers else query.row.answers
        kept = [
            row
            for row, text in zip(kept, self.view.texts(kept), strict=True)
            if not (text in copies and self.view.modality[row] == 1) and not holds_answer(text, answers)
        ]
        if query.image_hash is None or rules.near_duplicate_bits is None or not kept:
            return kept
        return [
            row
            for row, seen in zip(kept, self.view.image_hashes(kept), strict=True)
            if seen is None or differing_bits(query.image_hash, seen) > rules.near_duplicate_bits
        ]


class _Query(NamedTuple):
    """The query of a row; passages are rows of the knowledge base."""

    row: TrainingRow
    vector: np.ndarray  # (D,)
    gold: list[int]
    excluded: list[int]  # with the gold ones
    positive_score: float
    image_hash: int | None


def _queries(rows: Sequence[TrainingRow], view: PassageView) -> list[_Query]:
    check_gold_ids([row.gold_ids for row in rows], view.knowledge_base)
    lacking = [row.name for row in rows if not row.gold_ids]
    if lacking:
        raise InvalidInputError(
            f"{len(lacking)} rows have no gold passage, such as {lacking[0]}. A passage is wrong only beside "
            "one that is right: give every row `gold_ids`."
        )
    images = [None if row.image is None else _opened(row) for row in rows]
    vectors = encode_queries(view.retriever.encoder, images, [row.question for row in rows])
    queries = []
    for row, image, vector in zip(rows, images, vectors, strict=True):
        gold = view.rows(row.gold_ids)
        excluded = gold + view.rows(row.exclude_ids)
        score = float((view.vectors[gold] @ vector).max())
        queries.append(_Query(row, vector, gold, excluded, score, None if image is None else image_hash(image)))
    return queries


def _opened(row: TrainingRow) -> Image.Image:
    try:
        return safe_image(row.image)
    except UnsafeInputError as error:
        raise UnsafeInputError(f"The image of {row.name} cannot be used: {error}") from error


def _nearest(queries: Sequence[_Query], view: PassageView, number: int) -> list[np.ndarray]:
    return list(view.retriever.search_vectors(np.stack([query.vector for query in queries]), number)[1])


def _lexical(queries: Sequence[_Query], view: PassageView, number: int) -> list[np.ndarray]:
    asked = ((place, query.row.question) for place, query in enumerate(queries))
    questions = {place: question for place, question in asked if question and question.strip()}
    found = [np.zeros(0, np.int64)] * len(queries)
    if questions:
        evidence = view.retriever.retrieve(texts=list(questions.values()), k=number, channels=("bm25",))
        for place, passages in zip(questions, evidence, strict=True):
            found[place] = np.array(view.rows([passage.id for passage in passages]), np.int64)
    return found


def _same_entity(queries: Sequence[_Query], view: PassageView, number: int) -> list[np.ndarray]:
    found = []
    for query in queries:
        about = sorted({int(view.entities[row]) for row in query.gold} - {-1})
        rows = np.concatenate([np.zeros(0, np.int64), *(view.rows_of_entity[entity] for entity in about)])
        found.append(rows[np.argsort(-(view.vectors[rows] @ query.vector), kind="stable")][:number])
    return found


def _other_modality(queries: Sequence[_Query], view: PassageView, number: int) -> list[np.ndarray]:
    found = [np.zeros(0, np.int64)] * len(queries)
    own = np.array([view.modality[query.gold[0]] for query in queries])
    vectors = np.stack([query.vector for query in queries]).astype(np.float32)
    for modality in np.unique(own):
        places = np.flatnonzero(own == modality)
        rows = exact_search(vectors[places], view.vectors, number, view.modality != modality)[1]
        for place, row in zip(places, rows, strict=True):
            found[place] = row
    return found


_PROPOSALS: dict[Kind, Callable[[Sequence[_Query], PassageView, int], list[np.ndarray]]] = {
    "nearest": _nearest,
    "lexical": _lexical,
    "same_entity": _same_entity,
    "other_modality": _other_modality,
}
