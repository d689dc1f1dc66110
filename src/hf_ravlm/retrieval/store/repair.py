"""Looking at, verifying and repairing a stored knowledge base; every answer is a report of JSON values.

`store_info` and `verify_store` write nothing. No report names a path outside the folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from transformers.utils.logging import tqdm

from ...errors import KnowledgeBaseCorruptError, KnowledgeBaseNotFoundError, RavlmError
from .current import STAGING
from .loading import OpenOptions, read_state, reference_in
from .manifest import SOURCE_ROLES, StoredFile, Version
from .saving import index_file, is_exact, trust_indexes, write_state
from .trust import is_trusted
from .versions import Commit, point_to_version, read_version, update_version, verify_file, version_names


_SECONDS_BEFORE_BAR = 3


def store_info(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Says what the folder of `CURRENT` holds, by its manifest alone.

    Returns:
        `generation`, `format`, `passages`, `removed`, `encoder` (name, fingerprint, dim, has_probe, and `reference`
        where it is loaded again by a name), `index` (kind, indexed_rows, written_here), `files` (per role: files,
        rows, bytes), `bytes`, `generations` that lie there, and jobs in `staging`.

    Raises:
        KnowledgeBaseNotFoundError, KnowledgeBaseCorruptError: See `read_version`.
    """
    root = Path(folder)
    version = read_version(root)
    removed = sum(file.rows for file in version.files_of("tombstones"))
    roles = {}
    for role in dict.fromkeys(file.role for file in version.files):
        files = version.files_of(role)
        counts = {"rows": sum(file.rows for file in files), "bytes": sum(file.num_bytes for file in files)}
        roles[role] = {"files": len(files), **counts}
    records = (version.manifest.get(name) for name in ("encoder", "index"))
    encoder, index = (record if isinstance(record, dict) else {} for record in records)
    indexes = version.derived_files("index")
    return {
        "generation": version.name,
        "format": version.manifest["format"],
        "passages": sum(file.rows for file in version.files_of("passages")) - removed,
        "removed": removed,
        "encoder": {
            **{name: encoder.get(name) for name in ("name", "fingerprint", "dim")},
            "has_probe": bool(version.files_of("probe")),
            **({} if encoder.get("reference") is None else {"reference": reference_in(version)}),
        },
        "index": {
            "kind": index.get("kind", "flat"),
            "indexed_rows": sum(file.rows for file in indexes),
            "written_here": all(is_trusted(file.sha256) for file in indexes),
        },
        "files": roles,
        "bytes": sum(file.num_bytes for file in version.files),
        "generations": version_names(root),
        "staging": sorted(path.name for path in (root / STAGING).iterdir()) if (root / STAGING).is_dir() else [],
    }


