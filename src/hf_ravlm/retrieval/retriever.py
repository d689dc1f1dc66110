"""Knows how a question, an image, or both find their evidence: encode, search exactly, return passages with scores."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InvalidInputError, KnowledgeBaseMismatchError, KnowledgeBaseNotFoundError
from ..images import ImageSource, safe_image
from .encoders import Encoder, RavlmEncoder
from .knowledge_base import KnowledgeBase, Passage
from .safe_paths import safe_relpath
from .storage import open_generation
from .stored_knowledge import StoredKnowledge, find_store, load_knowledge, save_knowledge
from .vector_index import FlatIndex, unit_vectors


logger = logging.getLogger(__name__)

_ROWS_PER_CHUNK = 32
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Evidence(Passage):
    """A passage that was found, with its place in the ranking; all attributes of `Passage`, and:

    Attributes:
        score: The cosine of the angle between query and passage, from -1 to 1.
        rank: 1 for the best.
    """

    score: float = field(default=0.0, kw_only=True)
    rank: int = field(default=1, kw_only=True)


class RavlmRetriever:
    """Finds passages of a knowledge base by image, by text, or by both.

    Make one with `build` or `from_pretrained`.

    Args:
        knowledge_base: The passages.
        encoder: Turns queries into vectors.
        vectors: The unit vectors of the passages, of shape (N, D), in the order of the knowledge base.
        encoder_fingerprint: The fingerprint of the encoder that made the vectors; `None` for that of `encoder`.

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

    ```
    """

    def __init__(
        self, knowledge_base: KnowledgeBase, encoder: Encoder, vectors: Any, encoder_fingerprint: str | None = None
    ) -> None:
        if len(vectors) != len(knowledge_base):
            raise InvalidInputError(
                f"{len(knowledge_base)} passages came with {len(vectors)} vectors. Pass one vector per passage, or "
                "use `RavlmRetriever.build`."
            )
        self.knowledge_base = knowledge_base
        self.encoder = encoder
        self.index = FlatIndex(vectors)
        self.encoder_fingerprint = encoder.fingerprint if encoder_fingerprint is None else encoder_fingerprint

    @classmethod
    def build(cls, knowledge_base: KnowledgeBase, encoder: Encoder, batch_size: int = 64) -> RavlmRetriever:
        """Encodes all passages and indexes them.

        Args:
            knowledge_base: The passages; may be empty.
            encoder: Encodes passages now and queries later.
            batch_size: How many images are decoded and encoded at once. Texts alone are passed on in larger chunks.

        Raises:
            InvalidInputError: If the encoder returns vectors of a wrong number, shape or type.
            UnsafeInputError: If a vector is zero, NaN or infinite, with the ids of its passages.
        """
        if batch_size < 1:
            raise InvalidInputError(f"batch_size={batch_size}: expected at least 1.")
        fingerprint = encoder.fingerprint
        return cls(knowledge_base, encoder, _encode_all(knowledge_base, encoder, batch_size), fingerprint)

    def __len__(self) -> int:
        return len(self.knowledge_base)

    def __repr__(self) -> str:
        return f"RavlmRetriever({len(self)} passages, {self.index.dim} dimensions, encoder {self.encoder.name!r})"

    @property
    def vectors(self) -> np.ndarray:
        """The unit vectors of the passages, (N, D) in float32, read-only."""
        return self.index.vectors

    def retrieve(
        self,
        images: Sequence[ImageSource | None] | ImageSource | None = None,
        texts: Sequence[str | None] | str | None = None,
        k: int = 5,
    ) -> list[list[Evidence]]:
        """Returns the best passages of every query, best first.

        Args:
            images: One image per query, anything that `safe_image` takes; a single one is a batch of one. `None` for
                no images at all, or in single places.
            texts: One question per query; likewise.
            k: How many passages to return; a smaller knowledge base returns all it has.

        Returns:
            A list per query, of `min(k, N)` pieces of evidence.

        Raises:
            InvalidInputError: If a query has neither image nor text, the lists differ in length, or `k < 1`.
            UnsafeInputError: If an image cannot be used.
        """
        query_images, query_texts = _checked_queries(images, texts)
        num_queries = len(query_images)
        if len(self) == 0 or num_queries == 0:
            self.index.search(np.zeros((0, self.index.dim), np.float32), k)  # refuses a wrong k here as well
            return [[] for _ in range(num_queries)]
        vectors = self.encoder.encode_queries(
            query_images if any(image is not None for image in query_images) else None,
            query_texts if any(text is not None for text in query_texts) else None,
        )
        if len(vectors) != num_queries:
            raise InvalidInputError(f"The encoder returned {len(vectors)} vectors for {num_queries} queries.")
        scores, rows = self.search_vectors(vectors, k)
        return self._evidence(scores, rows)

    def search_vectors(self, vectors: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and rows of the passages nearest to query vectors; see `FlatIndex.search`.

        Args:
            vectors: Shape (n, D), array or tensor, of any length but zero.
            k: How many passages per query.

        Returns:
            Scores (n, min(k, N)) in float32, and rows of the knowledge base, of the same shape in int64.
        """
        return self.index.search(vectors, k)

    def _evidence(self, scores: np.ndarray, rows: np.ndarray) -> list[list[Evidence]]:
        unique, places = np.unique(rows, return_inverse=True)
        passages = [_fields_of(passage) for passage in self.knowledge_base.passages(unique.tolist())]
        return [
            [
                Evidence(**passages[place], score=float(score), rank=rank)
                for rank, (place, score) in enumerate(zip(query_places, query_scores, strict=True), start=1)
            ]
            for query_places, query_scores in zip(places.reshape(rows.shape), scores, strict=True)
        ]

    def save_pretrained(self, save_directory: str | os.PathLike[str], subfolder: str = "knowledge_base") -> None:
        """Stores passages and vectors in a sub-folder, beside the files of a model.

        An existing knowledge base is replaced in one step: whatever interrupts the save leaves the previous one.

        Args:
            save_directory: The folder of the model; created if needed.
            subfolder: The name of the knowledge base in it.

        Raises:
            KnowledgeBaseLockedError: If another process is writing there.
            OSError: If the disk refuses.
        """
        if self.encoder.fingerprint != self.encoder_fingerprint:
            logger.warning(
                "The encoder has changed since its vectors were made (trained?). The saved knowledge base will not "
                "open with it; use `RavlmRetriever.build(retriever.knowledge_base, encoder)` before saving."
            )
        store = Path(save_directory) / safe_relpath(subfolder)
        knowledge = StoredKnowledge(
            self.knowledge_base.table, self.vectors, self.encoder.name, self.encoder_fingerprint
        )
        save_knowledge(store, knowledge)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        encoder: Encoder | None = None,
        subfolder: str = "knowledge_base",
        **hub_kwargs: Any,
    ) -> RavlmRetriever:
        """Opens a stored knowledge base, verifying every file.

        Args:
            pretrained_model_name_or_path: A folder written by `save_pretrained`, the knowledge base inside it, or the
                id of a Hub repository.
            encoder: The encoder that made the vectors; `None` loads model and processor from the same place.
            subfolder: The name of the knowledge base in the folder.
            **hub_kwargs: Passed to `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`,
                `local_files_only`, ...

        Raises:
            KnowledgeBaseNotFoundError: If there is no knowledge base.
            KnowledgeBaseCorruptError: If a file is damaged or missing.
            KnowledgeBaseMismatchError: If the encoder is not the one that made the vectors.
        """
        folder, hub_kwargs = _local_folder(pretrained_model_name_or_path, subfolder, hub_kwargs)
        store = find_store(folder, subfolder)
        knowledge = load_knowledge(store)
        if encoder is None:
            encoder = _load_encoder(pretrained_model_name_or_path, store, hub_kwargs)
        fingerprint = encoder.fingerprint
        if fingerprint != knowledge.encoder_fingerprint:
            raise KnowledgeBaseMismatchError(
                f"{store}: the knowledge base was built by {knowledge.encoder_name!r} (fingerprint "
                f"{knowledge.encoder_fingerprint[:12]}), but the encoder is {encoder.name!r} (fingerprint "
                f"{fingerprint[:12]}). Their vectors cannot be compared. Pass the encoder that built it, or build "
                "anew: `RavlmRetriever.build(KnowledgeBase.load(folder), encoder).save_pretrained(folder)`."
            )
        return cls(KnowledgeBase(knowledge.table), encoder, knowledge.vectors, fingerprint)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        subfolder: str = "knowledge_base",
        commit_message: str = "Upload knowledge base",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> Any:
        """Publishes the knowledge base in one commit, so that no reader of the repository sees half of it.

        Args:
            repo_id: A model repository, such as `"owner/name"`; created if needed.
            subfolder: The name of the knowledge base in it.
            commit_message: The message of the commit.
            private: Whether a new repository is private; `None` for the default of its owner.
            token: A Hub token; `None` for the stored one.
            revision: The branch; `None` for the main one.
            create_pr: Whether to open a pull request instead of committing.

        Returns:
            The `huggingface_hub.CommitInfo`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, subfolder)
            store = Path(folder) / safe_relpath(subfolder)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=store,
                path_in_repo=safe_relpath(subfolder),
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                allow_patterns=open_generation(store).file_names(),
                delete_patterns=["manifests/*", "objects/*"],  # of earlier generations, in the same commit
            )


def _encode_all(knowledge_base: KnowledgeBase, encoder: Encoder, batch_size: int) -> np.ndarray:
    """Unit vectors of all passages, (N, D), encoded from the longest text to the shortest to spare padding."""
    from transformers.utils.logging import tqdm

    num_passages = len(knowledge_base)
    if num_passages == 0:
        return np.zeros((0, 0), np.float32)
    has_images = knowledge_base.table["image"].null_count < num_passages
    chunk = batch_size if has_images else batch_size * _ROWS_PER_CHUNK
    order = np.argsort(knowledge_base.text_lengths(), kind="stable")[::-1]
    vectors: np.ndarray | None = None
    starts = range(0, num_passages, chunk)
    for start in tqdm(starts, desc="Encoding passages") if len(starts) > 1 else starts:
        rows = order[start : start + chunk]
        passages = knowledge_base.passages(rows.tolist())
        encoded = encoder.encode_passages([p.text for p in passages], [p.image for p in passages])
        if len(encoded) != len(rows):
            raise InvalidInputError(f"The encoder returned {len(encoded)} vectors for {len(rows)} passages.")
        dim = None if vectors is None else vectors.shape[1]
        encoded = unit_vectors(encoded, "passage vectors", dim, names=[repr(p.id) for p in passages])
        if vectors is None:
            vectors = np.empty((num_passages, encoded.shape[1]), np.float32)
        vectors[rows] = encoded
    assert vectors is not None
    return vectors


def _checked_queries(images: Any, texts: Any) -> tuple[list[Image.Image | None], list[str | None]]:
    """Images and texts as two lists of one length; every row has at least one of them."""
    if images is None and texts is None:
        raise InvalidInputError("There is no query. Pass `images`, `texts`, or both.")
    image_list = None if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    text_list = None if texts is None else list(texts) if isinstance(texts, (list, tuple)) else [texts]
    if image_list is not None and text_list is not None and len(image_list) != len(text_list):
        raise InvalidInputError(
            f"{len(image_list)} images came with {len(text_list)} texts. Pass one of each per query; `None` stands "
            "for a missing one."
        )
    num_queries = len(image_list if image_list is not None else text_list or [])
    image_list = image_list if image_list is not None else [None] * num_queries
    text_list = [_checked_question(text, row) for row, text in enumerate(text_list or [None] * num_queries)]
    for row, (image, text) in enumerate(zip(image_list, text_list, strict=True)):
        if image is None and text is None:
            raise InvalidInputError(f"Query {row} is empty: it has no image, and no text but spaces. Ask something.")
    return [None if image is None else safe_image(image) for image in image_list], text_list


def _checked_question(text: Any, row: int) -> str | None:
    if text is not None and not isinstance(text, str):
        raise InvalidInputError(
            f"The text of query {row} is of type {type(text).__name__}. Expected a string or None."
        )
    return text if text and text.strip() else None


def _fields_of(passage: Passage) -> dict[str, Any]:
    return {item.name: getattr(passage, item.name) for item in fields(passage)}


def _local_folder(source: Any, subfolder: str, hub_kwargs: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The local folder of a knowledge base, downloaded if it is a Hub id, with the revision that was resolved."""
    if os.path.isdir(source):
        return Path(source), hub_kwargs
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        name = os.fspath(source)
        folder = Path(snapshot_download(name, allow_patterns=[f"{safe_relpath(subfolder)}/*"], **hub_kwargs))
    except HFValidationError as error:
        raise KnowledgeBaseNotFoundError(
            f"{source}: there is no such folder, and it is not the id of a Hub repository either. Check the path."
        ) from error
    # Model and knowledge base must come from one commit, though the branch may move between two downloads.
    revision = folder.name if _COMMIT.fullmatch(folder.name) else hub_kwargs.get("revision")
    return folder, {**hub_kwargs, "revision": revision}


def _load_encoder(source: Any, store: Path, hub_kwargs: dict[str, Any]) -> RavlmEncoder:
    from transformers import AutoModel, AutoProcessor

    if os.path.isdir(source):
        candidates = [folder for folder in (Path(source), store.parent) if (folder / "config.json").exists()]
        if not candidates:
            raise InvalidInputError(
                f"{source}: there is a knowledge base but no model (no config.json) to ask it with. Pass "
                "`encoder=RavlmEncoder(model, processor)`, or save model and processor to the same folder."
            )
        source = candidates[0]
    model = AutoModel.from_pretrained(source, trust_remote_code=False, **hub_kwargs)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=False, **hub_kwargs)
    return RavlmEncoder(model.eval(), processor)
