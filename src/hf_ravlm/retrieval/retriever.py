"""Knows how a question, an image, or both find their evidence, in knowledge that may change while it is asked."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..images import ImageSource
from .encoding.corpus import embed_corpus
from .encoding.encoders import Encoder
from .evidence import Evidence, checked_options, checked_queries, cosines_of, evidence_of
from .knowledge_base import KnowledgeBase
from .published_retriever import PublishedRetriever
from .ranking.channels import Query
from .ranking.fusion import Normalisation
from .ranking.search import SearchOptions, search
from .store.state import IndexOptions


class RavlmRetriever(PublishedRetriever):
    """Finds passages of a knowledge base by image, by text, or by both, and takes new ones at any time.

    Make one with `build` or `from_pretrained`. Once it was saved to a local folder, or opened from one, every change
    (`add`, `update`, `remove`, `compact`) is committed there before the method returns, on top of what other
    processes have committed meanwhile; `refresh` brings their changes here. Searches in other threads and processes
    keep seeing one whole state.

    Args:
        knowledge_base: The passages.
        encoder: Turns queries into vectors.
        vectors: The unit vectors of the passages, of shape (N, D), in the order of the knowledge base.
        encoder_fingerprint: The fingerprint of the encoder that made the vectors; `None` for that of `encoder`.
        index: What the index is to be, `IndexOptions` or one of `INDEX_KINDS`.

    Raises:
        InvalidInputError: If passages and vectors differ in number.

    Example, with an encoder that counts letters:

    ```python
    >>> import numpy as np
    >>> from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
    >>> class LetterEncoder:
    ...     name, fingerprint = "letters", "0" * 64
    ...
    ...     def encode_queries(self, images, texts):
    ...         return np.array([[text.count(letter) for letter in "abnow"] for text in texts], np.float32)
    ...
    ...     def encode_passages(self, texts, images):
    ...         return self.encode_queries(images, texts)
    >>> knowledge_base = KnowledgeBase.from_dicts([{"id": 1, "text": "swan"}, {"id": 2, "text": "boobook"}])
    >>> retriever = RavlmRetriever.build(knowledge_base, LetterEncoder())
    >>> [(found.text, round(found.score, 2)) for found in retriever.retrieve(texts="an owl", k=2)[0]]
    [('swan', 0.87), ('boobook', 0.45)]
    >>> retriever.add([{"id": 3, "text": "barn owl"}])
    >>> retriever.remove(["1"])
    >>> [found.text for found in retriever.retrieve(texts="an owl", k=2)[0]]
    ['barn owl', 'boobook']

    ```
    """

    @classmethod
    def build(
        cls,
        knowledge_base: KnowledgeBase,
        encoder: Encoder,
        batch_size: int = 64,
        index: str = "flat",
        *,
        memory_budget: int | None = None,
        recall: float = 0.95,
        staging: str | os.PathLike[str] | None = None,
    ) -> RavlmRetriever:
        """Encodes all passages and indexes them.

        Args:
            knowledge_base: The passages; may be empty.
            encoder: Encodes passages now and queries later.
            batch_size: How many images are decoded and encoded at once. Texts alone are passed on in larger chunks.
            index: One of `INDEX_KINDS`: `"flat"` searches exactly, `"auto"` chooses by size, memory and recall.
            memory_budget: Bytes that searching may keep in memory; `None` for no limit.
            recall: The share of the exact ten best that an approximate index is to find.
            staging: A folder for half-made work, so that an interrupted build goes on where it stopped and several
                processes share it, see `embed_corpus`; `None` works in memory. Delete it after saving.

        Raises:
            InvalidInputError: If the encoder returns vectors of a wrong number, shape or type, or the index is not
                known.
            UnsafeInputError: If a vector is zero, NaN or infinite, with the ids of its passages.
        """
        options = IndexOptions(index, memory_budget, recall)
        fingerprint = encoder.fingerprint
        vectors = embed_corpus(knowledge_base, encoder, batch_size=batch_size, staging=staging)
        return cls(knowledge_base, encoder, vectors, fingerprint, options)

    def __repr__(self) -> str:
        kind = self.index.spec["kind"]
        return (
            f"RavlmRetriever({len(self)} passages, {self.index.dim} dimensions, {kind} index, encoder "
            f"{self.encoder.name!r})"
        )

    def retrieve(
        self,
        images: Sequence[ImageSource | None] | ImageSource | None = None,
        texts: Sequence[str | None] | str | None = None,
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        channels: Sequence[str] = ("dense",),
        **options: Any,
    ) -> list[list[Evidence]]:
        """Returns the best passages of every query, best first.

        Args:
            images: One image per query, anything that `safe_image` takes; a single one is a batch of one. `None` for
                no images at all, or in single places.
            texts: One question per query; likewise.
            k: How many passages to return; a smaller knowledge base returns all it has.
            where: Which passages may be found, such as `{"licence": "CC0-1.0"}`, see
                `hf_ravlm.retrieval.ranking.filters.matching_rows`; `None` for all.
            channels: How candidates are found, names of `hf_ravlm.retrieval.knowledge_channels`: `"dense"` by
                vectors, `"bm25"` by words, ...; several are fused.
            **options: The other fields of `SearchOptions`: `num_candidates`, `weights`, `reranker`,
                `max_per_source`, `near_duplicate_threshold`, `mmr_lambda`, ...

        Returns:
            A list per query, of at most `k` pieces of evidence.

        Raises:
            InvalidInputError: If a query has neither image nor text, the lists differ in length, `k < 1`, or an
                option is wrong.
            UnsafeInputError: If an image cannot be used.
        """
        queries = checked_queries(images, texts)
        return self._find(queries, checked_options(k=k, where=where, channels=channels, **options))

    def _find(self, queries: Sequence[Query], options: SearchOptions) -> list[list[Evidence]]:
        knowledge = self._knowledge  # one state for the whole search, whoever changes it meanwhile
        vectors = knowledge.index.vectors
        ranking = search(
            self._channels.of(knowledge, options.channels),
            queries,
            options,
            knowledge,
            vectors,
            None if knowledge.all_alive else knowledge.alive,
        )
        by_cosine = options.ranks_by_cosine
        cosines = ranking.scores if by_cosine else cosines_of(self.encoder, queries, vectors, ranking)
        return evidence_of(knowledge, ranking, cosines)

    def learn_weights(
        self,
        gold_ids: Sequence[Collection[str]],
        images: Sequence[ImageSource | None] | None = None,
        texts: Sequence[str | None] | None = None,
        *,
        channels: Sequence[str] = ("dense", "bm25"),
        num_candidates: int = 50,
        normalise: Normalisation = "zscore",
    ) -> dict[str, Any]:
        """Finds out how much each channel should count, on queries whose passages are known.

        Use other queries than those that you measure with. Where one channel is much better than the others, learned
        weights keep its quality, and fusion by rank does not.

        Args:
            gold_ids: The ids of the passages that each query wants.
            images: One image per query, as in `retrieve`.
            texts: One question per query.
            channels: The channels to weigh.
            num_candidates: How many candidates each channel gives.
            normalise: As `SearchOptions`.

        Returns:
            A dictionary for JSON, see `retrieval.ranking.fusion.learn_weights`. Its `weights` and `normalise` are
            options of `retrieve`, with the same `channels`.

        Raises:
            InvalidInputError: If there is no passage with one of the ids, no such channel, or nothing to learn from.
        """
        queries = checked_queries(images, texts)
        return self._channels.learn_weights(self._knowledge, queries, gold_ids, channels, num_candidates, normalise)

    def search_vectors(self, vectors: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and rows of the passages nearest to query vectors; see `FlatIndex.search`.

        Args:
            vectors: Shape (n, D), array or tensor, of any length but zero.
            k: How many passages per query.

        Returns:
            Scores (n, min(k, N)) in float32, and rows of `knowledge_base`, of the same shape in int64.
        """
        knowledge = self._knowledge
        scores, rows = knowledge.search(vectors, k)
        return scores, knowledge.live_places(rows)
