"""Knows how a knowledge base is published: checked for licences, in one commit, and again after an interruption.

Files are uploaded first and referred to by a commit at the end, so that nobody sees half of it; those that arrived
before an interruption are not sent again, for they are named by their content.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InvalidInputError
from ...saving.safe_paths import safe_relpath
from ..encoding.encoder_probe import EncoderRecord
from ..store.manifest import Generation
from ..store.parts import PARTS, roles_of
from ..store.saving import write_published
from ..store.state import LivingKnowledge
from .card import CARD, dataset_card
from .download import RepoType, check_repo_type, hub_errors


_MAX_SHOWN = 10
_HINT = (
    "Nothing was changed there, and your knowledge base is as it was. Try again: what was uploaded already is not "
    "sent a second time."
)


class Destination(NamedTuple):
    """Where and how a knowledge base is published; see `RavlmRetriever.push_to_hub`."""

    repo_id: str
    repo_type: RepoType = "model"
    subfolder: str = "knowledge_base"
    commit_message: str = "Upload knowledge base"
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False

    @property
    def prefix(self) -> str:
        """What stands before the names of the files in the repository."""
        return "" if self.repo_type == "dataset" else f"{safe_relpath(self.subfolder)}/"


def publish(
    knowledge: LivingKnowledge,
    encoder: EncoderRecord,
    destination: Destination,
    parts: Sequence[str] = PARTS,
    allow_missing_licence: bool = False,
) -> Any:
    """Publishes a state; see `RavlmRetriever.push_to_hub`, also for the errors."""
    check_repo_type(destination.repo_type)
    roles_of(parts)
    if destination.repo_type == "model" and set(parts) != set(PARTS):
        raise InvalidInputError(
            f"parts={tuple(parts)}: beside a model the whole knowledge base is published, so that the model can use "
            'it. Publish a part on its own with `repo_type="dataset"`.'
        )
    if not allow_missing_licence:
        check_licences(knowledge.knowledge_base.table)
    with tempfile.TemporaryDirectory() as folder:
        generation = write_published(folder, knowledge, encoder, parts)
        with hub_errors(f"publishing to the {destination.repo_type} repository {destination.repo_id}", _HINT):
            return _commit(generation, knowledge.knowledge_base.table, destination)


def check_licences(table: pa.Table) -> None:
    """Refuses passages without a licence, for whoever finds them cannot know what they may do with them.

    Raises:
        InvalidInputError: With how many there are, and the first ids.
    """
    missing = table["id"].filter(without_licence(table)).to_pylist()
    if missing:
        shown = ", ".join(map(repr, missing[:_MAX_SHOWN])) + (", ..." if len(missing) > _MAX_SHOWN else "")
        raise InvalidInputError(
            f"{len(missing)} of {len(table)} passages say nothing about their licence: {shown}. Publishing them, or "
            "vectors made of them, without a licence leaves readers without rights. Give each a `licence`, or pass "
            "`allow_missing_licence=True` if you may publish them all the same."
        )


def without_licence(table: pa.Table) -> pa.ChunkedArray:
    """Which passages say nothing about their licence."""
    return pc.equal(pc.utf8_trim_whitespace(pc.fill_null(table["licence"], "")), "")


def _commit(generation: Generation, table: pa.Table, destination: Destination) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo_id, repo_type, prefix = destination.repo_id, destination.repo_type, destination.prefix
    api = HfApi(token=destination.token)
    api.create_repo(repo_id, repo_type=repo_type, private=destination.private, exist_ok=True)
    branch = None if destination.create_pr else destination.revision
    if branch is not None and not branch.startswith("refs/"):
        api.create_branch(repo_id, branch=branch, repo_type=repo_type, exist_ok=True)
    before = api.repo_info(repo_id, repo_type=repo_type, revision=branch)
    if destination.private and not before.private:
        raise InvalidInputError(
            f"{repo_id}: private=True, but this repository exists and is public. Nothing was uploaded. Make it "
            "private in its settings, or choose another name."
        )
    contents: dict[str, Any] = {f"{prefix}{name}": generation.folder / name for name in generation.file_names()}
    present = api.list_repo_files(repo_id, repo_type=repo_type, revision=before.sha)
    if repo_type == "dataset":
        earlier = _read_card(api, destination, before.sha) if CARD in present else None
        contents[CARD] = dataset_card(repo_id, generation, table, earlier).encode()
    kept_folders = tuple(f"{prefix}{name}/" for name in ("manifests", "objects"))
    outdated = [name for name in present if name.startswith(kept_folders) and name not in contents]
    operations = [
        *(CommitOperationDelete(path_in_repo=name) for name in outdated),
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()),
    ]
    # Not `upload_folder`, which cuts a large folder into several commits.
    return api.create_commit(
        repo_id,
        operations,
        commit_message=destination.commit_message,
        repo_type=repo_type,
        revision=branch,
        create_pr=destination.create_pr,
        # What is left out or deleted was decided by this commit: somebody else's push in between must not pass.
        parent_commit=before.sha,
    )


def _read_card(api: Any, destination: Destination, commit: str) -> str:
    path = api.hf_hub_download(destination.repo_id, CARD, repo_type=destination.repo_type, revision=commit)
    return Path(path).read_text(encoding="utf-8")
