"""States of knowledge as files: which ones make up a stored version, and which of them a change adds.

passages     Parquet shards with page checksums          rows that were given; they are only ever added to
vectors      one safetensors file per commit             the source of truth of every index
tombstones   the rows that were removed                  replaced as a whole
probe        vectors of fixed inputs                     what the encoder made of them, see `encoder_probe`
index        one FAISS file, unless the search is exact  made from the vectors
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...errors import (
    KnowledgeBaseCorruptError,
    KnowledgeBaseIncompleteError,
    KnowledgeBaseMismatchError,
    KnowledgeBaseNotFoundError,
)
from ...saving.safe_paths import absolute_folder, safe_relpath
from ..encoding.corpus_shards import progress_of
from ..encoding.encoder_probe import EncoderRecord, inputs_digest
from ..indexes.vector_index import ApproximateIndex
from ..passage import input_digest
from .manifest import SOURCE_ROLES, Version
from .parts import roles_of
from .row_files import array_file, row_files
from .state import KnowledgeState
from .trust import trust_file
from .versions import AnyFile, Commit, NewFile, store_state, update_version, write_version


# Rows that the stored index does not cover are added to it when it is opened; beyond this share it is stored anew.
_MAX_UNINDEXED_SHARE = 0.05
_MIN_UNINDEXED_ROWS = 1_000


@dataclass(frozen=True)
class SavedState:
    """A state in memory and the version that holds it, whose files stay while this object lives.

    `indexed_rows` says how many rows the stored index covers, if it is the one in memory; `num_missing` how many
    passages could not be read and were left out.
    """

    version: Version
    knowledge: KnowledgeState
    encoder: EncoderRecord
    indexed_rows: int = 0
    num_missing: int = 0


def find_store(folder: str | os.PathLike[str], subfolder: str) -> Path:
    """The folder that holds `CURRENT`, the given one or its sub-folder, as an absolute path.

    Raises:
        KnowledgeBaseNotFoundError: If nothing of a knowledge base lies there.
        KnowledgeBaseIncompleteError: If its build was stopped, or `CURRENT` is gone.
    """
    root = absolute_folder(folder)
    places = (root, root / safe_relpath(subfolder))
    states = [store_state(store) for store in places]
    for store, state in zip(places, states, strict=True):
        if state in ("whole", "broken"):  # reading says what is wrong
            return store
    for store, state in zip(places, states, strict=True):
        if state == "unfinished":
            progress = progress_of(store / "staging")
            stopped = "before it began" if progress is None else f"at {progress:.0%}"
            raise KnowledgeBaseIncompleteError(
                f"{store}: the build of this knowledge base was stopped {stopped}, and nothing can be read yet. Run "
                "the same command again: it goes on where it stopped."
            )
    if root.is_file():
        raise KnowledgeBaseNotFoundError(f"{root}: this is a file. Expected the folder of a knowledge base.")
    raise KnowledgeBaseNotFoundError(
        f"{root}: there is no knowledge base here (no {subfolder}/CURRENT). Expected a folder written by "
        "`RavlmRetriever.save_pretrained`; build one with `RavlmRetriever.build(knowledge_base, encoder)`."
    )


def write_state(
    folder: str | os.PathLike[str],
    knowledge: KnowledgeState,
    encoder: EncoderRecord,
    parts: Sequence[str] | None = None,
    *,
    overwrite: bool = True,
) -> SavedState:
    """Stores the passages that are alive as the next version of a folder, whatever it held.

    Args:
        folder: The folder; created if needed.
        knowledge: The state.
        encoder: Who made the vectors.
        parts: Which of `PARTS` are published; `None` for a state that stays here.
        overwrite: See `write_version`.

    Raises:
        InvalidInputError, KnowledgeBaseLockedError, KnowledgeBaseCorruptError, OSError: See `write_version`.
    """
    knowledge = knowledge.compacted()
    fields, files = _fields(knowledge, encoder), _all_files(knowledge, encoder)
    if parts is not None:
        fields |= {"parts": list(parts), "input_sha256": input_digest(knowledge.table)}
        roles = roles_of(parts)
        files = [file for file in files if file.role in roles]
        if "vectors" not in roles:
            del fields["encoder"], fields["index"]
    version = write_version(folder, fields, files, overwrite=overwrite)
    return SavedState(version, knowledge, encoder, trust_indexes(version))


def write_change(
    base: SavedState,
    change: Callable[[KnowledgeState], KnowledgeState],
    reload: Callable[[Version], SavedState],
) -> SavedState:
    """Stores a change of what a folder holds now, which may be more than what was read from it.

    Args:
        base: The state as it was read.
        change: Makes the next state from the current one; returning that very one writes nothing.
        reload: Reads a version that another process has written since.

    Raises:
        KnowledgeBaseMismatchError: If another encoder's knowledge base has taken the place.
        KnowledgeBaseCorruptError: If passages are missing from the current state.
        KnowledgeBaseNotFoundError, KnowledgeBaseLockedError, OSError: See `update_version`.
    """
    latest, changed, wrote_index = base, base.knowledge, False

    def plan(current: Version) -> Commit | None:
        nonlocal latest, changed, wrote_index
        latest = base if current.sha256 == base.version.sha256 else reload(current)
        _check_changeable(base, latest)
        changed = change(latest.knowledge)
        if changed is latest.knowledge:
            return None
        files = _files_after(latest, changed)
        wrote_index = any(isinstance(file, NewFile) and file.role == "index" for file in files)
        return Commit(_fields(changed, latest.encoder), files)

    version = update_version(base.version.folder, plan)
    if changed is latest.knowledge:
        return latest
    indexed_rows = trust_indexes(version) if wrote_index else latest.indexed_rows
    return SavedState(version, changed, latest.encoder, indexed_rows)


def write_replacement(base: SavedState, knowledge: KnowledgeState, encoder: EncoderRecord) -> SavedState | None:
    """Stores a state with the vectors of another encoder in the place of the one that it was made of, in one commit.

    Returns:
        The stored state; `None`, and nothing is written, if another process has changed the folder since `base`.

    Raises:
        KnowledgeBaseLockedError, KnowledgeBaseNotFoundError, OSError: See `update_version`.
    """
    is_latest = False

    def plan(current: Version) -> Commit | None:
        nonlocal is_latest
        is_latest = current.sha256 == base.version.sha256
        return Commit(_fields(knowledge, encoder), _all_files(knowledge, encoder)) if is_latest else None

    version = update_version(base.version.folder, plan)
    return SavedState(version, knowledge, encoder, trust_indexes(version)) if is_latest else None


def _check_changeable(base: SavedState, latest: SavedState) -> None:
    folder = latest.version.folder
    if latest.encoder.fingerprint != base.encoder.fingerprint:
        raise KnowledgeBaseMismatchError(
            f"{folder}: another process has replaced the knowledge base by one of the encoder "
            f"{latest.encoder.name!r}. Open it anew with `RavlmRetriever.from_pretrained`."
        )
    if latest.num_missing:
        raise KnowledgeBaseCorruptError(
            f"{folder}: {latest.num_missing} passages could not be read, and a change would give them up. Repair the "
            "knowledge base first, see `hf_ravlm.retrieval.repair_store`."
        )


def _fields(knowledge: KnowledgeState, encoder: EncoderRecord) -> dict[str, Any]:
    num_rows = len(knowledge.table)
    record = {"name": encoder.name, "fingerprint": encoder.fingerprint, "dim": knowledge.index.dim}
    if encoder.reference is not None:
        record["reference"] = dict(encoder.reference)
    return {
        "rows": {"passages": num_rows, "tombstones": num_rows - len(knowledge)},
        "encoder": record,
        "index": {"metric": "inner_product", **knowledge.options._asdict()},
    }


def _all_files(knowledge: KnowledgeState, encoder: EncoderRecord) -> list[AnyFile]:
    """All files of a state that has no others yet."""
    files = row_files(knowledge.table, knowledge.index.vectors) + _tombstone_files(knowledge) + _probe_files(encoder)
    return files if is_exact(knowledge) else [*files, index_file(knowledge)]


def _files_after(before: SavedState, knowledge: KnowledgeState) -> list[AnyFile]:
    """The files of a state: those of the one before it, as far as they hold, and those that it adds."""
    if not knowledge.continues(before.knowledge):
        return _all_files(knowledge, before.encoder)
    version, num_stored = before.version, len(before.knowledge.table)
    files: list[AnyFile] = [*version.files_of("passages"), *version.files_of("vectors")]
    if len(knowledge.table) > num_stored:
        files += row_files(knowledge.table.slice(num_stored), knowledge.index.vectors[num_stored:])
    files += _tombstone_files(knowledge)
    files += version.files_of("probe") or _probe_files(before.encoder)
    num_unindexed = len(knowledge.table) - before.indexed_rows
    allowed = max(_MIN_UNINDEXED_ROWS, _MAX_UNINDEXED_SHARE * before.indexed_rows) if before.indexed_rows else 0
    if is_exact(knowledge) or num_unindexed <= allowed:
        files += version.files_of("index")
    else:
        files.append(index_file(knowledge))
    return files + [file for file in version.files if file.role not in (*SOURCE_ROLES, "index")]


def _tombstone_files(knowledge: KnowledgeState) -> list[AnyFile]:
    removed = np.flatnonzero(~knowledge.alive)
    return [array_file("tombstones", len(removed), {"rows": removed})] if len(removed) else []


def _probe_files(encoder: EncoderRecord) -> list[AnyFile]:
    rows = sum(len(vectors) for vectors in encoder.probe.values())
    return [array_file("probe", rows, encoder.probe, {"inputs_sha256": inputs_digest()})] if encoder.probe else []


def index_file(knowledge: KnowledgeState) -> NewFile:
    """The file of an index that is not exact."""
    index = cast(ApproximateIndex, knowledge.index)
    return NewFile("index", "faiss", len(knowledge.table), index.write, {"spec": index.spec}, made_from="vectors")


def is_exact(knowledge: KnowledgeState) -> bool:
    """Whether vectors are searched as they are, so that no index is stored."""
    return bool(knowledge.index.spec["kind"] == "flat")


def trust_indexes(version: Version) -> int:
    """Notes that the index files of a version were written here; returns how many rows they cover."""
    files = version.files_of("index")
    for file in files:
        trust_file(file.sha256)
    return sum(file.rows for file in files)
