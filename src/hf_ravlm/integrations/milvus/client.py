"""Knows how a Milvus collection holds a knowledge base: its passages, vectors and words, and who made the vectors.

For knowledge that outgrows one machine. A collection names the encoder in its properties, written last: one without
is a build that did not finish. Everything is batch-first: a call costs a round trip, whatever it carries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import (
    InvalidInputError,
    KnowledgeBaseCorruptError,
    KnowledgeBaseMismatchError,
    KnowledgeBaseNotFoundError,
)
from ...retrieval.indexes.lexical_index import K1
from ...retrieval.knowledge_base import KnowledgeBase
from ...retrieval.passage import Passage
from ...retrieval.unit_vectors import unit_vectors
from .filters import milvus_filter
from .rows import OUTPUT_FIELDS, collection_schema, passage_of, row_of, size_of, words_of


if TYPE_CHECKING:
    from pymilvus import MilvusClient


logger = logging.getLogger(__name__)

FORMAT = "1"
MAX_RESULTS = 16_384  # the limit of Milvus for one query

_FORMAT_KEY, _FINGERPRINT_KEY, _NAME_KEY = "ravlm.format", "ravlm.encoder.fingerprint", "ravlm.encoder.name"
_QUERIES_PER_CALL = 256
_IDS_PER_CALL = 1_000
_ROWS_PER_CALL = 1_000
_BYTES_PER_CALL = 8_000_000
_CONNECT_SECONDS = 15.0

Found = list[tuple[Passage, float]]


class MilvusBackend:
    """A knowledge base in a Milvus collection. Make one with `create` or `open`.

    Args:
        client: A connected `pymilvus.MilvusClient`.
        collection: The name of the collection.
        consistency: How fresh an answer must be: `"Strong"` sees every write before it, `"Bounded"` and
            `"Eventually"` answer sooner and may miss the last seconds.
    """

    def __init__(self, client: MilvusClient, collection: str, consistency: str = "Strong") -> None:
        description = client.describe_collection(collection)
        properties = description.get("properties") or {}
        if _FORMAT_KEY not in properties:
            raise KnowledgeBaseMismatchError(
                f"The collection {collection!r} was not made by hf_ravlm, and nobody knows which encoder its vectors "
                'come from. Build a collection of its own: `RavlmRetriever.build(..., backend="milvus")`.'
            )
        if properties[_FORMAT_KEY] != FORMAT:
            raise KnowledgeBaseMismatchError(
                f"The collection {collection!r} has the format {properties[_FORMAT_KEY]!r}; this version reads "
                f"{FORMAT!r}. Upgrade hf_ravlm, or build the collection again."
            )
        self.client = client
        self.collection = collection
        self.consistency = consistency
        self.dim = _dim_of(description)
        self.encoder_fingerprint = properties.get(_FINGERPRINT_KEY)
        self.encoder_name = properties.get(_NAME_KEY, "")

    @classmethod
    def create(
        cls,
        uri: str,
        collection: str,
        dim: int,
        *,
        token: str = "",
        overwrite: bool = False,
        index_type: str = "AUTOINDEX",
        consistency: str = "Strong",
    ) -> MilvusBackend:
        """Makes an empty collection, which `finish` completes after passages were added.

        Args:
            uri: Such as `"http://localhost:19530"`, or the path of a `.db` file for the embedded milvus-lite.
            collection: The name of the collection: letters, digits and underscores.
            dim: The width of the vectors.
            token: `"user:password"` or an API key.
            overwrite: Whether a collection of this name is dropped first.
            index_type: The index over the vectors, such as `"FLAT"`, `"HNSW"` or `"AUTOINDEX"`.
            consistency: See the class.

        Raises:
            InvalidInputError: If there is such a collection already.
            ConnectionError: If the server cannot be reached.
        """
        client = connect(uri, token)
        if client.has_collection(collection):
            if not overwrite:
                raise InvalidInputError(
                    f"There is a collection {collection!r} already. Open it with `RavlmRetriever.from_milvus`, choose "
                    "another name, or pass overwrite=True to replace it."
                )
            client.drop_collection(collection)
        schema, indexes = collection_schema(client, dim, index_type)
        client.create_collection(
            collection,
            schema=schema,
            index_params=indexes,
            consistency_level=consistency,
            properties={_FORMAT_KEY: FORMAT},
        )
        return cls(client, collection, consistency)

    @classmethod
    def open(cls, uri: str, collection: str, *, token: str = "", consistency: str = "Strong") -> MilvusBackend:
        """Opens a finished collection.

        Raises:
            KnowledgeBaseNotFoundError: If there is no such collection.
            KnowledgeBaseMismatchError: If it was not made by this library.
            KnowledgeBaseCorruptError: If its build did not finish.
            ConnectionError: If the server cannot be reached.
        """
        client = connect(uri, token)
        if not client.has_collection(collection):
            raise KnowledgeBaseNotFoundError(
                f"There is no collection {collection!r} on this server; it has {sorted(client.list_collections())}. "
                'Build it: `RavlmRetriever.build(knowledge_base, encoder, backend="milvus", ...)`.'
            )
        backend = cls(client, collection, consistency)
        if backend.encoder_fingerprint is None:
            raise KnowledgeBaseCorruptError(
                f"The build of the collection {collection!r} did not finish, so passages are missing. Build it again "
                "with overwrite=True."
            )
        client.load_collection(collection)
        return backend

    def finish(self, encoder_name: str, encoder_fingerprint: str) -> None:
        """Names the encoder of the vectors, which makes the collection complete."""
        self.client.flush(self.collection)
        properties = {_FINGERPRINT_KEY: encoder_fingerprint, _NAME_KEY: encoder_name}
        self.client.alter_collection_properties(self.collection, properties={_FORMAT_KEY: FORMAT, **properties})
        self.encoder_name, self.encoder_fingerprint = encoder_name, encoder_fingerprint

    def __len__(self) -> int:
        counted = self.client.query(
            self.collection, filter="", output_fields=["count(*)"], consistency_level=self.consistency
        )
        return int(counted[0]["count(*)"])

    def __repr__(self) -> str:
        return f"MilvusBackend({self.collection!r}, {self.dim} dimensions, encoder {self.encoder_name!r})"

    def search_vectors(self, vectors: Any, k: int, where: Mapping[str, Any] | None = None) -> list[Found]:
        """Returns the passages nearest to query vectors, best first, with cosines.

        Args:
            vectors: Shape (n, D), of any length but zero.
            k: How many passages per query, at most 16,384.
            where: See `milvus_filter`.

        Raises:
            InvalidInputError: If `k` is out of range, the vectors have another width, or the filter is wrong.
            UnsafeInputError: If a query is zero or not finite.
        """
        queries = unit_vectors(vectors, "query vectors", dim=self.dim)
        return self._search("vector", list(queries), "IP", k, where)

    def search_texts(self, texts: Sequence[str | None], k: int, where: Mapping[str, Any] | None = None) -> list[Found]:
        """Returns the passages that share words with the queries in title or text, best first, with scores of BM25.

        Args:
            texts: One per query; `None` or one without a word finds nothing.
            k: How many passages per query, at most 16,384; those without a common word are left out.
            where: See `milvus_filter`.
        """
        words = [words_of(text or "") for text in texts]
        asked = [place for place, text in enumerate(words) if text]
        found: list[Found] = [[] for _ in texts]
        results = self._search("word_weights", [words[place] for place in asked], "BM25", k, where)
        for place, result in zip(asked, results, strict=True):
            # Milvus multiplies by k1 + 1, and milvus-lite by -1 as well.
            found[place] = [(passage, abs(score) / (K1 + 1)) for passage, score in result]
        return found

    def _search(
        self, field: str, queries: list[Any], metric: str, k: int, where: Mapping[str, Any] | None
    ) -> list[Found]:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= MAX_RESULTS:
            raise InvalidInputError(f"k={k!r}: expected a whole number from 1 to {MAX_RESULTS:,}.")
        expression = milvus_filter(where)
        hits: list[list[dict[str, Any]]] = []
        for start in range(0, len(queries), _QUERIES_PER_CALL):
            hits += self.client.search(
                self.collection,
                data=queries[start : start + _QUERIES_PER_CALL],
                anns_field=field,
                limit=int(k),
                filter=expression,
                search_params={"metric_type": metric},
                output_fields=OUTPUT_FIELDS,
                consistency_level=self.consistency,
            )
        rows = {hit["id"]: hit["entity"] for query_hits in hits for hit in query_hits}
        passages = self._passages(rows)
        return [
            [(passages[hit["id"]], float(hit["distance"])) for hit in query_hits if hit["id"] in passages]
            for query_hits in hits
        ]

    def _passages(self, rows: Mapping[str, dict[str, Any]]) -> dict[str, Passage]:
        """Passages by id; one that lost its image on the way, because it was just removed, is left out."""
        with_image = [passage_id for passage_id, row in rows.items() if row["has_image"]]
        images = {row["id"]: row["image"] for row in self._get(with_image, ["id", "image"])}
        return {
            passage_id: passage_of(row, images.get(passage_id))
            for passage_id, row in rows.items()
            if not row["has_image"] or passage_id in images
        }

    def get(self, ids: Sequence[str]) -> list[Passage | None]:
        """Returns the passages with several ids, in the order asked for; `None` where there is none."""
        passages = self._passages({row["id"]: row for row in self._get(ids, OUTPUT_FIELDS)})
        return [passages.get(passage_id) for passage_id in ids]

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the vectors of passages, shape (n, D); zeros for an id that is not there."""
        known = {row["id"]: row["vector"] for row in self._get(ids, ["id", "vector"])}
        vectors = np.zeros((len(ids), self.dim), np.float32)
        for place, passage_id in enumerate(ids):
            vectors[place] = known.get(passage_id, 0)
        return vectors

    def check_new(self, ids: Sequence[str]) -> None:
        """Raises `InvalidInputError` if an id is taken."""
        taken = sorted(self._known(ids))
        if taken:
            raise InvalidInputError(
                f"{len(taken)} of {len(ids)} passages have ids that are in the knowledge base already: "
                f"{_some(taken)}. Use `update` to replace passages, or give the new ones other ids."
            )

    def add(self, passages: KnowledgeBase, vectors: Any) -> None:
        """Adds passages with their vectors (n, D).

        Raises:
            InvalidInputError: If an id is taken, a passage does not fit, or the vectors differ in number or width.
        """
        self.check_new(passages.ids)
        self._write(passages, vectors)

    def update(self, passages: KnowledgeBase, vectors: Any) -> None:
        """Replaces passages with the same ids, and adds those with new ones; errors as `add`."""
        self._write(passages, vectors)

    def remove(self, ids: Sequence[str]) -> None:
        """Removes passages.

        Raises:
            InvalidInputError: If there is no passage with one of the ids; nothing is removed then.
        """
        known = self._known(ids)
        unknown = [passage_id for passage_id in ids if passage_id not in known]
        if unknown:
            raise InvalidInputError(
                f"{len(unknown)} of {len(ids)} ids are not in the knowledge base: {_some(unknown)}. Nothing was "
                "removed."
            )
        for batch in _batches(ids, _IDS_PER_CALL):
            self.client.delete(self.collection, filter=milvus_filter({"id": batch}))

    def drop(self) -> None:
        """Removes the whole collection from the server."""
        self.client.drop_collection(self.collection)

    def close(self) -> None:
        """Ends the connection."""
        self.client.close()

    def _write(self, passages: KnowledgeBase, vectors: Any) -> None:
        vectors = unit_vectors(vectors, "passage vectors", dim=self.dim)
        if len(vectors) != len(passages):
            raise InvalidInputError(
                f"{len(passages)} passages came with {len(vectors)} vectors. Pass one per passage."
            )
        # An upsert, also for new passages: a batch that is sent again after a lost answer does no harm.
        for batch in _messages(row_of(passage, vector) for passage, vector in zip(passages, vectors, strict=True)):
            self.client.upsert(self.collection, batch)

    def _known(self, ids: Sequence[str]) -> set[str]:
        return {row["id"] for row in self._get(ids, ["id"])}

    def _get(self, ids: Sequence[str], fields: list[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for batch in _batches(ids, _IDS_PER_CALL):
            # By a filter of ours: `get` and `delete` of pymilvus put ids into their expressions as they are.
            rows += self.client.query(
                self.collection,
                filter=milvus_filter({"id": batch}),
                output_fields=fields,
                consistency_level=self.consistency,
            )
        return rows


def connect(uri: str, token: str = "") -> MilvusClient:
    """Returns a client of a Milvus server, or of an embedded one for the path of a `.db` file.

    Raises:
        ImportError: If pymilvus is not installed.
        ConnectionError: If the server cannot be reached.
    """
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError as error:
        raise ImportError('A knowledge base in Milvus needs pymilvus: pip install "hf_ravlm[milvus]"') from error
    try:
        return MilvusClient(uri, token=token, timeout=_CONNECT_SECONDS)
    except MilvusException as error:
        # Without the token, which may be a password.
        raise ConnectionError(
            f"No Milvus answers at {uri!r}: {error.message}. Is it running, and the token right?"
        ) from None


def _dim_of(description: Mapping[str, Any]) -> int:
    return next(int(field["params"]["dim"]) for field in description["fields"] if field["name"] == "vector")


def _messages(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cuts rows into messages of bounded number and size."""
    message: list[dict[str, Any]] = []
    num_bytes = 0
    for row in rows:
        size = size_of(row)
        if message and (len(message) == _ROWS_PER_CALL or num_bytes + size > _BYTES_PER_CALL):
            yield message
            message, num_bytes = [], 0
        message.append(row)
        num_bytes += size
    if message:
        yield message


def _batches(ids: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(ids), size):
        yield list(ids[start : start + size])


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:5])) + (", ..." if len(ids) > 5 else "")
