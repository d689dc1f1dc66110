"""The versions of a stored knowledge base: a reader sees one of them whole, or an error, never a mixture.

    CURRENT                       "gen-00000002 <sha256 of the manifest>", the one file that changes
    LOCK                          held by the single writer
    manifests/gen-00000002.json   which files belong together: sizes, row counts, checksums
    objects/ab/ab12...parquet     content named by its SHA-256, shared by versions, never changed
    staging/...                   half-made work of long jobs, invisible to readers

A commit writes new objects, then a manifest, then replaces CURRENT; everything is flushed before it is referred to.
Whatever stops it earlier leaves the previous version. No time, path, user or host is written.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

from ...errors import (
    InvalidInputError,
    KnowledgeBaseCorruptError,
    KnowledgeBaseIncompleteError,
    KnowledgeBaseLockedError,
    KnowledgeBaseNotFoundError,
    storage_errors,
)
from ...saving.durable import (
    TEMPORARY_SUFFIX,
    create_file,
    exclusive_lock,
    make_folder,
    publish_file,
    replace_file,
    sha256_of,
    sync_folder,
)
from ...saving.safe_paths import absolute_folder
from .leases import Lease, remove_unless_leased, take_lease
from .manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    OBJECT_NAME,
    StoredFile,
    Version,
    corrupt,
    manifest_bytes,
    parse_manifest,
    version_of,
)


logger = logging.getLogger(__name__)

_CURRENT = re.compile(rb"(gen-[0-9]{8,12}) ([0-9a-f]{64})\n")
_MAX_CURRENT_BYTES = 256
_NUM_OPEN_ATTEMPTS = 5
_LOCK_TIMEOUT_SECONDS = 60.0
_STRANGE = (errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.ENOTDIR)  # circles of links, pipes, files as folders
_LEASE_POLL_SECONDS = 0.05

_Loaded = TypeVar("_Loaded")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class NewFile(NamedTuple):
    """A file to be stored, which `write` fills at a path.

    `rows` counts what it holds or covers; `fields` are further JSON values of the manifest; `made_from` is the role of
    files of the same version, listed before it, that it was made from (`None` for what was given).
    """

    role: str
    suffix: str
    rows: int
    write: Callable[[Path], None]
    fields: Mapping[str, Any] = {}
    made_from: str | None = None


AnyFile = NewFile | StoredFile


class Commit(NamedTuple):
    """What the next version consists of: JSON fields of its manifest, and files that are new or kept."""

    fields: Mapping[str, Any]
    files: Sequence[AnyFile]


def _naming_the_folder(function: _Function) -> _Function:
    """A function of a folder, which is its first argument, that says in words what the disk refuses."""

    @wraps(function)
    def named(folder: str | os.PathLike[str], *arguments: Any, **options: Any) -> Any:
        with storage_errors(folder):
            return function(folder, *arguments, **options)

    return cast(_Function, named)


@_naming_the_folder
def write_version(
    folder: str | os.PathLike[str],
    fields: Mapping[str, Any],
    files: Sequence[AnyFile],
    lock_timeout_seconds: float = _LOCK_TIMEOUT_SECONDS,
    overwrite: bool = True,
) -> Version:
    """Stores files as the next version of a knowledge base and makes it the current one, whatever was there.

    The previous version is kept, and older ones that somebody reads; others and the remains of interrupted writers
    are removed. When the function returns, the new version survives a power cut.

    Args:
        folder: The folder of the knowledge base; created if needed.
        fields: JSON values of the manifest, beside its list of files.
        files: What to store, or to keep of the previous version.
        lock_timeout_seconds: How long to wait for another writer.
        overwrite: Whether a knowledge base that is there may be replaced.

    Raises:
        InvalidInputError: If there is one, and it may not.
        KnowledgeBaseLockedError: If another process goes on writing.
        KnowledgeBaseCorruptError: If the folder holds a knowledge base whose state cannot be read.
        StorageError: If the disk refuses; the previous version is then still the current one.
    """
    root = absolute_folder(folder)
    make_folder(root)
    with exclusive_lock(root / "LOCK", lock_timeout_seconds):
        # A damaged pointer stops here: its objects may still be worth a rescue, and a commit would remove them.
        # A first manifest alone may be of a save that was killed just before it wrote its pointer.
        is_new = not os.path.lexists(root / "CURRENT") and version_names(root) in ([], ["gen-00000001"])
        if not is_new and not overwrite:
            raise InvalidInputError(
                f"{root}: another knowledge base has been saved here meanwhile. Save into another folder, or "
                "replace it with overwrite=True."
            )
        parent = None if is_new else _read_pointer(root)[0]
        return _commit(root, parent, Commit(fields, files))


@_naming_the_folder
def update_version(folder: str | os.PathLike[str], plan: Callable[[Version], Commit | None]) -> Version:
    """Stores a version that is made of the current one; no other writer can come between the two.

    `plan` gets the current version, whose files have not been verified, and says what the next one consists of; `None`
    leaves everything as it is. Returns the version that is the current one afterwards.

    Raises:
        KnowledgeBaseNotFoundError: If the folder holds no knowledge base.
        KnowledgeBaseLockedError, KnowledgeBaseCorruptError, OSError: As `write_version`.
    """
    root = absolute_folder(folder)
    _read_pointer(root)  # before a lock file is made where no knowledge base is
    with exclusive_lock(root / "LOCK", _LOCK_TIMEOUT_SECONDS):
        current = read_version(root)
        commit = plan(current)
        return current if commit is None else _commit(root, current.name, commit)


def _commit(root: Path, parent: str | None, commit: Commit) -> Version:
    for name in ("objects", "manifests"):
        make_folder(root / name)
    entries: list[dict[str, Any]] = []
    for file in commit.files:
        entries.append(dict(file.fields) if isinstance(file, StoredFile) else _store_file(root, file, entries))
    # A writer that was stopped may have left folders whose names were never flushed.
    for made_folder in (root / "objects", root):
        sync_folder(made_folder)
    manifests = _manifests(root)
    number = 1 + (_number(manifests[-1]) if manifests else 0)
    name = f"gen-{number:08d}"
    data = manifest_bytes(commit.fields, number, parent, entries)
    path = root / "manifests" / f"{name}.json"
    create_file(path, data)
    sync_folder(path.parent)
    version = version_of(path, data, take_lease(path))
    _point_to(version)
    try:
        _remove_old_files(root, {name, parent})
    except (OSError, KnowledgeBaseCorruptError) as error:  # The commit is done; what is left over only takes room.
        logger.warning("%s: old files could not be removed: %s", root, error)
    return version


def _point_to(version: Version) -> None:
    replace_file(version.folder / "CURRENT", f"{version.name} {version.sha256}\n".encode())


def _store_file(root: Path, file: NewFile, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    objects = root / "objects"
    path, sha256, num_bytes = publish_file(
        file.write, objects, lambda sha256: objects / sha256[:2] / f"{sha256}.{file.suffix}"
    )
    entry = {"role": file.role, "name": path.relative_to(root).as_posix(), "sha256": sha256, "bytes": num_bytes}
    if file.made_from is not None:
        sources = [other["sha256"] for other in earlier if other["role"] == file.made_from]
        entry |= {"made_from": file.made_from, "first_row": 0, "built_from": sources}
    return {**file.fields, **entry, "rows": file.rows}


def _number(manifest: Path) -> int:
    return int(manifest.stem.removeprefix("gen-"))


def _manifests(root: Path) -> list[Path]:
    """The manifests of all versions, oldest first."""
    manifests = (path for path in (root / "manifests").iterdir() if MANIFEST_NAME.fullmatch(path.name))
    return sorted(manifests, key=_number)


StoreState = Literal["none", "whole", "unfinished", "broken"]


@_naming_the_folder
def store_state(folder: str | os.PathLike[str]) -> StoreState:
    """What lies in the folder of a knowledge base, as far as names tell; nothing is verified.

    Returns:
        `"whole"`: there is a `CURRENT`. `"unfinished"`: a build was stopped before its first version. `"broken"`:
        there are versions without `CURRENT`, or it is a link to nowhere. `"none"`: nothing of a knowledge base.
    """
    root = Path(folder)
    if os.path.lexists(root / "CURRENT"):
        return "whole" if (root / "CURRENT").is_file() else "broken"
    if version_names(root):
        return "broken"
    return "unfinished" if any((root / "staging").glob("*/*/plan.json")) else "none"


@_naming_the_folder
def version_names(folder: str | os.PathLike[str]) -> list[str]:
    """The versions that lie in a folder, oldest first."""
    return [path.stem for path in _manifests(Path(folder))] if (Path(folder) / "manifests").is_dir() else []


@_naming_the_folder
def point_to_version(folder: str | os.PathLike[str], name: str) -> Version:
    """Makes a version the current one that lies in a folder already; nothing is removed.

    Errors are those of `read_version`, and `KnowledgeBaseLockedError`.
    """
    root = absolute_folder(folder)
    with exclusive_lock(root / "LOCK", _LOCK_TIMEOUT_SECONDS):
        version = read_version(root, name)
        _point_to(version)
    return version


@_naming_the_folder
def remove_old_versions(folder: str | os.PathLike[str], timeout_seconds: float, follow: Callable[[], object]) -> None:
    """Removes every version but the current one, with every file that only they hold.

    Waits `timeout_seconds` for readers of the old versions, and for another writer. Before each attempt `follow` lets
    the caller go on to the current version, which another writer may have made: else it would wait for itself.

    Raises:
        KnowledgeBaseLockedError: If somebody goes on reading; their versions and their files are then still there.
    """
    root = absolute_folder(folder)
    deadline = time.monotonic() + timeout_seconds
    while True:
        follow()
        with exclusive_lock(root / "LOCK", timeout_seconds):
            leased = _remove_old_files(root, {_read_pointer(root)[0]})
        if not leased:
            return
        if time.monotonic() >= deadline:
            raise KnowledgeBaseLockedError(
                f"{root}: {', '.join(leased)} could not be removed, for they are still being read (waited "
                f"{timeout_seconds:g} s). What was removed from the knowledge base is still in them. Close or "
                "`refresh()` the other retrievers (those of worker processes as well), then call "
                "`compact(purge=True)` again."
            )
        time.sleep(_LEASE_POLL_SECONDS)


def _remove_old_files(root: Path, kept: set[str | None]) -> list[str]:
    """Removes what no kept version refers to; returns the names of versions that somebody reads."""
    manifests = _manifests(root)
    # All that stays is read before anything goes.
    referenced = _object_names(path for path in manifests if path.stem in kept)
    leased = [path for path in manifests if path.stem not in kept and not remove_unless_leased(path)]
    referenced |= _object_names(leased)
    for path in [*(root / "objects").rglob("*"), *(root / "manifests").iterdir(), *root.iterdir()]:
        name = path.relative_to(root).as_posix()
        if path.suffix == TEMPORARY_SUFFIX or (OBJECT_NAME.fullmatch(name) and name not in referenced):
            path.unlink()
    return sorted(path.stem for path in leased)


def _object_names(manifests: Iterable[Path]) -> set[str]:
    read = (parse_manifest(path, _read_small(path, MAX_MANIFEST_BYTES)) for path in manifests)
    return {entry["name"] for manifest in read for entry in manifest["files"]}


@_naming_the_folder
def current_version_name(folder: str | os.PathLike[str]) -> str:
    """The version that CURRENT names, such as `"gen-00000002"`; errors as `read_version`."""
    return _read_pointer(Path(folder))[0]


@_naming_the_folder
def read_version(folder: str | os.PathLike[str], name: str | None = None) -> Version:
    """Reads a manifest and keeps its files from being removed; the files are not verified, see `verify_file`.

    Nothing is written, so a read-only folder or a snapshot of the Hugging Face cache will do.

    Args:
        folder: The folder that holds `CURRENT`.
        name: A version that lies there, read without a checksum to meet; `None` for the current one.

    Raises:
        KnowledgeBaseNotFoundError: If the folder holds no knowledge base.
        KnowledgeBaseCorruptError: If the manifest is missing, damaged, or of another format.
    """
    root = absolute_folder(folder)
    current, sha256 = _read_pointer(root) if name is None else (name, None)
    path = root / "manifests" / f"{current}.json"
    try:
        lease = take_lease(path)
    except FileNotFoundError as error:
        raise corrupt(path, "it is missing") from error
    except OSError:  # a folder in its place, or no right to read: `_read_small` says which
        lease = Lease()
    data = _read_small(path, MAX_MANIFEST_BYTES)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise corrupt(path, "its checksum differs from the one in CURRENT")
    return version_of(path, data, lease)


@_naming_the_folder
def load_version(folder: str | os.PathLike[str], load: Callable[[Version], _Loaded]) -> _Loaded:
    """Reads the current version, again if a writer has replaced and removed it in the meantime.

    `load` verifies and reads the files of a version. Errors are those of `read_version`, and what `load` raises.
    """
    for _ in range(_NUM_OPEN_ATTEMPTS - 1):
        before = _read_pointer(Path(folder))
        try:
            return load(read_version(folder))
        except (KnowledgeBaseCorruptError, FileNotFoundError):
            if _read_pointer(Path(folder)) == before:
                raise
    return load(read_version(folder))


def _read_pointer(root: Path) -> tuple[str, str]:
    path = root / "CURRENT"
    if not os.path.lexists(path):
        if names := version_names(root):
            raise KnowledgeBaseIncompleteError(
                f"{path}: the stored knowledge base is damaged: this file is missing, though versions lie here "
                f"({', '.join(names[-3:])}). `hf-ravlm index repair {root}` makes the newest whole one current."
            )
        raise KnowledgeBaseNotFoundError(
            f"{root}: there is no knowledge base here (no file CURRENT). Expected a folder written by "
            "`RavlmRetriever.save_pretrained`."
        )
    match = _CURRENT.fullmatch(_read_small(path, _MAX_CURRENT_BYTES))
    if match is None:
        raise corrupt(path, 'it does not have the form "gen-<number> <sha256>"')
    return match.group(1).decode(), match.group(2).decode()


def _read_small(path: Path, max_bytes: int) -> bytes:
    with _regular_file(path) as num_bytes:
        if num_bytes > max_bytes:
            raise corrupt(path, f"it has {num_bytes:,} bytes, more than {max_bytes:,}")
        return path.read_bytes()


@contextmanager
def _regular_file(path: Path) -> Iterator[int]:
    """Gives the size of a file; it may vanish while it is read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise corrupt(path, "it is not a regular file")
        yield status.st_size
    except FileNotFoundError as error:
        raise corrupt(path, "it is missing") from error
    except KnowledgeBaseCorruptError:
        raise
    except OSError as error:
        if error.errno not in _STRANGE:
            raise
        raise corrupt(path, f"it cannot be read ({error.strerror})") from error


def verify_file(file: StoredFile, full: bool = True, on_read: Callable[[int], Any] | None = None) -> None:
    """Raises `KnowledgeBaseCorruptError` if a file is missing or its size or (if `full`) SHA-256 is not as listed.

    `on_read` is told the bytes of each block that was read.
    """
    with _regular_file(file.path) as num_bytes:
        if num_bytes != file.num_bytes:
            raise corrupt(file.path, f"it has {num_bytes:,} bytes instead of {file.num_bytes:,}")
        if full and sha256_of(file.path, on_read) != file.sha256:
            raise corrupt(file.path, "its content has changed: the checksum differs")
