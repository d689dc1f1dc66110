"""Ways of finding candidates: by vectors or by words (BM25), with scores on a scale of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from ...errors import InvalidInputError
from ..encoding.encoders import Encoder, present
from ..indexes.lexical_index import LexicalIndex
from ..unit_vectors import unit_vectors
from .fusion import Ranking, ranking_from_lists


QueryPart = Literal["both", "text", "image"]


@dataclass(frozen=True)
class Query:
    """One question: a text, an image, or both; and its unit vectors (D,), once encoders (by `id`) have made them."""

    text: str | None = None
    image: Image.Image | None = None
    vectors: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)


class Channel(Protocol):
    """One way of finding candidates.

    Attributes:
        name: What options and learned weights call it, such as `"dense"` or `"bm25"`.
    """

    @property
    def name(self) -> str: ...

    def search(self, queries: Sequence[Query], k: int, allowed: np.ndarray | None) -> Ranking:
        """Returns at most `k` rows per query, best first, ties by row.

        Args:
            queries: The queries; one that the channel cannot serve, such as an image for a keyword search, gets none.
            k: How many rows per query.
            allowed: Which rows may be found, bool of shape (N,); `None` for all.
        """
        ...


class DenseChannel:
    """Finds passages by their vectors.

    Args:
        encoder: Turns queries into vectors.
        index: Has `search(vectors, k, allowed)`, over the vectors of `rows`.
        rows: The row of every vector in the knowledge base, rising, shape (V,); `None` where all passages have one.
        name: See `Channel`.
        query_part: What of a query is encoded. Queries without it are not served.

    Raises:
        InvalidInputError: If `rows` does not fit the index, or `query_part` is not known.
    """

    def __init__(
        self,
        encoder: Encoder,
        index: Any,
        rows: np.ndarray | None = None,
        name: str = "dense",
        query_part: QueryPart = "both",
    ) -> None:
        if rows is not None and len(rows) != len(index):
            raise InvalidInputError(f"{len(index)} vectors came with {len(rows)} rows. Pass one row per vector.")
        if query_part not in ("both", "text", "image"):
            raise InvalidInputError(f'query_part={query_part!r} is not known. Choose "both", "text" or "image".')
        self.encoder, self.index, self.rows = encoder, index, rows
        self.name, self.query_part = name, query_part

    def search(self, queries: Sequence[Query], k: int, allowed: np.ndarray | None) -> Ranking:
        """See `Channel`; scores are cosines."""
        images = [query.image if self.query_part != "text" else None for query in queries]
        texts = [query.text if self.query_part != "image" else None for query in queries]
        served = [place for place in range(len(queries)) if images[place] is not None or texts[place] is not None]
        if allowed is not None and self.rows is not None:
            allowed = allowed[self.rows]
        if not served or len(self.index) == 0 or (allowed is not None and not allowed.any()):
            return Ranking.empty(len(queries))
        if self.query_part == "both":
            vectors = query_vectors(self.encoder, [queries[place] for place in served])
        else:
            parts = ([images[place] for place in served], [texts[place] for place in served])
            vectors = encode_queries(self.encoder, *parts)
        scores, rows = self.index.search(vectors, k, allowed) if allowed is not None else self.index.search(vectors, k)
        rows = rows if self.rows is None else self.rows[rows]
        ranking = Ranking.empty(len(queries), rows.shape[1])
        ranking.scores[served], ranking.rows[served] = scores, rows
        return ranking


class LexicalChannel:
    """Finds passages by the words of the question; queries without a text are not served."""

    def __init__(self, index: LexicalIndex, name: str = "bm25") -> None:
        self.index, self.name = index, name

    def search(self, queries: Sequence[Query], k: int, allowed: np.ndarray | None) -> Ranking:
        """See `Channel`; scores are those of BM25, above 0."""
        return ranking_from_lists(self.index.search([query.text for query in queries], k, allowed))


def query_vectors(encoder: Encoder, queries: Sequence[Query]) -> np.ndarray:
    """The unit vectors of whole queries, (n, D); each query is encoded once, and keeps its vector."""
    new = [query for query in queries if id(encoder) not in query.vectors]
    if new:
        encoded = encode_queries(encoder, [query.image for query in new], [query.text for query in new])
        for query, vector in zip(new, unit_vectors(encoded, "query vectors"), strict=True):
            query.vectors[id(encoder)] = vector
    return np.stack([query.vectors[id(encoder)] for query in queries])


def encode_queries(encoder: Encoder, images: Sequence[Image.Image | None], texts: Sequence[str | None]) -> np.ndarray:
    """Returns the vectors of queries, (n, D), one image or text or both each.

    Raises:
        InvalidInputError: If the encoder returns another number of vectors.
    """
    vectors = encoder.encode_queries(present(list(images)), present(list(texts)))
    if len(vectors) != len(images):
        raise InvalidInputError(f"The encoder returned {len(vectors)} vectors for {len(images)} queries.")
    return vectors
