"""Knows how a knowledge base lies on disk, so that a reader sees one whole generation or an error, never a mixture.

    CURRENT                       "gen-00000002 <sha256 of the manifest>", the one file that changes
    LOCK                          held by the single writer
    manifests/gen-00000002.json   which files belong together: sizes, row counts, checksums
    objects/ab/ab12...parquet     content named by its SHA-256, shared by generations, never changed

A commit writes objects, then a manifest, then replaces CURRENT; everything is flushed before it is referred to.
Whatever stops it earlier leaves the previous generation. No time, path, user or host is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import KnowledgeBaseCorruptError, KnowledgeBaseNotFoundError
from .durable_files import (
    TEMPORARY_SUFFIX,
    create_file,
    exclusive_lock,
    make_folder,
    publish_file,
    replace_file,
    sha256_of,
    sync_folder,
)


logger = logging.getLogger(__name__)

FORMAT = 1

_CURRENT = re.compile(rb"(gen-[0-9]{8,12}) ([0-9a-f]{64})\n")
_MANIFEST = re.compile(r"gen-([0-9]{8,12})\.json")
_OBJECT = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{62})\.(parquet|safetensors)")
_MAX_CURRENT_BYTES = 256
_MAX_MANIFEST_BYTES = 16_000_000
_NUM_OPEN_ATTEMPTS = 5

_Loaded = TypeVar("_Loaded")


class NewFile(NamedTuple):
    """A file to be stored: what it is for, its suffix, how many rows it holds, and who fills it."""

    role: str
    suffix: str
    rows: int
    write: Callable[[Path], None]


class StoredFile(NamedTuple):
    """A verified file of a generation."""

    role: str
    path: Path
    rows: int


@dataclass(frozen=True)
class Generation:
    """One complete state of a stored knowledge base.

    Attributes:
        folder: The folder that holds `CURRENT`.
        name: Such as `"gen-00000002"`.
        manifest: The fields that were given to `write_generation`, and `format`, `generation`, `parent`, `files`.
        files: The files asked for, in the order in which they were written.
    """

    folder: Path
    name: str
    manifest: dict[str, Any]
    files: tuple[StoredFile, ...]

    def file_names(self) -> list[str]:
        """The names of all files of this generation, relative to its folder: what is to be copied or published."""
        return ["CURRENT", f"manifests/{self.name}.json", *(entry["name"] for entry in self.manifest["files"])]


def write_generation(
    folder: str | os.PathLike[str],
    manifest_fields: Mapping[str, Any],
    files: Sequence[NewFile],
    lock_timeout_seconds: float = 60.0,
) -> str:
    """Stores files as the next generation of a knowledge base and makes it the current one.

    The previous generation is kept, older ones and the remains of interrupted writers are removed.

    Args:
        folder: The folder of the knowledge base; created if needed.
        manifest_fields: JSON values to keep beside the list of files.
        files: What to store.
        lock_timeout_seconds: How long to wait for another writer.

    Returns:
        The name of the generation. When the function returns, the generation survives a power cut.

    Raises:
        KnowledgeBaseLockedError: If another process goes on writing.
        KnowledgeBaseCorruptError: If the folder holds a knowledge base whose state cannot be read.
        OSError: If the disk refuses; the previous generation is then still the current one.
    """
    root = Path(folder)
    make_folder(root)
    with exclusive_lock(root / "LOCK", lock_timeout_seconds):
        # A damaged pointer stops here: its objects may still be worth a rescue, and a commit would remove them.
        parent = _read_pointer(root)[0] if (root / "CURRENT").exists() else None
        for name in ("objects", "manifests"):
            make_folder(root / name)
        entries = [_store_file(root, file) for file in files]
        # A writer that was stopped may have left folders whose names were never flushed.
        for made_folder in (root / "objects", root):
            sync_folder(made_folder)
        number = 1 + max(_generation_numbers(root), default=0)
        name = f"gen-{number:08d}"
        manifest = {**manifest_fields, "format": FORMAT, "generation": number, "parent": parent, "files": entries}
        data = json.dumps(manifest, sort_keys=True, indent=1).encode()
        if len(data) > _MAX_MANIFEST_BYTES:
            raise ValueError(f"The manifest has {len(data):,} bytes, more than {_MAX_MANIFEST_BYTES:,}.")
        create_file(root / "manifests" / f"{name}.json", data)
        sync_folder(root / "manifests")
        replace_file(root / "CURRENT", f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
        try:
            _remove_old_files(root, {name, parent})
        except (OSError, KnowledgeBaseCorruptError) as error:  # The commit is done; what is left over only takes room.
            logger.warning("%s: old files could not be removed: %s", root, error)
    return name


def _store_file(root: Path, file: NewFile) -> dict[str, Any]:
    objects = root / "objects"
    path, num_bytes = publish_file(
        file.write, objects, lambda sha256: objects / sha256[:2] / f"{sha256}.{file.suffix}"
    )
    name = path.relative_to(root).as_posix()
    return {"role": file.role, "name": name, "sha256": path.stem, "bytes": num_bytes, "rows": file.rows}


def _generation_numbers(root: Path) -> list[int]:
    matches = (_MANIFEST.fullmatch(path.name) for path in (root / "manifests").iterdir())
    return [int(match.group(1)) for match in matches if match]


def _remove_old_files(root: Path, kept: set[str | None]) -> None:
    referenced = set()
    for path in (root / "manifests").iterdir():
        if path.stem in kept:
            referenced |= {entry["name"] for entry in _parse_manifest(path, path.read_bytes())["files"]}
    for path in (root / "manifests").iterdir():
        if _MANIFEST.fullmatch(path.name) and path.stem not in kept:
            path.unlink()
    for path in [*(root / "objects").rglob("*"), *root.iterdir()]:
        name = path.relative_to(root).as_posix()
        if path.suffix == TEMPORARY_SUFFIX or (_OBJECT.fullmatch(name) and name not in referenced):
            path.unlink()


def open_generation(folder: str | os.PathLike[str], roles: Sequence[str] | None = None) -> Generation:
    """Finds the current generation and verifies the size and the SHA-256 of its files.

    Nothing is written, so a read-only folder or a snapshot of the Hugging Face cache will do.

    Args:
        folder: The folder that holds `CURRENT`.
        roles: Verify and return only files with these roles; `None` for all.

    Raises:
        KnowledgeBaseNotFoundError: If the folder holds no knowledge base.
        KnowledgeBaseCorruptError: If a file is missing, damaged, or of another format, with its name.
    """
    root = Path(folder)
    name, sha256 = _read_pointer(root)
    path = root / "manifests" / f"{name}.json"
    data = _read_small(path, _MAX_MANIFEST_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _corrupt(path, "its checksum differs from the one in CURRENT")
    manifest = _parse_manifest(path, data)
    entries = [entry for entry in manifest["files"] if roles is None or entry["role"] in roles]
    return Generation(root, name, manifest, tuple(_verify_file(root, entry) for entry in entries))


def load_generation(
    folder: str | os.PathLike[str], load: Callable[[Generation], _Loaded], roles: Sequence[str]
) -> _Loaded:
    """Opens the current generation and reads it, again if a writer has replaced and removed it in the meantime.

    Args:
        folder: The folder that holds `CURRENT`.
        load: Reads the files of a verified generation.
        roles: The roles of the files that `load` reads.

    Raises:
        KnowledgeBaseNotFoundError, KnowledgeBaseCorruptError: As `open_generation`.
    """
    for _ in range(_NUM_OPEN_ATTEMPTS - 1):
        before = _read_pointer(Path(folder))
        try:
            return load(open_generation(folder, roles))
        except (KnowledgeBaseCorruptError, FileNotFoundError):
            if _read_pointer(Path(folder)) == before:
                raise
    return load(open_generation(folder, roles))


def _read_pointer(root: Path) -> tuple[str, str]:
    path = root / "CURRENT"
    if not path.exists():
        raise KnowledgeBaseNotFoundError(
            f"{root}: there is no knowledge base here (no file CURRENT). Expected a folder written by "
            "`RavlmRetriever.save_pretrained`."
        )
    match = _CURRENT.fullmatch(_read_small(path, _MAX_CURRENT_BYTES))
    if match is None:
        raise _corrupt(path, 'it does not have the form "gen-<number> <sha256>"')
    return match.group(1).decode(), match.group(2).decode()


def _read_small(path: Path, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _corrupt(path, "it is not a regular file")
        if status.st_size > max_bytes:
            raise _corrupt(path, f"it has {status.st_size:,} bytes, more than {max_bytes:,}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _corrupt(path, "it is missing") from error


def _parse_manifest(path: Path, data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        found = manifest["format"]
        if found == FORMAT:
            for entry in manifest["files"]:
                _check_entry(path, entry)
            return dict(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _corrupt(path, f"it is not a manifest ({error!r})") from error
    raise KnowledgeBaseCorruptError(
        f"{path}: the knowledge base has format {found!r}, and this version of hf_ravlm reads format {FORMAT}. "
        "Upgrade with `pip install --upgrade hf_ravlm`, or build the knowledge base again."
    )


def _check_entry(path: Path, entry: dict[str, Any]) -> None:
    match = _OBJECT.fullmatch(entry["name"])
    counts = (entry["bytes"], entry["rows"])
    if match is None or match.group(2) != entry["sha256"] or not isinstance(entry["role"], str):
        raise _corrupt(path, f"it lists a file under the name {str(entry['name'])[:200]!r}")
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts):
        raise _corrupt(path, f"it lists {entry['name']} with the sizes {counts}")


def _verify_file(root: Path, entry: Mapping[str, Any]) -> StoredFile:
    path = root / entry["name"]
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _corrupt(path, "it is not a regular file")
        if status.st_size != entry["bytes"]:
            raise _corrupt(path, f"it has {status.st_size:,} bytes instead of {entry['bytes']:,}")
        if sha256_of(path) != entry["sha256"]:
            raise _corrupt(path, "its content has changed: the checksum differs")
    except FileNotFoundError as error:
        raise _corrupt(path, "it is missing") from error
    return StoredFile(entry["role"], path, entry["rows"])


def _corrupt(path: Path, reason: str) -> KnowledgeBaseCorruptError:
    return KnowledgeBaseCorruptError(
        f"{path}: the stored knowledge base is damaged: {reason}. Download or copy it again, or build it anew with "
        "`RavlmRetriever.build(...).save_pretrained(...)`."
    )