def verify_store(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads every byte of the version in `CURRENT` and says what is wrong; damage is reported, not raised.

    Returns:
        `ok`; `generation`, `None` if it cannot be read; `passages` that can be read and `missing` ones; `files` (name,
        role, rows, bytes, and `problem`, `None` if there is none); `problems`, sentences about the whole.

    Raises:
        KnowledgeBaseNotFoundError: If there is no knowledge base.
    """
    report: dict[str, Any] = {"ok": False, "generation": None, "passages": 0, "missing": None, "files": []}
    try:
        version = read_version(folder)
    except KnowledgeBaseCorruptError as error:
        return {**report, "problems": [_relative(error, folder)]}
    report["generation"] = version.name
    problems = _problems_of(version)
    for file in version.files:
        problem = problems.get(file.path)
        entry = {"name": file.fields["name"], "role": file.role, "rows": file.rows, "bytes": file.num_bytes}
        report["files"].append({**entry, "problem": None if problem is None else _relative(problem, folder)})
    try:
        # Without its index, which was verified above: a stranger's would be built again here.
        exact = replace(version, manifest={**version.manifest, "index": {"kind": "flat"}})
        verify: Literal["full", "size"] = "full" if problems else "size"  # nothing is read a third time
        state = read_state(exact, OpenOptions("skip_shard", verify, ids_only=True))
        report.update(passages=len(state.knowledge), missing=state.num_missing)
        faults: list[str] = []
    except RavlmError as error:
        faults = [_relative(error, folder)]
    return {**report, "ok": not problems and not faults, "problems": faults}


def repair_store(
    folder: str | os.PathLike[str], *, to: str | None = None, drop_damaged: bool = False
) -> dict[str, Any]:
    """Makes a damaged knowledge base usable again.

    An index that is damaged, missing or somebody else's is built from the vectors, other damaged derived files are
    dropped.

    Args:
        folder: The folder that holds `CURRENT`, or held it.
        to: A version to go back to, such as `"gen-00000006"`; `None` for the current one or, if that cannot be
            read, the newest that is whole.
        drop_damaged: Whether to give up passages whose files are damaged.

    Returns:
        `actions`, sentences about what was done; and what `verify_store` says afterwards.

    Raises:
        KnowledgeBaseNotFoundError: If there is no version, or not that one.
        KnowledgeBaseCorruptError: If no version can be read.
        KnowledgeBaseLockedError, OSError: If another process is writing, or the disk refuses.
    """
    actions: list[str] = []
    version = _readable_version(Path(folder), to, actions)
    problems = _problems_of(version)
    damaged = [file for file in version.files if file.path in problems]
    if any(file.role in ("passages", "vectors") for file in damaged):
        if drop_damaged:
            state = read_state(version, OpenOptions(on_error="skip_shard"))
            write_state(folder, state.knowledge, state.encoder)
            actions.append(f"gave up {state.num_missing} passages and kept {len(state.knowledge)}")
    elif not any(file.role == "tombstones" for file in damaged):
        _renew_derived(folder, version, damaged, actions)
    return {"actions": actions, **verify_store(folder)}


def _readable_version(root: Path, to: str | None, actions: list[str]) -> Version:
    """The version to repair; CURRENT points to it afterwards."""
    names = version_names(root)
    if not names or (to is not None and to not in names):
        raise KnowledgeBaseNotFoundError(f"{root}: there is no version {to or 'here'}. There are: {names}.")
    if to is None:
        try:
            return read_version(root)
        except (KnowledgeBaseCorruptError, KnowledgeBaseNotFoundError) as error:
            actions.append(f"found the current version unreadable: {_relative(error, root)}")
        to = next((name for name in reversed(names) if _is_whole(root, name)), None)
        if to is None:
            raise KnowledgeBaseCorruptError(
                f"{root}: none of the versions {names} is whole. Name one with `to`, and see `drop_damaged`."
            )
    version = point_to_version(root, to)
    actions.append(f"made {to} the current version")
    return version


def _is_whole(root: Path, name: str) -> bool:
    try:
        version = read_version(root, name)
    except KnowledgeBaseCorruptError:
        return False
    problems = _problems_of(version)
    return not any(file.role in SOURCE_ROLES and file.path in problems for file in version.files)


def _renew_derived(
    folder: str | os.PathLike[str], version: Version, damaged: Sequence[StoredFile], actions: list[str]
) -> None:
    dropped = {file.path for file in damaged}
    whole = replace(version, files=tuple(file for file in version.files if file.path not in dropped))
    state = read_state(whole, OpenOptions(on_error="rebuild"))
    needs_index = state.indexed_rows == 0 and not is_exact(state.knowledge)
    if needs_index:
        dropped |= {file.path for file in version.files_of("index")}
    if not dropped and not needs_index:
        return

    def plan(current: Version) -> Commit | None:
        if current.sha256 != version.sha256:
            return None
        kept = [file for file in current.files if file.path not in dropped]
        return Commit(current.fields, [*kept, *([index_file(state.knowledge)] if needs_index else [])])

    written = update_version(folder, plan)
    if needs_index:
        trust_indexes(written)
        actions.append(f"built the index of {len(state.knowledge.table)} rows from the vectors")
    actions.extend(f"dropped a damaged file of the role {file.role!r}" for file in damaged if file.role != "index")


def _problems_of(version: Version) -> dict[Path, Exception]:
    problems: dict[Path, Exception] = {}
    num_bytes = sum(file.num_bytes for file in version.files)
    with tqdm(total=num_bytes, desc="Verifying", unit="B", unit_scale=True, delay=_SECONDS_BEFORE_BAR) as bar:
        for file in version.files:
            try:
                verify_file(file, on_read=bar.update)
            except KnowledgeBaseCorruptError as error:
                problems[file.path] = error
    return problems


def _relative(error: Exception, folder: str | os.PathLike[str]) -> str:
    """A message without the place of the folder on this machine."""
    message = str(error)
    for place in (os.path.abspath(folder), os.fspath(folder)):
        message = message.replace(f"{place}{os.sep}", "").replace(place, ".")
    return message
