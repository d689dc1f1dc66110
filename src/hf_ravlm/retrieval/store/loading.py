"""Stored versions as states in memory, and what is done about files that are damaged.

Passages, vectors and tombstones must be whole, or the caller has agreed to do without the rows that are lost; an index
is made again. Nothing is believed before its checksum was compared.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ...errors import InvalidInputError, KnowledgeBaseCorruptError
from ...saving.arrays import open_arrays
from ..encoding.encoder_probe import EncoderRecord, inputs_digest
from ..encoding.reference import checked_reference
from ..indexes.index_types import INDEX_KINDS
from ..indexes.vector_index import VectorIndex, open_index
from ..passage import SCHEMA, ids_digest
from ..ranking.search_options import check_grouping
from ..row_spool import RowSpool
from .manifest import StoredFile, Version
from .parts import check_made_for, check_parts
from .row_files import join_vectors, read_passages, read_vectors, salvage_vectors, unreadable
from .saving import SavedState
from .state import IndexOptions, KnowledgeState
from .trust import is_trusted
from .versions import load_version, verify_file


logger = logging.getLogger(__name__)

# A manifest may claim any number of rows for a file that is lost; our own shards hold 50,000.
_MAX_LOST_ROWS = 1_000_000

OnError = Literal["raise", "rebuild", "skip_shard"]


@dataclass(frozen=True)
class OpenOptions:
    """How a stored knowledge base is opened; see `RavlmRetriever.from_pretrained`."""

    on_error: OnError = "raise"
    verify: Literal["full", "size"] = "full"
    allow_foreign_index: bool = False
    ids_only: bool = False  # of passages: to count what can be read, in little memory

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "rebuild", "skip_shard"):
            raise InvalidInputError(
                f'on_error={self.on_error!r} is not known. Choose "raise", "rebuild" or "skip_shard".'
            )
        if self.verify not in ("full", "size"):
            raise InvalidInputError(f'verify={self.verify!r} is not known. Choose "full" or "size".')


def open_state(
    folder: str | os.PathLike[str],
    options: OpenOptions,
    earlier: SavedState | None = None,
    passages: pa.Table | None = None,
) -> SavedState:
    """Opens the current version of a folder.

    Args:
        folder: The folder that holds `CURRENT`.
        options: What to verify and what to do about damage.
        earlier: A state of the same folder; what both have is not read again.
        passages: The passages that the stored vectors were made for, instead of the stored ones.

    Raises:
        KnowledgeBaseNotFoundError: If there is no knowledge base, or a part of it was not published.
        KnowledgeBaseMismatchError: If the vectors were made for other passages than those given.
        KnowledgeBaseCorruptError: If a file is damaged or missing.
        UnsafeInputError: If a stored vector is not a unit vector.
    """
    return load_version(folder, lambda version: read_state(version, options, earlier, passages))


def load_passages(folder: str | os.PathLike[str]) -> pa.Table:
    """Reads and verifies the passages that are alive, without their vectors; errors as `open_state`."""

    def load(version: Version) -> pa.Table:
        check_parts(version, ("passages",))
        table = _read_table(version.files_of("passages"), OpenOptions())[0]
        alive = _read_alive(version, len(table), OpenOptions())
        return table if alive.all() else table.filter(pa.array(alive))

    return load_version(folder, load)


def read_state(
    version: Version,
    options: OpenOptions,
    earlier: SavedState | None = None,
    own_passages: pa.Table | None = None,
) -> SavedState:
    """Reads a version; see `open_state`."""
    check_parts(version, ("vectors",) if own_passages is not None else ("passages", "vectors"))
    if earlier is not None and earlier.version.sha256 == version.sha256:
        return earlier
    if earlier is not None and (earlier.num_missing or not _is_extended_by(earlier.version, version)):
        earlier = None
    if own_passages is None:
        table, right = _read_table(_files_beyond(version, earlier, "passages"), options)
    else:
        check_made_for(version, own_passages)
        table, right = own_passages, np.ones(len(own_passages), bool)
    vectors, right = _read_vectors(_files_beyond(version, earlier, "vectors"), table, right, options)
    encoder = _read_encoder(version, options)
    if earlier is None:
        index_options = _index_options(version)
        index, indexed_rows = _read_index(version, vectors, index_options, options)
        knowledge = KnowledgeState(table, index, np.ones(len(table), bool), index_options)
    else:
        knowledge, indexed_rows = earlier.knowledge.appended(table, vectors), earlier.indexed_rows
        right = np.concatenate([np.ones(len(earlier.knowledge.table), bool), right])
    alive = _read_alive(version, len(right), options)
    num_missing, num_listed = np.count_nonzero(alive & ~right), np.count_nonzero(alive)
    if num_missing == num_listed > 0:
        raise _unusable(version.folder, f"none of its {num_listed} passages can be read")
    if num_missing:
        lost = f"{num_missing} of {num_listed} passages are lost and were left out"
        logger.warning("%s: %s. Download or copy the knowledge base again.", version.folder, lost)
    return SavedState(version, knowledge.with_alive(alive & right), encoder, indexed_rows, int(num_missing))


def _is_extended_by(earlier: Version, version: Version) -> bool:
    """Whether a version lists the passages and vectors of an earlier one first."""
    for role in ("passages", "vectors"):
        before, now = ([file.sha256 for file in one.files_of(role)] for one in (earlier, version))
        if now[: len(before)] != before:
            return False
    return True


def _files_beyond(version: Version, earlier: SavedState | None, role: str) -> list[StoredFile]:
    return version.files_of(role)[len(earlier.version.files_of(role)) if earlier else 0 :]


def _read_table(files: Sequence[StoredFile], options: OpenOptions) -> tuple[pa.Table, np.ndarray]:
    """All rows, and a mask of those that were read."""
    masks = [np.zeros(0, bool)]
    with RowSpool(SCHEMA) as spool:
        for file in files:
            try:
                verify_file(file, options.verify == "full")
                part = read_passages(file)
                part = _named_rows(part["id"]) if options.ids_only else part
                masks.append(np.ones(file.rows, bool))
            except KnowledgeBaseCorruptError as error:
                if options.on_error != "skip_shard" or file.rows > _MAX_LOST_ROWS:
                    raise
                logger.warning("%s", error)
                part = _named_rows(pa.repeat("", file.rows))  # they keep the place of the others, and are never alive
                masks.append(np.zeros(file.rows, bool))
            for batch in part.to_batches():
                spool.add(batch)
        return spool.table(), np.concatenate(masks)


def _named_rows(ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Rows of which nothing but their ids is there."""
    return pa.table([ids, *(pa.nulls(len(ids), one.type) for one in list(SCHEMA)[1:])], schema=SCHEMA)


