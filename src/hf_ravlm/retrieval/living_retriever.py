"""Knows how a retriever's knowledge changes: passages come, go and are replaced while searches go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError, KnowledgeBaseMismatchError
from .encoding.corpus import embed_corpus
from .encoding.encoder_probe import check_encoder
from .encoding.encoders import Encoder
from .knowledge_base import KnowledgeBase
from .knowledge_channels import KnowledgeChannels
from .passage import Passage
from .store.current import HeldKnowledge
from .store.state import IndexOptions, LivingKnowledge


if TYPE_CHECKING:
    from .indexes.vector_index import VectorIndex


_PURGE_TIMEOUT_SECONDS = 30.0

Passages = KnowledgeBase | Iterable[Mapping[str, Any] | Passage]


class LivingRetriever:
    """What of `RavlmRetriever` holds the knowledge and changes it; arguments and errors as there."""

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        encoder: Encoder,
        vectors: Any,
        encoder_fingerprint: str | None = None,
        index: IndexOptions | str = "flat",
    ) -> None:
        if len(vectors) != len(knowledge_base):
            raise InvalidInputError(
                f"{len(knowledge_base)} passages came with {len(vectors)} vectors. Pass one vector per passage, or "
                "use `RavlmRetriever.build`."
            )
        options = IndexOptions(index) if isinstance(index, str) else index
        self.encoder = encoder
        self.encoder_fingerprint = encoder.fingerprint if encoder_fingerprint is None else encoder_fingerprint
        self._held = HeldKnowledge(LivingKnowledge.of(knowledge_base.table, vectors, options))
        self._channels = KnowledgeChannels(encoder)
        self._knowledge_base: KnowledgeBase | None = None  # of the state that `knowledge_base` saw last
        # Of an encoder that is not bit for bit the one that made the vectors, and was found to be as good.
        self._accepted_fingerprint = self.encoder_fingerprint

    def __len__(self) -> int:
        return len(self._knowledge)

    @property
    def _knowledge(self) -> LivingKnowledge:
        return self._held.knowledge

    @property
    def knowledge_base(self) -> KnowledgeBase:
        """The passages, without those that were removed. A passage that was updated stands at the end."""
        table = self._knowledge.live_table
        if self._knowledge_base is None or self._knowledge_base.table is not table:
            self._knowledge_base = KnowledgeBase(table)
        return self._knowledge_base

    @property
    def vectors(self) -> np.ndarray:
        """The unit vectors of the passages, (N, D) in float32, in the order of `knowledge_base`, read-only."""
        return self._knowledge.vectors

    @property
    def index(self) -> VectorIndex:
        """What finds the passages; its rows count removed passages as well, until `compact`."""
        return self._knowledge.index

    @property
    def num_missing(self) -> int:
        """How many passages could not be read and were left out, see `on_corrupt` of `from_pretrained`."""
        return 0 if self._held.stored is None else self._held.stored.num_missing

    def add(self, passages: Passages, batch_size: int = 64) -> None:
        """Adds passages; they can be found as soon as the method returns.

        Many passages for a folder are encoded in its sub-folder `staging`: after an interruption the same call goes
        on where it stopped.

        Args:
            passages: A knowledge base, or what `KnowledgeBase.from_dicts` takes, or `Passage` objects. Their ids
                must be new.
            batch_size: As in `build`.

        Raises:
            InvalidInputError: If an id is taken, or a passage is not one.
            KnowledgeBaseMismatchError: If the encoder has changed since it made the other vectors.
            KnowledgeBaseLockedError: If another process goes on writing.
            OSError: If the disk refuses; nothing has changed then.
        """
        self.refresh()
        new = as_knowledge_base(passages)
        self._knowledge.check_new(new.ids)  # before time is spent on encoding; and again when it is stored
        with self._held.staging(new.table) as staging:
            vectors = self._encode(new, batch_size, staging)
            self._held.change(lambda knowledge: knowledge.added(new.table, vectors))

    def update(self, passages: Passages, batch_size: int = 64) -> None:
        """Replaces passages that have the same ids, and adds the others; arguments and errors as `add`.

        A passage that is the same as before is not encoded again, so that a whole source can be passed after a few
        of its rows have changed.
        """
        self.refresh()
        new = as_knowledge_base(passages)
        new = KnowledgeBase(new.table.filter(self._knowledge.differs(new.table)))
        with self._held.staging(new.table) as staging:
            vectors = self._encode(new, batch_size, staging)
            self._held.change(lambda knowledge: knowledge.updated(new.table, vectors))

    def remove(self, ids: Sequence[str] | str) -> None:
        """Removes passages: they are never found again. Their bytes stay until `compact(purge=True)`.

        Args:
            ids: Ids of passages, or a single one.

        Raises:
            InvalidInputError: If there is no passage with one of the ids; none is removed then.
            KnowledgeBaseLockedError, OSError: As `add`.
        """
        ids = [ids] if isinstance(ids, str) else list(ids)
        self.refresh()
        self._held.change(lambda knowledge: knowledge.removed(ids))

    def compact(self, purge: bool = False) -> None:
        """Rewrites the knowledge base without what was removed, and builds its index anew.

        Args:
            purge: Whether to erase removed passages: earlier generations go as well, with every file that holds a
                removed text, image or vector, and half-made work in `staging`. (Copies elsewhere, such as on the Hub
                or in backups, are yours to replace, and so are the free blocks of the disk.)

        Raises:
            KnowledgeBaseLockedError: If another process goes on writing, or, with `purge`, goes on reading an
                earlier generation: this one is compacted then, and a later call finishes the work.
            OSError: As `add`.
        """
        self.refresh()
        self._held.change(lambda knowledge: knowledge.compacted())
        if purge:
            self._held.purge(_PURGE_TIMEOUT_SECONDS)

    def refresh(self) -> bool:
        """Takes over what other processes have committed; returns whether there was anything.

        Raises:
            KnowledgeBaseMismatchError: If the stored knowledge base was replaced by one of another encoder.
            KnowledgeBaseCorruptError: If it is damaged; this retriever keeps what it has.
        """
        state = self._held.newer()
        if state is None:
            return False
        if state.encoder.fingerprint != self.encoder_fingerprint:
            check_encoder(self.encoder, state.encoder, state.generation.folder)
            self.encoder_fingerprint, self._accepted_fingerprint = state.encoder.fingerprint, self.encoder.fingerprint
        self._held.adopt(state)
        return True

    def _encode(self, knowledge_base: KnowledgeBase, batch_size: int, staging: Path | None) -> np.ndarray:
        """Vectors of new passages, by the encoder that made the others."""
        fingerprint = self.encoder.fingerprint
        if fingerprint not in (self.encoder_fingerprint, self._accepted_fingerprint):
            raise KnowledgeBaseMismatchError(
                f"The encoder {self.encoder.name!r} has changed since it made the vectors of the knowledge base "
                f"(fingerprint {fingerprint[:12]} instead of {self._accepted_fingerprint[:12]}), as after training. "
                "Build anew: `RavlmRetriever.build(retriever.knowledge_base, encoder)`."
            )
        return embed_corpus(knowledge_base, self.encoder, batch_size=batch_size, staging=staging, process=(0, 1))


def as_knowledge_base(passages: Passages) -> KnowledgeBase:
    """Passages as a user gives them, see `RavlmRetriever.add`."""
    if isinstance(passages, KnowledgeBase):
        return passages
    rows = [_row_of(passage) if isinstance(passage, Passage) else passage for passage in passages]
    return KnowledgeBase.from_dicts(rows) if rows else KnowledgeBase()


def _row_of(passage: Passage) -> dict[str, Any]:
    row = {item.name: getattr(passage, item.name) for item in fields(passage) if item.name != "image_bytes"}
    return {**row, "image": passage.image_bytes}
