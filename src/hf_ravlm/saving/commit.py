"""How our objects are published: saved, compared with what is there, and sent in one commit.

Large files are uploaded first and referred to by the commit at the end: an interrupted push changes nothing, and the
next one sends only what is missing, for files are named by their content.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..errors import HubUnavailableError, InvalidInputError, undelivered
from .cards import CARD, card_of_folder, first_card


class Push(NamedTuple):
    """Where something is published and what is said about it; see `PublishMixin.push_to_hub`."""

    repo_id: str
    commit_message: str
    commit_description: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    tags: tuple[str, ...] = ()


def push(thing: Any, wish: Push, **saving: Any) -> Any:
    """Saves to a temporary folder and commits it; returns the `huggingface_hub.CommitInfo`.

    Raises:
        InvalidInputError: `private=True`, and the repository is there and public.
        HubUnavailableError: The Hub cannot be reached, or broke off.
    """
    with tempfile.TemporaryDirectory() as folder:
        thing.save_pretrained(folder, **saving)
        with _hub_failures(wish.repo_id):
            return _commit(thing, Path(folder), wish)


def outdated_weights(present: Iterable[str], new: Collection[str]) -> list[str]:
    """Which weights of an earlier save would be read instead of, or beside, the new ones.

    Weights of another name (a variant, or the base model beside an adapter) are not touched.

    >>> outdated_weights(["model.safetensors", "model.fp16.safetensors"], ["model-00001-of-00002.safetensors"])
    ['model.safetensors']
    """
    names = {_without_shard(name) for name in new if name.endswith(".safetensors")}
    old = [name for name in present if name not in new]
    outdated = [name for name in old if name.endswith(".safetensors") and _without_shard(name) in names]
    if SAFE_WEIGHTS_NAME in new and SAFE_WEIGHTS_INDEX_NAME in old:  # whole now, no longer in shards
        outdated.append(SAFE_WEIGHTS_INDEX_NAME)
    return outdated


def _without_shard(name: str) -> str:
    return re.sub(r"-\d{5}-of-\d{5}", "", name)


def _commit(thing: Any, folder: Path, wish: Push) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=wish.token)
    repo_id = api.create_repo(wish.repo_id, private=wish.private, exist_ok=True).repo_id
    branch = None if wish.create_pr else wish.revision
    if branch is not None and not branch.startswith("refs/"):
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    before = api.repo_info(repo_id, revision=branch)
    if wish.private and not before.private:
        raise InvalidInputError(
            f"{repo_id}: private=True, but this repository exists and is public. Nothing was uploaded. Make it "
            "private in its settings, or choose another name."
        )
    present = api.list_repo_files(repo_id, revision=before.sha)
    contents: dict[str, Any] = {
        path.relative_to(folder).as_posix(): os.fspath(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    card = _card(thing, api, repo_id, before.sha, CARD in present, wish.tags)
    if card is not None:
        contents[CARD] = card.encode()
    operations = [
        *(CommitOperationDelete(path_in_repo=name) for name in outdated_weights(present, contents)),
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()),
    ]
    return api.create_commit(
        repo_id,
        operations,
        commit_message=wish.commit_message,
        commit_description=wish.commit_description,
        revision=branch,
        create_pr=wish.create_pr,
        parent_commit=before.sha,  # what is deleted was decided by it: somebody's push in between must not pass
    )


def _card(thing: Any, api: Any, repo_id: str, commit: str, is_there: bool, tags: tuple[str, ...]) -> str | None:
    """The card to upload: the one that is there keeps its words; else the folder's own, else a first one."""
    if is_there and not tags:
        return None
    if is_there:
        path = api.hf_hub_download(repo_id, CARD, revision=commit)
        text = Path(path).read_text(encoding="utf-8")
    elif isinstance(thing, nn.Module):
        text = card_of_folder(thing.name_or_path) or first_card(thing, repo_id)
    else:
        return None  # a config or a processor is not yet a model
    if not tags:
        return text
    from huggingface_hub import ModelCard

    card = ModelCard(text, ignore_metadata_errors=True)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    return str(card)


@contextmanager
def _hub_failures(repo_id: str) -> Iterator[None]:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except Exception as error:
        found = undelivered(error)
        if found is None or isinstance(found, (RepositoryNotFoundError, RevisionNotFoundError)):
            raise
        lines = str(found).strip().splitlines() or [type(found).__name__]
        raise HubUnavailableError(
            f"publishing to {repo_id}: the Hub did not take it ({lines[0][:300]}). Nothing was changed there, and "
            "what you have here is as it was; `save_pretrained` keeps it in a folder. Try again: what was uploaded "
            "already is not sent a second time."
        ) from error
