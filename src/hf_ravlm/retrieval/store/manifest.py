"""The manifest of a stored version: which files belong together, their sizes, rows and checksums.

A manifest is data, perhaps a stranger's: names must have the form that we write, counts must be counts, and a format
that is not known is refused before anything else is believed.

Passages, vectors, tombstones and probe are what was given; every other file was made from files of the same version,
an index from the vectors. It names them, holds as long as they are listed in the same place, and may be missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import KnowledgeBaseCorruptError
from .leases import Lease


FORMAT = 2

# A manifest of this size lists about 20,000 files.
MAX_MANIFEST_BYTES = 8_000_000
_MAX_ROWS = 100_000_000

SOURCE_ROLES = ("passages", "vectors", "tombstones", "probe")
_OWN_FIELDS = ("format", "generation", "parent", "files")

MANIFEST_NAME = re.compile(r"gen-([0-9]{8,12})\.json")
OBJECT_NAME = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{62})\.(parquet|safetensors|faiss)")


@dataclass(frozen=True)
class StoredFile:
    """A file that a manifest lists.

    Attributes:
        role: What it is for: `"passages"`, `"vectors"`, `"tombstones"`, `"probe"`, `"index"`, ...
        path: Where it lies.
        rows: How many rows it holds or covers.
        sha256: The checksum of its content, which is also its name.
        num_bytes: Its size.
        fields: Everything that the manifest says about it.
    """

    role: str
    path: Path
    rows: int
    sha256: str = ""
    num_bytes: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """One complete state of a stored knowledge base.

    Attributes:
        folder: The folder that holds `CURRENT`.
        name: Such as `"gen-00000002"`.
        manifest: The fields that were given to the writer, and `format`, `generation`, `parent`, `files`.
        files: The files, in the order in which they were written.
        sha256: The checksum of the manifest: equal for equal states only.
        lease: Keeps the files from being removed while this object lives.
    """

    folder: Path
    name: str
    manifest: Mapping[str, Any]
    files: tuple[StoredFile, ...]
    sha256: str = ""
    lease: Lease = field(default_factory=Lease, compare=False, repr=False)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the manifest that belong to the knowledge and not to one version."""
        return {name: value for name, value in self.manifest.items() if name not in _OWN_FIELDS}

    @property
    def number(self) -> int:
        """Counts the versions of a folder: later ones are greater."""
        return int(self.name.removeprefix("gen-"))

    def file_names(self) -> list[str]:
        """The names of all files, relative to the folder: what is to be copied or published."""
        return ["CURRENT", f"manifests/{self.name}.json", *(entry["name"] for entry in self.manifest["files"])]

    def files_of(self, role: str) -> list[StoredFile]:
        """The files with one role, in order."""
        return [file for file in self.files if file.role == role]

    def derived_files(self, role: str) -> list[StoredFile]:
        """The files with a derived role that were made from what now holds the first rows; not verified yet.

        Rows are those of the stored table, removed passages included. A file covers the first `rows` of them.
        """
        holding = []
        for file in self.files_of(role):
            source, sources = file.fields.get("made_from"), file.fields.get("built_from")
            if file.fields.get("first_row") == 0 and isinstance(source, str) and isinstance(sources, list):
                first = self.files_of(source)[: len(sources)]
                if [other.sha256 for other in first] == sources and sum(other.rows for other in first) == file.rows:
                    holding.append(file)
        return holding


def manifest_bytes(fields: Mapping[str, Any], number: int, parent: str | None, files: list[dict[str, Any]]) -> bytes:
    """A manifest as it is written; `ValueError` if it has too many bytes to be read again."""
    manifest = {**fields, "format": FORMAT, "generation": number, "parent": parent, "files": files}
    data = json.dumps(manifest, sort_keys=True, indent=1).encode()
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError(f"The manifest has {len(data):,} bytes, more than {MAX_MANIFEST_BYTES:,}.")
    return data


def parse_manifest(path: Path, data: bytes) -> dict[str, Any]:
    """A manifest whose list of files has been checked.

    Raises:
        KnowledgeBaseCorruptError: If it is no manifest, has a format that is not known, or lists impossible files.
    """
    try:
        manifest = json.loads(data)
        found = manifest["format"]
        if found == FORMAT and isinstance(found, int) and not isinstance(found, bool):
            for entry in manifest["files"]:
                match = OBJECT_NAME.fullmatch(entry["name"])
                counts = (entry["bytes"], entry["rows"])
                if match is None or match.group(2) != entry["sha256"] or not isinstance(entry["role"], str):
                    raise corrupt(path, f"it lists a file under the name {str(entry['name'])[:200]!r}")
                if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts):
                    raise corrupt(path, f"it lists {entry['name']} with the sizes {str(counts)[:200]}")
            if sum(entry["rows"] for entry in manifest["files"] if entry["role"] == "passages") > _MAX_ROWS:
                raise corrupt(path, f"it lists more than {_MAX_ROWS:,} passages")
            return dict(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise corrupt(path, f"it is not a manifest ({str(error)[:200]!r})") from error
    raise KnowledgeBaseCorruptError(
        f"{path}: the knowledge base has format {str(found)[:40]}, and this version of hf_ravlm reads format "
        f"{FORMAT}. Upgrade with `pip install --upgrade hf_ravlm`, or build the knowledge base again."
    )


def version_of(path: Path, data: bytes, lease: Lease) -> Version:
    """The version whose manifest lies at a path and has this content; errors as `parse_manifest`."""
    manifest, root = parse_manifest(path, data), path.parent.parent
    files = tuple(
        StoredFile(entry["role"], root / entry["name"], entry["rows"], entry["sha256"], entry["bytes"], entry)
        for entry in manifest["files"]
    )
    return Version(root, path.stem, manifest, files, hashlib.sha256(data).hexdigest(), lease)


def corrupt(path: Path, reason: str) -> KnowledgeBaseCorruptError:
    """An error about a file of a stored knowledge base."""
    return KnowledgeBaseCorruptError(
        f"{path}: the stored knowledge base is damaged: {reason}. Download or copy it again, or build it anew with "
        "`RavlmRetriever.build(...).save_pretrained(...)`."
    )
