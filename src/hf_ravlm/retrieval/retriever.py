"""The retriever: passages found for a question, an image, or both, in knowledge that may change meanwhile."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InvalidInputError, KnowledgeBaseCorruptError, KnowledgeBaseMismatchError
from ..images import ImageSource
from ..saving.commit import Destination, RepoType
from ..saving.safe_paths import at_home, safe_relpath
from .encoding.corpus import embed_corpus
from .encoding.encoder_probe import EncoderRecord, check_encoder, describe_encoder, encode_probes, reference_of
from .encoding.encoders import Encoder
from .encoding.load_encoder import load_recorded_encoder
from .evidence import (
    Evidence,
    checked_options,
    checked_queries,
    cosines_of,
    evidence_of,
    look_closer,
    parts_of_images,
)
from .hub.download import encoder_beside, hub_arguments, is_hub_snapshot, store_folder
from .hub.upload import publish
from .indexes.index_types import MILVUS
from .indexes.vector_index import VectorIndex
from .knowledge_base import KnowledgeBase, PassageSource, as_knowledge_base, completed
from .knowledge_channels import KnowledgeChannels
from .labels import LABEL_KEY, Labels, labels_of
from .ranking.channels import QueryPart, query_vectors
from .ranking.filters import matching_rows, same_value
from .ranking.fusion import Normalisation, Ranking
from .ranking.related import with_related
from .ranking.search import search
from .ranking.search_options import check_grouping
from .store.current import CurrentKnowledge
from .store.loading import OnError, OpenOptions, open_state
from .store.parts import PARTS
from .store.state import IndexOptions, KnowledgeState


if TYPE_CHECKING:
    from typing_extensions import Self


logger = logging.getLogger(__name__)

_PURGE_TIMEOUT_SECONDS = 30.0


class RavlmRetriever:
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
        self._current = CurrentKnowledge(KnowledgeState.of(knowledge_base.table, vectors, options))
        self._channels = KnowledgeChannels(encoder)
        self._knowledge_base: KnowledgeBase | None = None  # of the state that `knowledge_base` saw last
        self._labels: tuple[KnowledgeState, tuple[str, str], Labels] | None = None  # that were asked for last
        # Of an encoder that is not bit for bit the one that made the vectors, and was found to be as good.
        self._accepted_fingerprint = self.encoder_fingerprint
        self._opened_record: EncoderRecord | None = None  # of a knowledge base that was opened and lives in memory

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
        group_by: str | None = None,
        group_query: QueryPart = "both",
        **unknown: Any,
    ) -> RavlmRetriever:
        """Encodes all passages and indexes them.

        Args:
            knowledge_base: The passages; may be empty.
            encoder: Encodes passages now and queries later.
            batch_size: How many images are encoded at once; texts alone are passed on in larger chunks.
            index: One of `INDEX_KINDS`: `"flat"` searches exactly, `"auto"` chooses by size, memory and recall.
            memory_budget: Bytes that searching may keep in memory; `None` for no limit.
            recall: The share of the exact ten best that an approximate index is to find.
            staging: A folder for half-made work, so that an interrupted build goes on where it stopped and several
                processes share it, see `embed_corpus`; `None` works in memory. Delete it after saving.
            group_by: A column or a key of the metadata that says what a passage is about, such as `"species"`: every
                search then finds the thing first, by `group_query` (`"image"`, `"text"` or `"both"`), and returns
                passages about it, unless it says otherwise; see `SearchOptions`. Kept with the knowledge base.
            group_query: See `group_by`.
            **unknown: Refused, with what to do instead.

        Raises:
            InvalidInputError: If the encoder returns no vectors of the right number, shape and type, the index is
                not known, or no passage has what `group_by` names.
            UnsafeInputError: If a vector is zero, NaN or infinite, with the ids of its passages.
        """
        refuse_unknown("build", unknown)
        check_groups(knowledge_base, group_by, group_query)
        fingerprint = encoder.fingerprint
        vectors = embed_corpus(knowledge_base, encoder, batch_size=batch_size, staging=staging)
        options = IndexOptions(index, memory_budget, recall, group_by, group_query)
        return cls(knowledge_base, encoder, vectors, fingerprint, options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        encoder: Encoder | None = None,
        subfolder: str = "knowledge_base",
        *,
        repo_type: RepoType = "model",
        knowledge_base: KnowledgeBase | None = None,
        on_error: OnError = "raise",
        verify: Literal["full", "size"] = "full",
        allow_foreign_index: bool = False,
        **hub_kwargs: Any,
    ) -> Self:
        """Opens a stored knowledge base, verifying every file and that the encoder is the one that built it.

        Changes are committed to a local folder; a knowledge base from the Hub changes in memory, until it is saved.

        Args:
            pretrained_model_name_or_path: A folder written by `save_pretrained`, the knowledge base inside it, or the
                id of a Hub repository.
            encoder: The encoder that made the vectors; `None` loads it again by the name and commit that the
                knowledge base keeps of it, or, where it keeps none, model and processor from the same place.
            subfolder: The name of the knowledge base in the folder.
            repo_type: `"dataset"` for a knowledge base that was published on its own, at the root of a dataset
                repository.
            knowledge_base: The passages, if you have them: only vectors are downloaded and read, and joined with
                these if they are the ones the vectors were made for. The retriever then lives in memory.
            on_error: What to do about damage: `"raise"` refuses it; `"rebuild"` makes a damaged index again from
                the vectors; `"skip_shard"` also leaves out passages whose files are damaged, see `num_missing`.
            verify: `"size"` compares the sizes of files instead of their checksums, for a store that was verified
                before and lies on a disk that nobody else writes.
            allow_foreign_index: Whether to download and load an approximate index that somebody else wrote, read by
                compiled code that is not made for hostile files; otherwise it is built again from the vectors.
            **hub_kwargs: Passed to `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`,
                `local_files_only`, ...

        Raises:
            InvalidInputError: If there is no model to ask with, and no `encoder`.
            KnowledgeBaseNotFoundError: If there is no knowledge base, or only a part of it was published.
            KnowledgeBaseCorruptError: If a file is damaged or missing.
            KnowledgeBaseMismatchError: If the encoder is not the one that made the vectors, or the passages are not
                those they were made for.
            HubUnavailableError: If the Hub cannot be reached, and the knowledge base is not in the cache.
        """
        refuse_unknown("from_pretrained", {n: hub_kwargs[n] for n in hub_kwargs.keys() - hub_arguments()})
        options = OpenOptions(on_error, verify, allow_foreign_index)
        parts, table = (PARTS, None) if knowledge_base is None else (("vectors",), knowledge_base.table)
        source = at_home(pretrained_model_name_or_path)
        store, hub_kwargs = store_folder(source, subfolder, hub_kwargs, repo_type, parts, allow_foreign_index)
        state = open_state(store, options, passages=table)
        if encoder is None:
            encoder = _encoder_of(state.encoder, source, store, hub_kwargs, repo_type)
        check_encoder(encoder, state.encoder, store)
        retriever = cls(KnowledgeBase(), encoder, np.zeros((0, 0), np.float32), state.encoder.fingerprint)
        retriever._accepted_fingerprint = encoder.fingerprint
        retriever._opened_record = state.encoder
        is_ours = knowledge_base is None and not is_hub_snapshot(store)
        retriever._current = CurrentKnowledge(state.knowledge, state if is_ours else None, options)
        return retriever

    def __len__(self) -> int:
        return len(self._knowledge)

    def __repr__(self) -> str:
        index = f"{self.index.dim} dimensions, {self.index.spec['kind']} index"
        return f"RavlmRetriever({len(self)} passages, {index}, encoder {self.encoder.name!r})"

    @property
    def _knowledge(self) -> KnowledgeState:
        return self._current.knowledge

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
    def options(self) -> IndexOptions:
        """What the index is to be, and how passages are grouped: what another retriever takes as `index`."""
        return self._knowledge.options

    @property
    def num_missing(self) -> int:
        """How many passages could not be read and were left out, see `on_error` of `from_pretrained`."""
        return 0 if self._current.stored is None else self._current.stored.num_missing

    def retrieve(
        self,
        images: Sequence[ImageSource | None] | ImageSource | None = None,
        texts: Sequence[str | None] | str | None = None,
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        channels: Sequence[str] = ("dense",),
        region: Any = None,
        crops: int = 0,
        **options: Any,
    ) -> list[list[Evidence]]:
        """Returns a list per query of its best passages, best first.

        Args:
            images: One image per query, anything that `safe_image` takes; a single one is a batch of one. `None` for
                no images at all, or in single places.
            texts: One question per query; likewise.
            k: The most passages per query.
            where: Which passages may be found, such as `{"licence": "CC0-1.0"}`, see
                `hf_ravlm.retrieval.ranking.filters.matching_rows`; `None` for all.
            channels: How candidates are found, names of `hf_ravlm.retrieval.knowledge_channels`: `"dense"` by
                vectors, `"bm25"` by words, ...; several are fused.
            region: Which part of the image is searched with, `(x, y, width, height)` in pixels or, if none is above 1,
                in shares of the image: one for all queries, or a list with one per query (`None`: the whole).
            crops: Also search with so many parts of the image, 0 to 8, in which most is to be seen: the vector of the
                query is the mean of those of the image and its parts.
            **options: The other fields of `SearchOptions`: `group_by` and `group_query` (by default those that the
                knowledge base was built with), `num_groups`, `expand` for passages that the found ones
                name as related (one hop further, behind the `k` best), `num_candidates`, `weights`, `reranker`, ...

        Raises:
            InvalidInputError: If a query is empty, the lists differ in length, or an option is wrong.
            UnsafeInputError: If an image cannot be used.
        """
        queries = parts_of_images(checked_queries(images, texts), region)
        if crops:
            look_closer(self.encoder, queries, crops)
        knowledge = self._knowledge  # one state for the whole search, however it changes meanwhile
        grouping = {"group_by": knowledge.options.group_by, "group_query": knowledge.options.group_query}
        search_options = checked_options(**{**grouping, **options}, k=k, where=where, channels=channels)
        vectors = knowledge.index.vectors
        found = self._channels.of(knowledge, search_options.channels)
        if search_options.group_by is not None and "dense" in found:
            query_vectors(self.encoder, queries)  # all at once; the groups are searched one by one
        alive = None if knowledge.all_alive else knowledge.alive
        ranking = search(found, queries, search_options, knowledge, vectors, alive)
        if search_options.expand:
            further = (search_options.expand, search_options.related_key, where)
            ranking = with_related(knowledge, ranking, *further)
        cosines = ranking.scores
        if search_options.expand or not search_options.ranks_by_cosine:
            cosines = cosines_of(self.encoder, queries, vectors, ranking)
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
            images, texts: The queries, as in `retrieve`.
            channels, num_candidates, normalise: As in `SearchOptions`.

        Returns:
            A dictionary for JSON, see `retrieval.ranking.fusion.learn_weights`. Its `weights` and `normalise` are
            options of `retrieve`, with the same `channels`.

        Raises:
            InvalidInputError: If there is no passage with one of the ids, no such channel, or nothing to learn from.
        """
        queries = checked_queries(images, texts)
        return self._channels.learn_weights(self._knowledge, queries, gold_ids, channels, num_candidates, normalise)

    def search_vectors(self, vectors: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The passages nearest to query vectors: scores (n, min(k, N)) in float32, and rows of `knowledge_base`.

        Args:
            vectors: Shape (n, D), array or tensor, of any length but zero.
            k: How many passages per query.
        """
        knowledge = self._knowledge
        scores, rows = knowledge.search(vectors, k)
        return scores, rows if knowledge.all_alive else np.searchsorted(knowledge.live_rows, rows)

    def nearest(self, vectors: Any, k: int, *, where: Mapping[str, Any] | None = None) -> list[list[Evidence]]:
        """The passages nearest to query vectors that are there already, a list per query, best first.

        Args:
            vectors: Shape (n, D), array or tensor, of any length but zero, made by the encoder of this retriever.
            k, where: As in `retrieve`.
        """
        knowledge = self._knowledge
        allowed = None if where is None else matching_rows(knowledge.table, where, knowledge.decoded_metadata)
        scores, rows = knowledge.search(vectors, k, allowed)
        return evidence_of(knowledge, Ranking(scores, rows), scores)

    def labels(self, key: str = LABEL_KEY, *, where: Mapping[str, Any] | None = None) -> Labels:
        """The classes that the entries are of, for classifiers; kept until the knowledge base changes.

        Args:
            key: Of the metadata of the entries, which holds the name of the class.
            where: Which entries count, as in `retrieve`; `None` for all.

        Raises:
            InvalidInputError: If there is no entry, or one has no label.

        >>> knowledge_base = KnowledgeBase.from_dicts(
        ...     [{"id": n, "text": f"number {n}", "label": "even" if n % 2 == 0 else "odd"} for n in range(5)]
        ... )
        >>> labels = RavlmRetriever(knowledge_base, None, np.eye(5), "0" * 64).labels()
        >>> labels.names, labels.counts.tolist()
        (['even', 'odd'], [3, 2])
        """
        knowledge, asked = self._knowledge, (key, repr(where))
        if self._labels is None or self._labels[0] is not knowledge or self._labels[1] != asked:
            self._labels = (knowledge, asked, labels_of(knowledge, key, where))
        return self._labels[2]

    def add(self, passages: PassageSource, batch_size: int = 64) -> None:
        """Adds passages; they can be found as soon as the method returns.

        Of many, interrupted while they are encoded for a folder, the same call goes on where it stopped.

        Args:
            passages: A knowledge base, or what `KnowledgeBase.from_dicts` takes, or `Passage` objects, with new ids.
            batch_size: As in `build`.

        Raises:
            InvalidInputError: If an id is taken, or a passage is not one.
            KnowledgeBaseMismatchError: If the encoder has changed since it made the other vectors.
            KnowledgeBaseLockedError: If another process goes on writing.
            OSError: If the disk refuses; nothing has changed then.
        """
        self.refresh()
        new = as_knowledge_base(passages)
        seen = self._knowledge
        seen.check_new(new.table["id"])  # before time is spent on encoding; and again if others have written meanwhile
        with self._current.staging(new.table) as staging:
            vectors = self._encode(new, batch_size, staging)
            self._current.change(
                lambda knowledge: (knowledge.appended if knowledge is seen else knowledge.added)(new.table, vectors)
            )

    def update(self, passages: PassageSource, batch_size: int = 64) -> None:
        """Changes passages that have the same ids, and adds the others; arguments and errors as `add`.

        What is not given again (text, image, title, a key of the metadata) stays as it was. In a dictionary, `None`
        drops it: `{"id": "robin", "image": None, "colour": None}`; `"metadata": None` drops all metadata.
        A passage that is the same as before is not encoded again: pass a whole source after a few rows have changed.
        """
        self.refresh()
        new = completed(passages, self._knowledge.stored)
        new = KnowledgeBase(new.table.filter(self._knowledge.differs(new.table)))
        with self._current.staging(new.table) as staging:
            vectors = self._encode(new, batch_size, staging)
            self._current.change(lambda knowledge: knowledge.updated(new.table, vectors))

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
        self._current.change(lambda knowledge: knowledge.removed(ids))

    def compact(self, purge: bool = False) -> None:
        """Rewrites the knowledge base without what was removed, and builds its index anew.

        Args:
            purge: Whether to erase removed passages: earlier versions go as well, with every file that holds a
                removed text, image or vector, and half-made work in `staging`. Copies elsewhere (on the Hub, in
                backups, in free blocks of the disk) are yours to replace.

        Raises:
            KnowledgeBaseLockedError: If another process goes on writing, or, with `purge`, goes on reading an
                earlier version: this one is compacted then, and a later call finishes the work.
            OSError: As `add`.
        """
        self.refresh()
        self._current.change(lambda knowledge: knowledge.compacted())
        if purge:
            self._current.purge(_PURGE_TIMEOUT_SECONDS, self.refresh)

    def reencode(
        self, encoder: Encoder, batch_size: int = 64, *, staging: str | os.PathLike[str] | None = None
    ) -> None:
        """Encodes all passages anew by another encoder, which then is the one that this knowledge base is asked with.

        Vectors, index and encoder change in one commit; until then the knowledge base is as it was, and so it is after
        an error or a kill. Interrupted, the same call goes on where it stopped. Passages that others commit meanwhile
        are encoded, too.

        Args:
            encoder: Any encoder, see `load_encoder`.
            batch_size: As in `build`.
            staging: A folder for half-made work; `None` for one in the folder of the knowledge base, or none for one
                that lives in memory.

        Raises:
            InvalidInputError, UnsafeInputError: As `build`.
            KnowledgeBaseCorruptError: If passages are missing, which would be given up.
            KnowledgeBaseLockedError, OSError: As `add`.
        """
        if self.num_missing:
            raise KnowledgeBaseCorruptError(
                f"{self.num_missing} passages could not be read, and would be given up. Repair the knowledge base "
                "first, see `hf_ravlm.retrieval.repair_store`."
            )
        options = self._knowledge.options
        is_done = False
        while not is_done:
            self.refresh()
            fingerprint, base = encoder.fingerprint, self.knowledge_base
            with self._current.staging(base.table) as own:
                vectors = embed_corpus(base, encoder, batch_size=batch_size, staging=staging or own)
                record = EncoderRecord(
                    describe_encoder(encoder), fingerprint, encode_probes(encoder), reference_of(encoder)
                )
                is_done = self._current.replace(KnowledgeState.of(base.table, vectors, options), record)
        self.encoder, self.encoder_fingerprint, self._accepted_fingerprint = encoder, fingerprint, fingerprint
        self._opened_record, self._channels = record, KnowledgeChannels(encoder)

    def refresh(self) -> bool:
        """Takes over what other processes have committed; returns whether there was anything.

        Raises:
            KnowledgeBaseMismatchError: If the stored knowledge base was replaced by one of another encoder.
            KnowledgeBaseCorruptError: If it is damaged; this retriever keeps what it has.
        """
        state = self._current.newer()
        if state is None:
            return False
        if state.encoder.fingerprint != self.encoder_fingerprint:
            check_encoder(self.encoder, state.encoder, state.version.folder)
            self.encoder_fingerprint, self._accepted_fingerprint = state.encoder.fingerprint, self.encoder.fingerprint
        self._current.adopt(state)
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

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        subfolder: str = "knowledge_base",
        *,
        overwrite: bool = True,
    ) -> None:
        """Stores the knowledge base in a sub-folder, beside the files of a model; later changes are committed there.

        An existing knowledge base is replaced in one step: whatever interrupts the save leaves the previous one. The
        folder that this retriever was opened from or last saved to keeps what other processes have added.

        Args:
            save_directory: The folder of the model; created if needed.
            subfolder: The name of the knowledge base in it.
            overwrite: Whether another knowledge base that is there may be replaced, also one that somebody else has
                saved there meanwhile.

        Raises:
            InvalidInputError: If there is another one, and it may not.
            KnowledgeBaseLockedError: If another process is writing there.
            OSError: If the disk refuses.
        """
        folder = Path(at_home(save_directory)) / safe_relpath(subfolder)
        self._current.save(folder, self._encoder_record(), overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        repo_type: RepoType = "model",
        subfolder: str = "knowledge_base",
        include_passages: bool = True,
        include_vectors: bool = True,
        allow_missing_licence: bool = False,
        commit_message: str = "Upload knowledge base",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> Any:
        """Publishes the knowledge base in one commit, so that no reader of the repository sees half of it.

        Removed passages are not published, and files of earlier pushes go (but stay in the history of the repository).
        An interrupted push changes nothing; the next one sends only what is missing. The files are written to the
        temporary folder of the system (`TMPDIR`) first, which needs room for them.

        Args:
            repo_id: A repository, such as `"owner/name"`; created if needed.
            repo_type: `"model"` puts the knowledge base beside a model, into a sub-folder; `"dataset"` publishes it on
                its own, with a card, also for `KnowledgeBase.from_pretrained` and `datasets.load_dataset`.
            subfolder: The name of the knowledge base beside a model.
            include_passages: Whether to publish passages; without them a reader of the vectors brings their own.
                Vectors alone are no secret: much of a text can be reconstructed from them. Datasets only.
            include_vectors: Whether to publish vectors and index; likewise.
            allow_missing_licence: Whether to publish passages that say nothing about their licence.
            commit_message: The message of the commit.
            private: Whether a new repository is private; `None` for the default of its owner.
            token: A Hub token; `None` for the stored one.
            revision: The branch, made if needed; `None` for the main one.
            create_pr: Whether to open a pull request against the main branch instead of committing.

        Returns:
            The `huggingface_hub.CommitInfo`.

        Raises:
            InvalidInputError: If passages have no licence, if nothing or half of what a model needs would be
                published, or if `private=True` and the repository is public.
            HubUnavailableError: If the Hub cannot be reached or refuses this token.
        """
        destination = Destination(
            repo_id,
            commit_message,
            repo_type=repo_type,
            subfolder=subfolder if repo_type == "model" else None,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )
        included = {"passages": include_passages, "vectors": include_vectors}
        parts = [name for name in PARTS if included[name]]
        return publish(self._knowledge, self._encoder_record(), destination, parts, allow_missing_licence)

    @property
    def _made_by(self) -> EncoderRecord | None:
        stored = self._current.stored
        return self._opened_record if stored is None else stored.encoder

    def _encoder_record(self) -> EncoderRecord:
        """Who made the vectors, with the probes of the encoder if it still is the one."""
        fingerprint = self.encoder.fingerprint
        if fingerprint not in (self.encoder_fingerprint, self._accepted_fingerprint):
            logger.warning(
                "The encoder has changed since its vectors were made (trained?). The saved knowledge base will not "
                "open with it; use `RavlmRetriever.build(retriever.knowledge_base, encoder)` before saving."
            )
        made_by = self._made_by
        if made_by is not None and made_by.probe and (made_by.reference or fingerprint != self.encoder_fingerprint):
            return made_by
        name = describe_encoder(self.encoder) if made_by is None else made_by.name
        probe = encode_probes(self.encoder) if fingerprint == self.encoder_fingerprint else {}
        known = fingerprint == self.encoder_fingerprint  # bit for bit the one that made the vectors
        reference = reference_of(self.encoder) if known else getattr(made_by, "reference", None)
        return EncoderRecord(name, self.encoder_fingerprint, probe, reference)


def refuse_unknown(call: str, unknown: Mapping[str, Any]) -> None:
    """Raises `InvalidInputError` for an argument that `call` does not take; of Milvus, with how it is done."""
    for name, value in unknown.items():
        hint = f" {MILVUS}" if name == "backend" or "milvus" in f"{name}{value}".lower() else ""
        raise InvalidInputError(f"RavlmRetriever.{call} takes no {name}={value!r}.{hint or ' Check its spelling.'}")


def check_groups(knowledge_base: KnowledgeBase, group_by: str | None, group_query: str) -> None:
    """Raises `InvalidInputError` unless the passages can be grouped so; of an empty knowledge base, all can."""
    check_grouping(group_by, group_query)
    if group_by is not None and len(knowledge_base):
        same_value(knowledge_base.table, group_by, [])


def _encoder_of(
    record: EncoderRecord, source: Any, store: Path, hub_kwargs: dict[str, Any], repo_type: RepoType
) -> Encoder:
    """The encoder of a knowledge base: by the name that it keeps, else the model that lies beside it."""
    if record.reference is not None:
        return load_recorded_encoder(dict(record.reference), store, hub_kwargs)
    if repo_type == "dataset":
        raise InvalidInputError("A dataset repository holds no model. Pass `encoder=`, the one its card names.")
    try:
        return encoder_beside(source, store, hub_kwargs)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{source}: the knowledge base was built by {record.name!r}, which it cannot load again. Give it, by "
            f"encoder=. {error}"
        ) from error
