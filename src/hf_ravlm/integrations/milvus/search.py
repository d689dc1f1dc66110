"""The steps of `retrieval.ranking.search` over a Milvus collection.

What the server finds is numbered in the order in which it came, and then fused, reranked and thinned out as rows of a
local knowledge base are: both give the same answers to the same options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import InvalidInputError
from ...retrieval.encoding.encoders import Encoder
from ...retrieval.evidence import Evidence, cosines_of, evidence_of
from ...retrieval.knowledge_base import as_knowledge_base
from ...retrieval.passage import Passage
from ...retrieval.ranking.channels import Channel, DenseChannel, LexicalChannel, Query
from ...retrieval.ranking.filters import same_value
from ...retrieval.ranking.fusion import Ranking, ranking_from_lists
from ...retrieval.ranking.grouping import search_groups
from ...retrieval.ranking.search import search
from ...retrieval.ranking.search_options import SearchOptions
from .client import MAX_RESULTS, Found, MilvusBackend


def search_collection(
    backend: MilvusBackend, encoder: Encoder, queries: Sequence[Query], options: SearchOptions
) -> list[list[Evidence]]:
    """Returns the best passages of every query, best first; the channels are `"dense"` and `"bm25"`.

    Raises:
        InvalidInputError: If an option is wrong or `k` is larger than the limit of Milvus.
    """
    if options.k > MAX_RESULTS:
        raise InvalidInputError(f"k={options.k}: Milvus returns at most {MAX_RESULTS:,} passages per query.")
    if options.expand:
        raise InvalidInputError(f"expand={options.expand}: related passages are looked up by a RavlmRetriever alone.")
    found = _FoundPassages()
    vectors: Any = _FoundVectors(backend, found)

    def find(queries: Sequence[Query], options: SearchOptions) -> Ranking:
        def by_vectors(vectors: np.ndarray, k: int) -> Ranking:
            return ranking_from_lists(found.numbered(backend.search_vectors(vectors, k, options.where)))

        def by_words(texts: Sequence[str | None], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
            return found.numbered(backend.search_texts(texts, k, options.where))

        words: Any = _ServerIndex(by_words)
        dense = DenseChannel(encoder, _ServerIndex(by_vectors))
        channels: dict[str, Channel] = {"dense": dense, "bm25": LexicalChannel(words)}
        return search(channels, queries, replace(options, where=None), found, vectors)

    if options.group_by is None:
        ranking = find(queries, options)
    else:
        ranking = search_groups(find, queries, options, partial(found.conditions_at, options.group_by))
    cosines = ranking.scores if options.ranks_by_cosine else cosines_of(encoder, queries, vectors, ranking)
    return evidence_of(found, ranking, cosines)


@dataclass
class _ServerIndex:
    """What a channel asks of an index, asked of the server."""

    ask: Callable[[Any, int], Any]

    def __len__(self) -> int:
        return MAX_RESULTS

    def search(self, queries: Any, k: int, allowed: None = None) -> Any:
        return self.ask(queries, min(k, MAX_RESULTS))


class _FoundPassages:
    """Passages numbered in the order in which the server gave them."""

    def __init__(self) -> None:
        self.row_of_id: dict[str, int] = {}
        self._passages: list[Passage] = []

    @property
    def table(self) -> pa.Table:
        """Their sources, and empty rows for those that may still be found."""
        sources = [passage.source for passage in self._passages]
        return pa.table({"source": pa.array(sources + [None] * (MAX_RESULTS - len(sources)), pa.string())})

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        return [self._passages[row] for row in rows]

    def conditions_at(self, name: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        """What `same_value` says of passages in some rows."""
        table = as_knowledge_base(self.passages(rows)).table
        return same_value(table, name, range(len(rows))) if len(rows) else []

    def numbered(self, results: Sequence[Found]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Scores and rows of the passages found for each query."""
        return [
            (
                np.array([score for _, score in result], np.float32),
                np.array([self._row(passage) for passage, _ in result], np.int64),
            )
            for result in results
        ]

    def _row(self, passage: Passage) -> int:
        if passage.id not in self.row_of_id:
            self.row_of_id[passage.id] = len(self._passages)
            self._passages.append(passage)
        return self.row_of_id[passage.id]


class _FoundVectors:
    """The vectors of found passages, by their rows, fetched when they are compared."""

    def __init__(self, backend: MilvusBackend, found: _FoundPassages) -> None:
        self.backend, self.found = backend, found
        self.fetched = np.zeros((0, backend.dim), np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.fetched.shape

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if new := list(self.found.row_of_id)[len(self.fetched) :]:
            self.fetched = np.concatenate([self.fetched, self.backend.vectors(new)])
        vectors: np.ndarray = self.fetched[rows]
        return vectors
