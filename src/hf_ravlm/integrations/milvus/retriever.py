"""Knows the retriever whose passages live in a Milvus collection: it asks and changes as any other, and holds nothing.

What needs all passages or vectors at hand (`knowledge_base`, `vectors`, saving to a folder) is refused: the collection
is the knowledge base.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from ...errors import InvalidInputError, KnowledgeBaseMismatchError
from ...retrieval.encoding.corpus import embed_corpus
from ...retrieval.encoding.encoder_probe import describe_encoder
from ...retrieval.encoding.encoders import Encoder
from ...retrieval.evidence import Evidence
from ...retrieval.knowledge_base import KnowledgeBase
from ...retrieval.living_retriever import Passages, as_knowledge_base
from ...retrieval.passage import Passage
from ...retrieval.ranking.channels import Query
from ...retrieval.ranking.search import SearchOptions
from ...retrieval.retriever import RavlmRetriever
from .client import MilvusBackend
from .search import search_collection


class MilvusRetriever(RavlmRetriever):
    """Finds passages in a Milvus collection. Made by `RavlmRetriever.build(..., backend="milvus")` or `from_milvus`.

    A change is made on the server before the method returns, and found by every retriever of the collection.

    Args:
        backend: The collection.
        encoder: The encoder that made its vectors.

    Raises:
        KnowledgeBaseMismatchError: If another encoder made the vectors.
    """

    def __init__(self, backend: MilvusBackend, encoder: Encoder) -> None:
        fingerprint = encoder.fingerprint
        if fingerprint != backend.encoder_fingerprint:
            raise KnowledgeBaseMismatchError(
                f"The collection {backend.collection!r} was built by {backend.encoder_name!r} (fingerprint "
                f"{str(backend.encoder_fingerprint)[:12]}), but the encoder is {describe_encoder(encoder)!r} "
                f"(fingerprint {fingerprint[:12]}). Their vectors cannot be compared. Pass the encoder that built it, "
                'or build anew: `RavlmRetriever.build(..., backend="milvus", overwrite=True)`.'
            )
        super().__init__(KnowledgeBase(), encoder, np.zeros((0, backend.dim), np.float32), fingerprint)
        self.backend = backend

    @classmethod
    def build_collection(
        cls,
        knowledge_base: KnowledgeBase,
        encoder: Encoder,
        *,
        batch_size: int = 64,
        staging: str | os.PathLike[str] | None = None,
        uri: str,
        collection: str,
        **options: Any,
    ) -> MilvusRetriever:
        """Encodes all passages and writes them to a new collection; see `RavlmRetriever.build`."""
        if len(knowledge_base) == 0:
            raise InvalidInputError("A Milvus collection needs at least one passage: its vectors give the width.")
        fingerprint = encoder.fingerprint
        vectors = embed_corpus(knowledge_base, encoder, batch_size=batch_size, staging=staging)
        backend = MilvusBackend.create(uri, collection, vectors.shape[1], **options)
        backend.update(knowledge_base, vectors)
        backend.finish(describe_encoder(encoder), fingerprint)
        return cls(backend, encoder)

    def __len__(self) -> int:
        """The number of passages; asks the server."""
        return len(self.backend)

    def __repr__(self) -> str:
        return f"MilvusRetriever({self.backend!r})"

    def _find(self, queries: Sequence[Query], options: SearchOptions) -> list[list[Evidence]]:
        return search_collection(self.backend, self.encoder, queries, options)

    def add(self, passages: Passages, batch_size: int = 64) -> None:
        """See `RavlmRetriever.add`."""
        new = as_knowledge_base(passages)
        self.backend.check_new(new.ids)  # before time is spent on encoding
        if len(new):
            self.backend.update(new, self._encode(new, batch_size, None))

    def update(self, passages: Passages, batch_size: int = 64) -> None:
        """See `RavlmRetriever.update`."""
        new = as_knowledge_base(passages)
        same = [passage == known for passage, known in zip(new, self.backend.get(new.ids), strict=True)]
        new = KnowledgeBase(new.table.filter(np.logical_not(same))) if any(same) else new
        if len(new):
            self.backend.update(new, self._encode(new, batch_size, None))

    def remove(self, ids: Sequence[str] | str) -> None:
        """See `RavlmRetriever.remove`."""
        self.backend.remove([ids] if isinstance(ids, str) else list(ids))

    def passages(self, ids: Sequence[str]) -> list[Passage | None]:
        """Returns the passages with several ids, in the order asked for; `None` where there is none."""
        return self.backend.get(ids)

    def compact(self, purge: bool = False) -> None:
        """Does nothing: a server compacts by itself, and erases removed passages when its retention time is over."""
        if purge:
            self._refuse("erased at once by `compact(purge=True)`; drop and rebuild the collection")

    def refresh(self) -> bool:
        """Returns `False`: every search asks the server, so nothing is ever old."""
        return False

    @property
    def _knowledge(self) -> NoReturn:
        self._refuse("held in this process")

    @property
    def knowledge_base(self) -> NoReturn:
        """Refused, see the head of this file."""
        self._refuse("held as a local KnowledgeBase; ask for some by `passages(ids)`")

    @property
    def vectors(self) -> NoReturn:
        """Refused, see the head of this file."""
        self._refuse("held with their vectors in memory")

    @property
    def index(self) -> NoReturn:
        """Refused, see the head of this file."""
        self._refuse("found by a local index")

    def search_vectors(self, vectors: Any, k: int) -> NoReturn:
        """Refused: passages on a server have no rows."""
        self._refuse("numbered by rows; use `retriever.backend.search_vectors(vectors, k)`, which returns passages")

    def learn_weights(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: learn on a local sample; scores have the same scale, so the weights serve here as well."""
        self._refuse("ranked here to learn weights; learn them with a local retriever over a part of the passages")

    def save_pretrained(self, save_directory: str | os.PathLike[str], subfolder: str = "knowledge_base") -> NoReturn:
        """Refused, see the head of this file."""
        self._refuse(
            f"saved to {os.fspath(save_directory)!r}; the collection stays where it is, `from_milvus` opens it"
        )

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> NoReturn:
        """Refused, see the head of this file."""
        self._refuse(f"pushed to {repo_id!r}; build a local retriever from their source to publish it")

    def _refuse(self, what: str) -> NoReturn:
        raise InvalidInputError(
            f"The passages live in the Milvus collection {self.backend.collection!r} and are not {what}."
        )
