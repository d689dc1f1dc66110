"""A retriever whose passages live in a Milvus collection: for knowledge that outgrows one machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import InvalidInputError, KnowledgeBaseMismatchError
from ...images import ImageSource
from ...retrieval.encoding.corpus import embed_corpus
from ...retrieval.encoding.encoder_probe import describe_encoder, reference_of
from ...retrieval.encoding.encoders import Encoder
from ...retrieval.encoding.load_encoder import load_recorded_encoder
from ...retrieval.evidence import Evidence, checked_options, checked_queries
from ...retrieval.knowledge_base import KnowledgeBase, PassageSource, as_knowledge_base, completed
from ...retrieval.passage import Passage
from .client import MilvusBackend
from .search import search_collection


class MilvusRetriever:
    """Finds passages in a Milvus collection by image, by text, or by both, and takes new ones at any time.

    Make one with `build` or `open`; pipelines, `answer_questions`, the server and adapters of other libraries take it
    like a `RavlmRetriever`. A change is made on the server before the method returns, and found by every retriever of
    the collection. Passages and vectors stay there: saving to a folder, training and learning weights need a
    `RavlmRetriever`.

    Args:
        backend: The collection.
        encoder: The encoder that made its vectors.

    Raises:
        KnowledgeBaseMismatchError: If another encoder made the vectors.

    Example:

    ```python
    >>> from hf_ravlm.integrations.milvus import MilvusRetriever
    >>> place = {"uri": "http://localhost:19530", "collection": "birds"}
    >>> retriever = MilvusRetriever.build(knowledge_base, encoder, **place)  # doctest: +SKIP
    >>> MilvusRetriever.open(encoder=encoder, **place).retrieve(texts="a small loud bird")  # doctest: +SKIP

    ```
    """

    def __init__(self, backend: MilvusBackend, encoder: Encoder) -> None:
        self.backend, self.encoder = backend, encoder
        self._check_encoder()

    @classmethod
    def build(
        cls,
        knowledge_base: KnowledgeBase,
        encoder: Encoder,
        batch_size: int = 64,
        *,
        uri: str,
        collection: str,
        staging: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> MilvusRetriever:
        """Encodes all passages and writes them to a new collection.

        Args:
            knowledge_base: At least one passage.
            encoder: Encodes passages now and queries later.
            batch_size: As `RavlmRetriever.build`; so `staging`.
            uri: Such as `"http://localhost:19530"`, or the path of a `.db` file for the embedded milvus-lite.
            collection: The name of the collection: letters, digits and underscores.
            **options: `token` (`"user:password"` or an API key); `overwrite=True` to replace a collection of this
                name; `index_type` over the vectors, such as `"FLAT"`, `"HNSW"` or `"AUTOINDEX"`; `consistency`, see
                `open`.

        Raises:
            InvalidInputError: If there is no passage, one does not fit, or there is such a collection already.
            ImportError: If pymilvus is not installed.
            ConnectionError: If the server cannot be reached.
        """
        if len(knowledge_base) == 0:
            raise InvalidInputError("A Milvus collection needs at least one passage: its vectors give the width.")
        fingerprint = encoder.fingerprint
        vectors = embed_corpus(knowledge_base, encoder, batch_size=batch_size, staging=staging)
        backend = MilvusBackend.create(uri, collection, vectors.shape[1], **options)
        backend.write(knowledge_base, vectors)
        backend.finish(describe_encoder(encoder), fingerprint, reference_of(encoder))
        return cls(backend, encoder)

    @classmethod
    def open(
        cls,
        uri: str,
        collection: str,
        encoder: Encoder | None = None,
        *,
        token: str = "",
        consistency: str = "Strong",
        device: str | None = None,
    ) -> MilvusRetriever:
        """Opens a collection that `build` made.

        Args:
            uri, collection, token: As `build`.
            encoder: The one that built it; `None` loads it again by the name that the collection keeps.
            device: Of the encoder that is loaded again, see `load_encoder`.
            consistency: `"Strong"` sees every change at once, `"Bounded"` and `"Eventually"` answer sooner and may
                miss the last seconds.

        Raises:
            KnowledgeBaseNotFoundError: If there is no such collection.
            KnowledgeBaseCorruptError: If its build did not finish.
            InvalidInputError, HubUnavailableError: If no encoder is given, and it names none, or it is not to be had.
            KnowledgeBaseMismatchError: If this library did not make it, or another encoder made the vectors.
            ConnectionError: If the server cannot be reached.
        """
        backend = MilvusBackend.open(uri, collection, token=token, consistency=consistency)
        if encoder is None:
            reference = backend.encoder_reference
            if reference is None:
                raise InvalidInputError(
                    f"The collection {collection!r} was built by {backend.encoder_name!r}, which came from no "
                    "repository: pass encoder=, the one that built it."
                )
            encoder = load_recorded_encoder(reference, f"the collection {collection!r}", {}, device)
        return cls(backend, encoder)

    @property
    def encoder_fingerprint(self) -> str:
        """The fingerprint of the encoder that made the vectors."""
        return str(self.backend.encoder_fingerprint)

    def __len__(self) -> int:
        return len(self.backend)

    def __repr__(self) -> str:
        return f"MilvusRetriever({self.backend!r})"

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
        """Returns the best passages of every query, best first; arguments and errors as `RavlmRetriever.retrieve`.

        `k` is at most 16,384, the channels are `"dense"` and `"bm25"`, and `where` is read as `milvus_filter` says.
        """
        queries = checked_queries(images, texts)
        asked = checked_options(k=k, where=where, channels=channels, **options)
        return search_collection(self.backend, self.encoder, queries, asked)

    def add(self, passages: PassageSource, batch_size: int = 64) -> None:
        """Adds passages, with ids that are new; arguments and errors as `RavlmRetriever.add`."""
        new = as_knowledge_base(passages)
        self.backend.check_new(new.ids)  # before time is spent on encoding
        self._encode_and_write(new, batch_size)

    def update(self, passages: PassageSource, batch_size: int = 64) -> None:
        """Changes passages that have the same ids, and adds the others, as `RavlmRetriever.update`."""
        new = completed(passages, self.backend.passages)
        known = self.backend.passages(new.ids)
        differs = [passage != stored for passage, stored in zip(new, known, strict=True)]
        self._encode_and_write(KnowledgeBase(new.table.filter(np.array(differs, bool))), batch_size)

    def remove(self, ids: Sequence[str] | str) -> None:
        """Removes passages; errors as `RavlmRetriever.remove`. The server erases them when their time is over."""
        self.backend.remove([ids] if isinstance(ids, str) else list(ids))

    def passages(self, ids: Sequence[str]) -> list[Passage | None]:
        """Returns the passages with several ids, in the order asked for; `None` where there is none."""
        return self.backend.passages(ids)

    def _encode_and_write(self, new: KnowledgeBase, batch_size: int) -> None:
        if len(new):
            self._check_encoder()
            self.backend.write(new, embed_corpus(new, self.encoder, batch_size=batch_size))

    def _check_encoder(self) -> None:
        fingerprint = self.encoder.fingerprint
        if fingerprint != self.backend.encoder_fingerprint:
            raise KnowledgeBaseMismatchError(
                f"The collection {self.backend.collection!r} was built by {self.backend.encoder_name!r} (fingerprint "
                f"{self.encoder_fingerprint[:12]}), but the encoder is {describe_encoder(self.encoder)!r} "
                f"(fingerprint {fingerprint[:12]}). Their vectors cannot be compared. Pass the encoder that built it, "
                "or build anew, as after training: `MilvusRetriever.build(..., overwrite=True)`."
            )
