"""Where a knowledge base is read from: a local folder, or one commit of a repository on the Hub; and its encoder."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError, KnowledgeBaseNotFoundError
from ...saving.commit import RepoType, hub_errors
from ...saving.safe_paths import at_home, safe_relpath
from ..encoding.encoders import RavlmEncoder
from ..store.manifest import StoredFile
from ..store.parts import PARTS, roles_of
from ..store.saving import find_store
from ..store.trust import is_trusted
from ..store.versions import current_version_name, read_version


_COMMIT = re.compile(r"[0-9a-f]{40}")


def store_folder(
    source: Any,
    subfolder: str,
    hub_kwargs: dict[str, Any],
    repo_type: RepoType,
    parts: Sequence[str] = PARTS,
    allow_foreign_index: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """The local folder that holds `CURRENT`, and `hub_kwargs` with the revision that everything else must come from.

    Args:
        source: A folder, or the id of a repository.
        subfolder: Where the knowledge base lies in a folder or model repository; it is the root of a dataset one.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, ...
        repo_type: The type of the repository.
        parts: What to download, some of `PARTS`.
        allow_foreign_index: Whether to download an index that was not written on this machine.

    Raises:
        KnowledgeBaseNotFoundError: If the source is neither a folder nor a repository with a knowledge base.
        HubUnavailableError: If the Hub cannot be asked, and the cache does not hold it.
    """
    source = at_home(source)
    if os.path.isdir(source):
        return find_store(source, subfolder), hub_kwargs
    from huggingface_hub.errors import HFValidationError

    check_repo_type(repo_type)
    prefix = "" if repo_type == "dataset" else f"{safe_relpath(subfolder)}/"
    roles = roles_of(parts)

    def wanted(file: StoredFile) -> bool:
        return file.role in roles and (file.role != "index" or allow_foreign_index or is_trusted(file.sha256))

    if os.path.isfile(source):
        raise KnowledgeBaseNotFoundError(f"{source}: this is a file. Expected the folder of a knowledge base.")
    if "/" not in os.fspath(source):
        raise KnowledgeBaseNotFoundError(
            f"{source}: there is no such folder here, and it is no Hub id, which has the form owner/name. Check the "
            "path."
        )
    where = f"{source} is no folder here; reading the {repo_type} repository {source}"
    try:
        with hub_errors(where, not_found=KnowledgeBaseNotFoundError):
            return _download(os.fspath(source), prefix, hub_kwargs, repo_type, wanted)
    except HFValidationError as error:
        raise KnowledgeBaseNotFoundError(
            f"{source}: there is no such folder, and it is not the id of a Hub repository either. Check the path."
        ) from error


def hub_arguments() -> set[str]:
    """The names of the arguments of `from_pretrained` that say how the Hub is reached."""
    from huggingface_hub import snapshot_download

    return {*inspect.signature(snapshot_download).parameters} - {"repo_id", "repo_type", "allow_patterns"}


def _download(
    repo_id: str, prefix: str, hub_kwargs: dict[str, Any], repo_type: RepoType, wanted: Callable[[StoredFile], bool]
) -> tuple[Path, dict[str, Any]]:
    """Downloads the pointer, then the manifest it names, then the files listed there, all of one commit."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        pointer = Path(hf_hub_download(repo_id, f"{prefix}CURRENT", repo_type=repo_type, **hub_kwargs))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError as error:
        raise KnowledgeBaseNotFoundError(
            f"{repo_id}: this {repo_type} repository holds no knowledge base (no {prefix}CURRENT). Expected one that "
            "`RavlmRetriever.push_to_hub` wrote; " + _OTHER_TYPE[repo_type]
        ) from error
    store = pointer.parent
    folder = store.parents[prefix.count("/") - 1] if prefix else store
    # Everything must come from one commit, though the branch may move between two downloads.
    commit = folder.name if _COMMIT.fullmatch(folder.name) else hub_kwargs.get("revision")
    hub_kwargs = {**hub_kwargs, "revision": commit}
    manifest = f"{prefix}manifests/{current_version_name(store)}.json"
    hf_hub_download(repo_id, manifest, repo_type=repo_type, **hub_kwargs)
    names = [f"{prefix}{file.fields['name']}" for file in read_version(store).files if wanted(file)]
    if names:
        snapshot_download(repo_id, allow_patterns=names, repo_type=repo_type, **hub_kwargs)
    return store, hub_kwargs


_OTHER_TYPE = {
    "model": 'one published on its own is opened with `repo_type="dataset"`.',
    "dataset": 'one beside a model is opened with `repo_type="model"`.',
}


def check_repo_type(repo_type: str) -> None:
    """Raises `InvalidInputError` for a type of repository that holds no knowledge bases."""
    if repo_type not in _OTHER_TYPE:
        raise InvalidInputError(f'repo_type={repo_type!r} is not known. Choose "model" or "dataset".')


def is_hub_snapshot(folder: Path) -> bool:
    """Whether a folder belongs to the cache of the Hub, which other programs manage."""
    absolute = folder.absolute()
    return any(_COMMIT.fullmatch(one.name) and one.parent.name == "snapshots" for one in (absolute, *absolute.parents))


def encoder_beside(source: Any, store: Path, hub_kwargs: dict[str, Any]) -> RavlmEncoder:
    """Loads the model and processor beside a knowledge base; `InvalidInputError` if there is no model."""
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
