"""Knows how a retriever is kept, opened again and published: in a folder, or in a repository on the Hub."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InvalidInputError
from ..saving.commit import Destination
from ..saving.safe_paths import safe_relpath
from .encoding.encoder_probe import EncoderRecord, check_encoder, describe_encoder, encode_probes
from .encoding.encoders import Encoder
from .hub.download import RepoType, is_hub_snapshot, load_encoder, local_folder
from .hub.upload import publish
from .knowledge_base import KnowledgeBase
from .living_retriever import LivingRetriever
from .store.current import HeldKnowledge
from .store.loading import OnCorrupt, OpenOptions, open_state
from .store.parts import PARTS, roles_of
from .store.saving import find_store
from .store.trust import is_trusted


if TYPE_CHECKING:
    from typing_extensions import Self


logger = logging.getLogger(__name__)


class PublishedRetriever(LivingRetriever):
    """What of `RavlmRetriever` saves, opens and publishes."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], subfolder: str = "knowledge_base") -> None:
        """Stores the knowledge base in a sub-folder, beside the files of a model; later changes are committed there.

        An existing knowledge base is replaced in one step: whatever interrupts the save leaves the previous one. The
        folder that this retriever was opened from or last saved to is written anew as it is now, with what other
        processes have added.

        Args:
            save_directory: The folder of the model; created if needed.
            subfolder: The name of the knowledge base in it.

        Raises:
            KnowledgeBaseLockedError: If another process is writing there.
            OSError: If the disk refuses.
        """
        self._held.save(Path(save_directory) / safe_relpath(subfolder), self._encoder_record())

    def _encoder_record(self) -> EncoderRecord:
        """Who made the vectors, with the probes of the encoder if it still is the one."""
        fingerprint = self.encoder.fingerprint
        if fingerprint not in (self.encoder_fingerprint, self._accepted_fingerprint):
            logger.warning(
                "The encoder has changed since its vectors were made (trained?). The saved knowledge base will not "
                "open with it; use `RavlmRetriever.build(retriever.knowledge_base, encoder)` before saving."
            )
        stored = self._held.stored
        if stored is not None and stored.encoder.probe:
            return stored.encoder
        name = describe_encoder(self.encoder) if stored is None else stored.encoder.name
        probe = encode_probes(self.encoder) if fingerprint == self.encoder_fingerprint else {}
        return EncoderRecord(name, self.encoder_fingerprint, probe)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        encoder: Encoder | None = None,
        subfolder: str = "knowledge_base",
        *,
        repo_type: RepoType = "model",
        knowledge_base: KnowledgeBase | None = None,
        on_corrupt: OnCorrupt = "raise",
        verify: Literal["full", "size"] = "full",
        allow_foreign_index: bool = False,
        **hub_kwargs: Any,
    ) -> Self:
        """Opens a stored knowledge base, verifying every file and that the encoder is the one that built it.

        Changes of a knowledge base in a local folder are committed there; one from the Hub changes in memory, until
        it is saved elsewhere.

        Args:
            pretrained_model_name_or_path: A folder written by `save_pretrained`, the knowledge base inside it, or the
                id of a Hub repository.
            encoder: The encoder that made the vectors; `None` loads model and processor from the same place.
            subfolder: The name of the knowledge base in the folder.
            repo_type: `"dataset"` for a knowledge base that was published on its own, at the root of a dataset
                repository.
            knowledge_base: The passages, if you have them: only vectors are downloaded and read, and joined with
                these if they are the ones the vectors were made for. The retriever then lives in memory.
            on_corrupt: What to do about damage: `"raise"` refuses it; `"rebuild"` makes a damaged index again from
                the vectors; `"skip_shard"` also leaves out passages whose files are damaged, see `num_missing`.
            verify: `"size"` compares the sizes of files instead of their checksums; see `OpenOptions`.
            allow_foreign_index: Whether to load an approximate index that somebody else wrote; otherwise it is
                built again from the vectors.
            **hub_kwargs: Passed to `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`,
                `local_files_only`, ... An index of somebody else is not even downloaded, unless it is allowed.

        Raises:
            InvalidInputError: If there is no model to ask with, and no `encoder`.
            KnowledgeBaseNotFoundError: If there is no knowledge base, or only a part of it was published.
            KnowledgeBaseCorruptError: If a file is damaged or missing.
            KnowledgeBaseMismatchError: If the encoder is not the one that made the vectors, or the passages are not
                those they were made for.
            HubUnavailableError: If the Hub cannot be reached, and the knowledge base is not in the cache.
        """
        options = OpenOptions(on_corrupt, verify, allow_foreign_index)
        if encoder is None and repo_type == "dataset":
            raise InvalidInputError(
                "A dataset repository holds no model. Pass `encoder=`, the encoder that its card names."
            )
        roles = roles_of(PARTS if knowledge_base is None else ["vectors"])
        folder, hub_kwargs = local_folder(
            pretrained_model_name_or_path,
            subfolder,
            hub_kwargs,
            repo_type,
            lambda file: (
                file.role in roles and (file.role != "index" or allow_foreign_index or is_trusted(file.sha256))
            ),
        )
        store = find_store(folder, subfolder)
        state = open_state(store, options, passages=None if knowledge_base is None else knowledge_base.table)
        if encoder is None:
            encoder = load_encoder(pretrained_model_name_or_path, store, hub_kwargs)
        check_encoder(encoder, state.encoder, store)
        retriever = cls(KnowledgeBase(), encoder, np.zeros((0, 0), np.float32), state.encoder.fingerprint)
        retriever._accepted_fingerprint = encoder.fingerprint
        is_ours = knowledge_base is None and not is_hub_snapshot(store)
        retriever._held = HeldKnowledge(state.knowledge, state if is_ours else None, options)
        return retriever

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

        What is not alive is not published, and files of earlier pushes go in the same commit (they stay in the history
        of the repository). An interrupted push changes nothing; the next one sends only what is missing. The files are
        written to the temporary folder of the system (`TMPDIR`) first, which needs room for them.

        Args:
            repo_id: A repository, such as `"owner/name"`; created if needed.
            repo_type: `"model"` puts the knowledge base beside a model, into a sub-folder; `"dataset"` publishes it on
                its own, with a card of counts, licences, sources and encoder, for `from_pretrained(...,
                repo_type="dataset")`, `KnowledgeBase.from_pretrained` and `datasets.load_dataset`.
            subfolder: The name of the knowledge base beside a model.
            include_passages: Whether to publish passages; without them whoever opens the vectors brings their own.
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
            InvalidInputError: If passages have no licence, with their number and ids; if nothing or half of what a
                model needs would be published; if `private=True` and the repository is public.
            HubUnavailableError: If the Hub cannot be reached or refuses, or repository or revision are not there for
                this token.
        """
        included = {"passages": include_passages, "vectors": include_vectors}
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
        parts = [name for name, is_included in included.items() if is_included]
        return publish(self._knowledge, self._encoder_record(), destination, parts, allow_missing_licence)