def _read_vectors(
    files: Sequence[StoredFile], table: pa.Table, right: np.ndarray, options: OpenOptions
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a table, and a mask of the rows whose passages (`right`) and vectors are as they were written."""
    if sum(file.rows for file in files) != len(table):
        folder = files[0].path.parents[2] if files else "The store"
        raise _unusable(folder, f"it lists {len(table)} passages and {sum(file.rows for file in files)} vectors")
    right, row, parts = right.copy(), 0, []
    for file in files:
        rows = slice(row, row + file.rows)
        try:
            verify_file(file, options.verify == "full")
            parts.append(read_vectors(file))
        except KnowledgeBaseCorruptError as error:
            if options.on_error != "skip_shard":
                raise
            logger.warning("%s", error)
            salvaged, intact = salvage_vectors(file)
            parts.append(salvaged)
            right[rows] &= intact
        expected = file.fields.get("ids_sha256")
        if expected is not None and right[rows].all() and ids_digest(table.slice(row, file.rows)) != expected:
            raise _unusable(file.path, "its vectors were made for other passages, or for these in another order")
        row += file.rows
    return join_vectors(parts, files), right


def _read_alive(version: Version, num_rows: int, options: OpenOptions) -> np.ndarray:
    rows = version.manifest.get("rows")
    listed = (rows.get("passages"), rows.get("tombstones")) if isinstance(rows, Mapping) else (None, None)
    files = version.files_of("tombstones")
    removed = np.zeros(0, np.int64)
    for file in files:
        verify_file(file, options.verify == "full")
        removed = open_arrays(file.path)[0].get("rows", removed)
    alive = np.ones(num_rows, bool)
    if removed.ndim == 1 and removed.dtype == np.int64 and len(files) <= 1:
        if removed.min(initial=0) >= 0 and removed.max(initial=-1) < num_rows:
            alive[removed] = False
    if listed != (num_rows, num_rows - int(np.count_nonzero(alive))) or len(removed) != listed[1]:
        raise _unusable(
            version.folder,
            f"it lists {listed[0]} passages and holds {num_rows}, it lists {listed[1]} as removed and names "
            f"{len(removed)}",
        )
    return alive


def _read_encoder(version: Version, options: OpenOptions) -> EncoderRecord:
    record = version.manifest.get("encoder")
    if not isinstance(record, dict) or not isinstance(record.get("fingerprint"), str):
        raise _unusable(version.folder, "it names no encoder")
    probe: dict[str, np.ndarray] = {}
    for file in version.files_of("probe"):
        # Probes of another version of this library cannot be compared with ours.
        if file.fields.get("inputs_sha256") == inputs_digest():
            verify_file(file, options.verify == "full")
            probe = open_arrays(file.path)[0]
    return EncoderRecord(str(record.get("name"))[:500], record["fingerprint"][:200], probe, reference_in(version))


def reference_in(version: Version) -> dict[str, Any] | None:
    """How the encoder of a version is loaded again; `KnowledgeBaseCorruptError` if what is written there is not sound.

    `None` where the manifest does not say.
    """
    record = version.manifest.get("encoder")
    try:
        return checked_reference(record.get("reference") if isinstance(record, Mapping) else None)
    except InvalidInputError as error:
        raise _unusable(version.folder, str(error)) from error


def _index_options(version: Version) -> IndexOptions:
    record = version.manifest.get("index")
    record = record if isinstance(record, dict) else {}
    kind, budget, recall = record.get("kind", "flat"), record.get("memory_budget"), record.get("recall", 0.95)
    budget_fits = budget is None or (isinstance(budget, int) and not isinstance(budget, bool) and budget > 0)
    if kind not in INDEX_KINDS or not budget_fits or not isinstance(recall, (int, float)) or not 0 < recall <= 1:
        raise _unusable(version.folder, f"it asks for the index {str(record)[:200]}")
    group_by, group_query = record.get("group_by"), record.get("group_query", "both")
    try:
        check_grouping(group_by, group_query)
    except InvalidInputError as error:
        raise _unusable(version.folder, str(error)[:200]) from error
    return IndexOptions(kind, budget, float(recall), group_by, group_query)


def _read_index(
    version: Version, vectors: np.ndarray, index_options: IndexOptions, options: OpenOptions
) -> tuple[VectorIndex, int]:
    """The index, and how many rows of it were stored."""
    for file in version.derived_files("index") if index_options.kind != "flat" else []:
        if not file.path.exists():
            logger.info("%s: the index is missing and is built from the vectors.", file.path)
        elif not (options.allow_foreign_index or is_trusted(file.sha256)):
            logger.warning(
                "%s: this index was not written by you on this machine, so it is built from its %d vectors instead "
                "of being loaded. Pass `allow_foreign_index=True` if you trust who made it.",
                file.path,
                len(vectors),
            )
        else:
            try:
                verify_file(file, options.verify == "full")
                spec = file.fields.get("spec")
                if not isinstance(spec, dict):
                    raise unreadable(file, "the manifest does not say what it is")
                index = open_index(file.path, spec, vectors[: file.rows])
                return (index if file.rows == len(vectors) else index.grow(vectors)), file.rows
            except KnowledgeBaseCorruptError as error:
                if options.on_error == "raise":
                    raise
                logger.warning("%s The index is built from the vectors.", error)
    return index_options.build(vectors), 0


def _unusable(path: Path | str, reason: str) -> KnowledgeBaseCorruptError:
    return KnowledgeBaseCorruptError(
        f"{path}: the manifest of the knowledge base does not fit its files: {reason}. Build the knowledge base again."
    )
