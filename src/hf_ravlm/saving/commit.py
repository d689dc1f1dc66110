"""One commit to a repository on the Hub: compared with what is there, checked, sent whole or not at all.

Large files are uploaded first and referred to by the commit at the end: an interrupted push changes nothing, and the
next one sends only what is missing, for files are named by their content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import HubUnavailableError, InvalidInputError, RavlmError
from .cards import CARD
from .checksums import MANIFEST, joined_manifest
from .safe_paths import safe_relpath


RepoType = Literal["model", "dataset"]
_UNCHANGED = (
    "Nothing was changed there, and what you have here is as it was. Try again: what was uploaded already is not sent "
    "a second time."
)


@dataclass(frozen=True)
class Destination:
    """Where something is published, and what is said about it; see `PublishMixin.push_to_hub`.

    Args:
        repo_type (`str`): `"model"` or `"dataset"`.
        subfolder (`str`, *optional*): where the files go in the repository; its root by default.
    """

    repo_id: str
    commit_message: str
    commit_description: str | None = None
    repo_type: RepoType = "model"
    subfolder: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False

    @property
    def prefix(self) -> str:
        """What stands before the names of the files in the repository."""
        return f"{safe_relpath(self.subfolder)}/" if self.subfolder else ""


def commit_files(
    files: Mapping[str, Path],
    destination: Destination,
    outdated: Callable[[Collection[str], Collection[str]], Collection[str]] = lambda present, new: (),
    card: Callable[[str | None], str | None] = lambda earlier: None,
) -> Any:
    """Publishes files in one commit.

    Args:
        files (`dict`): by name, below the destination's subfolder.
        destination (`Destination`): where.
        outdated (callable): `(names in the repository, names that come) -> names to delete` in the same commit.
        card (callable): given the text of the card that is there, or `None`, the one to upload; `None` uploads none.

    Returns:
        The `huggingface_hub.CommitInfo`.

    Raises:
        InvalidInputError: `private=True`, and the repository is there and public.
        HubUnavailableError: The Hub cannot be reached, refuses, or broke off; nothing was changed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    with hub_errors(f"publishing to the {destination.repo_type} repository {destination.repo_id}", _UNCHANGED):
        api = HfApi(token=destination.token)
        kind = {"repo_type": destination.repo_type}
        repo_id = api.create_repo(destination.repo_id, private=destination.private, exist_ok=True, **kind).repo_id
        branch = None if destination.create_pr else destination.revision
        if branch is not None and not branch.startswith("refs/"):
            api.create_branch(repo_id, branch=branch, exist_ok=True, **kind)
        before = api.repo_info(repo_id, revision=branch, **kind)
        if destination.private and not before.private:
            raise InvalidInputError(
                f"{repo_id}: private=True, but this repository exists and is public. Nothing was uploaded. Make it "
                "private in its settings, or choose another name."
            )
        present = api.list_repo_files(repo_id, revision=before.sha, **kind)
        contents: dict[str, Any] = {f"{destination.prefix}{name}": os.fspath(path) for name, path in files.items()}
        earlier = None
        if CARD in present:
            earlier = Path(api.hf_hub_download(repo_id, CARD, revision=before.sha, **kind)).read_text(encoding="utf-8")
        deleted, manifest = [*outdated(present, contents)], None
        if MANIFEST in present:
            manifest = Path(api.hf_hub_download(repo_id, MANIFEST, revision=before.sha, **kind)).read_bytes()
        text = card(earlier)
        if text is not None:
            contents[CARD] = text.encode()
        if merged := joined_manifest(manifest, contents, deleted):
            contents[MANIFEST] = merged
        # Not `upload_folder`, which cuts a large folder into several commits.
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path_in_repo=name) for name in deleted),
                *(
                    CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
                    for name, content in contents.items()
                ),
            ],
            commit_message=destination.commit_message,
            commit_description=destination.commit_description,
            revision=branch,
            create_pr=destination.create_pr,
            parent_commit=before.sha,  # what is deleted was decided by it: somebody's push in between must not pass
            **kind,
        )


@contextmanager
def hub_errors(
    doing: str, hint: str = "Check the network and try again.", not_found: type[RavlmError] = HubUnavailableError
) -> Iterator[None]:
    """Turns what goes wrong between here and the Hub into errors that say what was tried and what to do.

    Args:
        doing (`str`): what is tried, such as `"reading the dataset repository me/birds"`.
        hint (`str`): what to do when the Hub cannot be reached.
        not_found (`type`): the error for a repository or revision that is not there, or not ours to see.

    Raises:
        HubUnavailableError: The Hub cannot be reached or refuses.
    """
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:
        found = hub_failure(error)
        if found is None:
            raise
        if isinstance(found, errors.GatedRepoError):
            reason = "its owner asks for consent first. Accept the terms on its page, and log in (`hf auth login`)."
        elif isinstance(found, errors.RepositoryNotFoundError):
            reason = (
                "there is no such repository, or it is private and not yours to see. Check the name and `repo_type`, "
                "and log in (`hf auth login`) or pass `token`."
            )
        elif isinstance(found, errors.RevisionNotFoundError):
            reason = "it has no such revision. Check `revision`."
        elif isinstance(found, errors.LocalEntryNotFoundError):
            why = "the Hub did not deliver"
            if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE"):
                why, hint = "the Hub is not asked (HF_HUB_OFFLINE is set)", "Unset it, or give a folder."
            raise HubUnavailableError(f"{doing}: {why}, and the cache does not hold it. {hint}") from error
        else:
            lines = str(found).strip().splitlines() or [type(found).__name__]
            raise HubUnavailableError(f"{doing}: the Hub did not deliver ({lines[0][:300]}). {hint}") from error
        raise not_found(f"{doing}: {reason}") from error


def hub_failure(error: BaseException) -> BaseException | None:
    """What went wrong between here and the Hub, if that is what an error is about; `None` for any other error.

    What fails in a thread, or while something is fetched anew, comes wrapped in a RuntimeError or ValueError.

    >>> hub_failure(ConnectionError("refused"))
    ConnectionError('refused')
    >>> hub_failure(InvalidInputError("k < 1")) is None
    True
    """
    from huggingface_hub import errors

    failures = (errors.LocalEntryNotFoundError, errors.HTTPError, ConnectionError, TimeoutError)
    found = error if isinstance(error, failures) else error.__cause__
    return found if isinstance(found, failures) and not isinstance(error, RavlmError) else None
