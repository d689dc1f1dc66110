"""Knows which files make up a stored knowledge base, and which of them a change adds.

    passages     Parquet shards with page checksums          rows that were given; they are only ever added to
    vectors      one safetensors file per commit             the source of truth of every index
    tombstones   the rows that were removed                  replaced as a whole
    probe        vectors of fixed inputs                     what the encoder made of them, see `encoder_probe`
    index        one FAISS file, unless the search is exact  derived, see `derived_files`; as are all other roles

How they are read is the matter of `opened_knowledge`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from ...errors import KnowledgeBaseCorruptError, KnowledgeBaseMismatchError, KnowledgeBaseNotFoundError
from ...saving.arrays import write_arrays
from ...saving.safe_paths import safe_relpath
from ..encoding.encoder_probe import EncoderRecord, inputs_digest
from ..indexes.vector_index import ApproximateIndex
from ..passage import ids_digest, input_digest
from .derived import SOURCE_ROLES
from .manifest import Generation, StoredFile
from .parts import roles_of
from .row_files import shards, write_passages
from .state import LivingKnowledge
from .trust import trust_file
from .vector_files import vector_file
from .versions import Commit, NewFile, update_generation, write_generation


# Rows that the stored index does not cover are added to it when it is opened; beyond this share it is stored anew.
_MAX_UNINDEXED_SHARE = 0.05
_MIN_UNINDEXED_ROWS = 1_000


@dataclass(frozen=True)
class StoredState:
    """A state in memory and the generation that holds it.

    Attributes:
        generation: The generation; while this object lives, its files stay.
        knowledge: What it holds.
        encoder: Who made the vectors.
        indexed_rows: How many rows the stored index covers, if it is the one in memory.
        num_missing: How many passages could not be read and were left out.
    """

    generation: Generation
    knowledge: LivingKnowledge
    encoder: EncoderRecord
    indexed_rows: int = 0
    num_missing: int = 0


def find_store(folder: str | os.PathLike[str], subfolder: str) -> Path:
    """Returns the folder that holds `CURRENT`: the given one, or its sub-folder.

    Raises:
        KnowledgeBaseNotFoundError: If neither does.
    """
    root = Path(folder)
    for store in (root, root / safe_relpath(subfolder)):
        if (store / "CURRENT").exists():
            return store
    raise KnowledgeBaseNotFoundError(
        f"{root}: there is no knowledge base here (no {subfolder}/CURRENT). Expected a folder written by "
        "`RavlmRetriever.save_pretrained`; build one with `RavlmRetriever.build(knowledge_base, encoder)`."
    )


def write_state(folder: str | os.PathLike[str], knowledge: LivingKnowledge, encoder: EncoderRecord) -> StoredState:
    """Stores the passages that are alive as the next generation of a folder, whatever it held.

    Errors are those of `write_generation`.
    """
    knowledge = knowledge.compacted()
    generation = write_generation(folder, _fields(knowledge, encoder), _all_files(knowledge, encoder))
    trust_indexes(generation.files_of("index"))
    return StoredState(generation, knowledge, encoder, _indexed_rows(generation))


def write_published(
    folder: str | os.PathLike[str], knowledge: LivingKnowledge, encoder: EncoderRecord, parts: Sequence[str]
) -> Generation:
    """Stores the passages that are alive, or their vectors, or both, in the form in which they are published.

    Args:
        folder: A new folder.
        knowledge: The state.
        encoder: Who made the vectors.
        parts: Some of `hf_ravlm.retrieval.store.parts.PARTS`.
    """
    knowledge = knowledge.compacted()
    roles = roles_of(parts)
    fields = {**_fields(knowledge, encoder), "parts": list(parts)}
    fields["input_sha256"] = input_digest(knowledge.live_table)
    if "vectors" not in roles:
        fields = {name: value for name, value in fields.items() if name not in ("encoder", "index")}
    files = [file for file in _all_files(knowledge, encoder) if file.role in roles]
    generation = write_generation(folder, fields, files)
    trust_indexes(generation.files_of("index"))
    return generation


def write_change(
    base: StoredState,
    change: Callable[[LivingKnowledge], LivingKnowledge],
    reload: Callable[[Generation], StoredState],
) -> StoredState:
    """Stores a change of what a folder holds now, which may be more than what was read from it.

    Args:
        base: The state as it was read.
        change: Makes the next state from the current one.
        reload: Reads a generation that somebody else has written since.

    Raises:
        KnowledgeBaseMismatchError: If another encoder's knowledge base has taken the place.
        KnowledgeBaseCorruptError: If passages are missing from the current state.
        KnowledgeBaseNotFoundError, KnowledgeBaseLockedError, OSError: See `update_generation`.
    """
    latest, changed, wrote_index = base, base.knowledge, False

    def plan(current: Generation) -> Commit | None:
        nonlocal latest, changed, wrote_index
        latest = base if current.sha256 == base.generation.sha256 else reload(current)
        _check_changeable(base, latest)
        changed = change(latest.knowledge)
        if changed is latest.knowledge:
            return None
        files = _files_after(latest, changed)
        wrote_index = any(isinstance(file, NewFile) and file.role == "index" for file in files)
        return Commit(_fields(changed, latest.encoder), files)

    generation = update_generation(base.generation.folder, plan)
    if changed is latest.knowledge:
        return latest
    if not wrote_index:
        return StoredState(generation, changed, latest.encoder, latest.indexed_rows)
    trust_indexes(generation.files_of("index"))
    return StoredState(generation, changed, latest.encoder, _indexed_rows(generation))


def _check_changeable(base: StoredState, latest: StoredState) -> None:
    folder = latest.generation.folder
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


def _fields(knowledge: LivingKnowledge, encoder: EncoderRecord) -> dict[str, Any]:
    num_rows = len(knowledge.table)
    return {
        "rows": {"passages": num_rows, "tombstones": num_rows - len(knowledge)},
        "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint, "dim": knowledge.index.dim},
        "index": {"metric": "inner_product", **knowledge.options._asdict()},
    }


def _all_files(knowledge: LivingKnowledge, encoder: EncoderRecord) -> list[NewFile | StoredFile]:
    """All files of a state that has no others yet."""
    files: list[NewFile | StoredFile] = [
        *_row_files(knowledge.table, knowledge.index.vectors),
        *_tombstone_files(knowledge),
        *_probe_files(encoder),
    ]
    return files if is_exact(knowledge) else [*files, index_file(knowledge)]


def _files_after(before: StoredState, knowledge: LivingKnowledge) -> list[NewFile | StoredFile]:
    """The files of a state: those of the one before it, as far as they hold, and those that it adds."""
    if not knowledge.continues(before.knowledge):
        return _all_files(knowledge, before.encoder)
    generation, num_stored = before.generation, len(before.knowledge.table)
    files: list[NewFile | StoredFile] = [*generation.files_of("passages"), *generation.files_of("vectors")]
    if len(knowledge.table) > num_stored:
        files += _row_files(knowledge.table.slice(num_stored), knowledge.index.vectors[num_stored:])
    files += _tombstone_files(knowledge)
    files += generation.files_of("probe") or _probe_files(before.encoder)
    num_unindexed = len(knowledge.table) - before.indexed_rows
    allowed = max(_MIN_UNINDEXED_ROWS, _MAX_UNINDEXED_SHARE * before.indexed_rows) if before.indexed_rows else 0
    if is_exact(knowledge) or num_unindexed <= allowed:
        files += generation.files_of("index")
    else:
        files.append(index_file(knowledge))
    return files + [file for file in generation.files if file.role not in (*SOURCE_ROLES, "index")]


def _row_files(table: pa.Table, vectors: np.ndarray) -> list[NewFile | StoredFile]:
    passages = [NewFile("passages", "parquet", len(shard), partial(write_passages, shard)) for shard in shards(table)]
    return [*passages, vector_file(vectors, ids_digest(table))]


def _tombstone_files(knowledge: LivingKnowledge) -> list[NewFile | StoredFile]:
    if knowledge.all_alive:
        return []
    removed = np.flatnonzero(~knowledge.alive)
    return [NewFile("tombstones", "safetensors", len(removed), partial(_write_arrays, {"rows": removed}))]


def _probe_files(encoder: EncoderRecord) -> list[NewFile | StoredFile]:
    if not encoder.probe:
        return []
    rows = sum(len(vectors) for vectors in encoder.probe.values())
    fields = {"inputs_sha256": inputs_digest()}
    return [NewFile("probe", "safetensors", rows, partial(_write_arrays, encoder.probe), fields)]


def _write_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    write_arrays(path, arrays)


def index_file(knowledge: LivingKnowledge) -> NewFile:
    """The file of an index that is not exact."""
    index = cast(ApproximateIndex, knowledge.index)
    return NewFile("index", "faiss", len(knowledge.table), index.write, {"spec": index.spec}, made_from="vectors")


def is_exact(knowledge: LivingKnowledge) -> bool:
    """Whether vectors are searched as they are, so that no index is stored."""
    return bool(knowledge.index.spec["kind"] == "flat")


def _indexed_rows(generation: Generation) -> int:
    return sum(file.rows for file in generation.files_of("index"))


def trust_indexes(files: list[StoredFile]) -> None:
    """Notes that index files were written here."""
    for file in files:
        trust_file(file.sha256)
