"""A knowledge base as a Milvus collection: its passages, vectors and words, and who made the vectors.

The properties of a collection name the encoder of its vectors and are written last: one without them is a build that
did not finish. Methods take batches, because every call costs a round trip.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import (
    InvalidInputError,
    KnowledgeBaseCorruptError,
    KnowledgeBaseMismatchError,
    KnowledgeBaseNotFoundError,
)
from ...retrieval.encoding.reference import checked_reference
from ...retrieval.indexes.lexical_index import K1
from ...retrieval.knowledge_base import KnowledgeBase
from ...retrieval.passage import Passage
from ...retrieval.unit_vectors import unit_vectors
from .filters import milvus_filter
from .rows import OUTPUT_FIELDS, collection_schema, passage_of, row_of, size_of, words_of


if TYPE_CHECKING:
    from pymilvus import MilvusClient


FORMAT = "1"
MAX_RESULTS = 16_384  # the limit of Milvus for one query

_FORMAT_KEY, _FINGERPRINT_KEY, _NAME_KEY = "ravlm.format", "ravlm.encoder.fingerprint", "ravlm.encoder.name"
_REFERENCE_KEY = "ravlm.encoder.reference"
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

    Raises:
        KnowledgeBaseMismatchError: If the collection was not made by this library.
    """

    def __init__(self, client: MilvusClient, collection: str, consistency: str = "Strong") -> None:
        description = client.describe_collection(collection)
        properties = description.get("properties") or {}
        if properties.get(_FORMAT_KEY) != FORMAT:
            raise KnowledgeBaseMismatchError(
                f"The collection {collection!r} was not made by hf_ravlm, or not by a version with the format "
                f"{FORMAT!r} (it has {properties.get(_FORMAT_KEY)!r}). Build a collection of its own: "
                "`MilvusRetriever.build(...)`."
            )
        self.client, self.collection, self.consistency = client, collection, consistency
        self.dim = next(int(field["params"]["dim"]) for field in description["fields"] if field["name"] == "vector")
        self.encoder_fingerprint = properties.get(_FINGERPRINT_KEY)
        self.encoder_name = properties.get(_NAME_KEY, "")
        self.encoder_reference = _read_reference(properties.get(_REFERENCE_KEY), collection)

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
        """Makes an empty collection for vectors of width `dim`; `finish` completes it after passages were written.

        Raises:
            InvalidInputError: If there is such a collection and `overwrite` is not set.
        """
        client = connect(uri, token)
        if client.has_collection(collection):
            if not overwrite:
                raise InvalidInputError(
                    f"There is a collection {collection!r} already. Open it with `MilvusRetriever.open`, choose "
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
            KnowledgeBaseCorruptError: If its build did not finish.
        """
        client = connect(uri, token)
        if not client.has_collection(collection):
            raise KnowledgeBaseNotFoundError(
                f"There is no collection {collection!r} on this server; it has {sorted(client.list_collections())}. "
                "Build it: `MilvusRetriever.build(knowledge_base, encoder, uri=..., collection=...)`."
            )
        backend = cls(client, collection, consistency)
        if backend.encoder_fingerprint is None:
            raise KnowledgeBaseCorruptError(
                f"The build of the collection {collection!r} did not finish, so passages are missing. Build it again "
                "with overwrite=True."
            )
        client.load_collection(collection)
        return backend

    def finish(
        self, encoder_name: str, encoder_fingerprint: str, encoder_reference: Mapping[str, Any] | None = None
    ) -> None:
        """Names the encoder of the vectors, and how it is loaded again, which makes the collection complete."""
        self.client.flush(self.collection)
        properties = {_FORMAT_KEY: FORMAT, _FINGERPRINT_KEY: encoder_fingerprint, _NAME_KEY: encoder_name}
        if encoder_reference is not None:
            properties[_REFERENCE_KEY] = json.dumps(dict(encoder_reference))
        self.client.alter_collection_properties(self.collection, properties=properties)
        self.encoder_fingerprint, self.encoder_name = encoder_fingerprint, encoder_name
        self.encoder_reference = checked_reference(encoder_reference)

    def __len__(self) -> int:
        counted = self.client.query(
            self.collection, filter="", output_fields=["count(*)"], consistency_level=self.consistency
        )
        return int(counted[0]["count(*)"])

    def __repr__(self) -> str:
        return f"MilvusBackend({self.collection!r}, {self.dim} dimensions, encoder {self.encoder_name!r})"

    def close(self) -> None:
        """Ends the connection."""
        self.client.close()

    def search_vectors(self, vectors: Any, k: int, where: Mapping[str, Any] | None = None) -> list[Found]:
        """Returns the `k` passages (1 to `MAX_RESULTS`) nearest to each query vector (n, D), best first, with cosines.

        Raises:
            InvalidInputError: If the vectors have another width, or `where` is not as `milvus_filter` expects it.
            UnsafeInputError: If a query is zero or not finite.
        """
        return self._search("vector", list(unit_vectors(vectors, "query vectors", dim=self.dim)), "IP", k, where)

    def search_texts(self, texts: Sequence[str | None], k: int, where: Mapping[str, Any] | None = None) -> list[Found]:
        """Returns up to `k` passages that share words with each query in title or text, best first, with BM25 scores.

        A query of `None` or without a word finds nothing.
        """
        words = [words_of(text or "") for text in texts]
        results = iter(self._search("word_weights", [text for text in words if text], "BM25", k, where))
        # Milvus multiplies by k1 + 1, and milvus-lite by -1 as well.
        return [
            [(passage, abs(score) / (K1 + 1)) for passage, score in next(results)] if text else [] for text in words
        ]

    def _search(
        self, field: str, queries: list[Any], metric: str, k: int, where: Mapping[str, Any] | None
    ) -> list[Found]:
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
        passages = self._passages(hit["entity"] for query_hits in hits for hit in query_hits)
        return [
            [(passages[hit["id"]], float(hit["distance"])) for hit in query_hits if hit["id"] in passages]
            for query_hits in hits
        ]

    def passages(self, ids: Sequence[str]) -> list[Passage | None]:
        """Returns the passages with several ids, in the order asked for; `None` where there is none."""
        passages = self._passages(self._get(ids, OUTPUT_FIELDS))
        return [passages.get(passage_id) for passage_id in ids]

    def _passages(self, rows: Iterable[dict[str, Any]]) -> dict[str, Passage]:
        """Passages by id; one that was removed before its image was fetched is left out."""
        by_id = {row["id"]: row for row in rows}
        with_image = [passage_id for passage_id, row in by_id.items() if row["has_image"]]
        images = {row["id"]: row["image"] for row in self._get(with_image, ["id", "image"])}
        return {
            passage_id: passage_of(row, images.get(passage_id))
            for passage_id, row in by_id.items()
            if not row["has_image"] or passage_id in images
        }

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the vectors of passages, shape (n, D); zeros for an id that is not there."""
        known = {row["id"]: row["vector"] for row in self._get(ids, ["id", "vector"])}
        return np.array([known.get(each, np.zeros(self.dim)) for each in ids], np.float32).reshape(-1, self.dim)

    def check_new(self, ids: Sequence[str]) -> None:
        """Raises `InvalidInputError` if an id is taken."""
        if taken := sorted(row["id"] for row in self._get(ids, ["id"])):
            raise InvalidInputError(
                f"{len(taken)} of {len(ids)} passages have ids that are in the knowledge base already, such as "
                f"{taken[:5]}. Use `update` to replace passages, or give the new ones other ids."
            )

    def write(self, passages: KnowledgeBase, vectors: Any) -> None:
        """Writes passages with their vectors (n, D), in the place of those with the same ids.

        Raises:
            InvalidInputError: If a passage does not fit, or the vectors differ in number or width.
            UnsafeInputError: If a vector is zero or not finite.
        """
        vectors = unit_vectors(vectors, "passage vectors", dim=self.dim)
        if len(vectors) != len(passages):
            raise InvalidInputError(
                f"{len(passages)} passages came with {len(vectors)} vectors. Pass one per passage."
            )
        # An upsert, also for new passages: a batch that is sent again after a lost answer does no harm.
        for message in _messages(row_of(passage, vector) for passage, vector in zip(passages, vectors, strict=True)):
            self.client.upsert(self.collection, message)

    def remove(self, ids: Sequence[str]) -> None:
        """Removes passages.

        Raises:
            InvalidInputError: If there is no passage with one of the ids; nothing is removed then.
        """
        known = {row["id"] for row in self._get(ids, ["id"])}
        if unknown := [passage_id for passage_id in ids if passage_id not in known]:
            raise InvalidInputError(
                f"{len(unknown)} of {len(ids)} ids are not in the knowledge base, such as {unknown[:5]}. Nothing was "
                "removed."
            )
        for expression in _filters_of(ids):
            self.client.delete(self.collection, filter=expression)

    def _get(self, ids: Sequence[str], fields: list[str]) -> Iterator[dict[str, Any]]:
        for expression in _filters_of(ids):
            yield from self.client.query(
                self.collection, filter=expression, output_fields=fields, consistency_level=self.consistency
            )


def _read_reference(text: str | None, collection: str) -> dict[str, Any] | None:
    try:
        return None if text is None else checked_reference(json.loads(text))
    except (ValueError, RecursionError, InvalidInputError) as error:
        raise KnowledgeBaseCorruptError(
            f"The collection {collection!r} does not say how its encoder is loaded: {error}. Build it again with "
            "overwrite=True."
        ) from error


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


def _filters_of(ids: Sequence[str]) -> Iterator[str]:
    """Expressions that select ids, in batches: `get` and `delete` of pymilvus put ids into theirs unescaped."""
    for start in range(0, len(ids), _IDS_PER_CALL):
        yield milvus_filter({"id": list(ids[start : start + _IDS_PER_CALL])})
