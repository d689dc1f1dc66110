"""The rows of a knowledge base in files: Parquet shards of passages, and safetensors with their vectors.

Checksums of whole files were compared before. Here it is checked that a small file does not unfold into a huge table,
that columns and shapes are ours, and the rows as many as listed.

A commit writes one file of vectors. A single one is mapped into memory as it lies; several are copied into one array,
until `compact` makes one file of them. Every block of rows has a checksum, which says what of a damaged file is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import KnowledgeBaseCorruptError
from ...saving.arrays import open_arrays, write_arrays
from ..passage import SCHEMA, ids_digest
from ..row_spool import release_rows
from .growing_array import joined
from .manifest import StoredFile
from .versions import NewFile


_MAX_ROWS_PER_FILE = 50_000
_MAX_BYTES_PER_FILE = 128_000_000
_ROWS_PER_GROUP = 5_000

# Only these repeat; in another column a dictionary, or a shared prefix, could unfold a small file into gigabytes.
_DICTIONARY_COLUMNS = ("source", "licence")
_DICTIONARY_ENCODINGS = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
_MAX_EXPANSION = 200
_MIN_BYTES_ALLOWED = 32_000_000

_ROWS_PER_BLOCK = 50_000
_MAX_DIM = 65_536
# A manifest may claim anything of a file that is lost; this much memory is spent on its rows unseen.
_MAX_SALVAGED_BYTES = 1_000_000_000


def row_files(table: pa.Table, vectors: np.ndarray) -> list[NewFile]:
    """The files for passages and their vectors (N, D): shards of bounded size, and one file of vectors."""
    shards = list(_shards(table))
    passages = [NewFile("passages", "parquet", len(shard), partial(write_passages, shard)) for shard in shards]
    vectors = np.ascontiguousarray(vectors, dtype="<f4")
    starts = range(0, len(vectors), _ROWS_PER_BLOCK)
    fields = {
        "dim": int(vectors.shape[1]),
        "ids_sha256": ids_digest(table),
        "rows_per_block": _ROWS_PER_BLOCK,
        "blocks": [hashlib.sha256(vectors[start : start + _ROWS_PER_BLOCK].data).hexdigest() for start in starts],
    }
    return [*passages, array_file("vectors", len(vectors), {"vectors": vectors}, fields)]


def array_file(
    role: str, rows: int, arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any] | None = None
) -> NewFile:
    """A safetensors file of arrays by name."""
    return NewFile(role, "safetensors", rows, lambda path: write_arrays(path, arrays), fields or {})


def _shards(table: pa.Table) -> Iterator[pa.Table]:
    """Cuts a table into consecutive parts of bounded length and size."""
    sizes = np.zeros(len(table), np.int64)
    for name in ("text", "image", "metadata"):
        sizes += pc.fill_null(pc.binary_length(table[name]), 0).to_numpy()
    ends = np.cumsum(sizes)
    start = 0
    while start < len(table):
        room = ends[start] - sizes[start] + _MAX_BYTES_PER_FILE
        stop = min(max(int(np.searchsorted(ends, room, side="right")), start + 1), start + _MAX_ROWS_PER_FILE)
        yield table.slice(start, stop - start)
        start = stop


def write_passages(table: pa.Table, path: Path) -> None:
    """Writes one shard."""
    for compression in ("zstd", "none"):
        pq.write_table(
            table,
            path,
            row_group_size=_ROWS_PER_GROUP,
            compression=compression,
            use_dictionary=list(_DICTIONARY_COLUMNS),
            write_page_checksum=True,
        )
        release_rows()
        if not _unfolds_too_far(pq.read_metadata(path), path):  # one image in every row would
            return


def read_passages(file: StoredFile) -> pa.Table:
    """Reads one shard.

    Raises:
        FileNotFoundError: If it is gone.
        KnowledgeBaseCorruptError: If it cannot be read, unfolds beyond all measure, or holds something else.
    """
    try:
        with pq.ParquetFile(file.path, page_checksum_verification=True, memory_map=False) as parquet:
            _check_size(parquet.metadata, file)
            table = parquet.read()
        table = table.replace_schema_metadata(None)
        table.validate(full=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise unreadable(file, str(error)[:300]) from error
    if not table.schema.equals(SCHEMA):
        raise unreadable(file, f"it has the columns {str(table.schema.names)[:300]}")
    num_missing = table["id"].null_count
    if len(table) != file.rows or num_missing:
        raise unreadable(file, f"it holds {len(table)} rows with {num_missing} ids missing, not {file.rows}")
    return table


def _check_size(metadata: pq.FileMetaData, file: StoredFile) -> None:
    if metadata.num_rows != file.rows:
        raise unreadable(file, f"it holds {metadata.num_rows} rows instead of {file.rows}")
    if metadata.num_columns != len(SCHEMA):
        raise unreadable(file, f"it has {metadata.num_columns} columns instead of {len(SCHEMA)}")
    if _unfolds_too_far(metadata, file.path):
        raise unreadable(
            file, f"its {file.num_bytes:,} bytes would unfold into more than {_MAX_EXPANSION} times as many"
        )
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for column in (group.column(number) for group in groups for number in range(metadata.num_columns)):
        name = column.path_in_schema
        dictionary_encodings = _DICTIONARY_ENCODINGS if name in _DICTIONARY_COLUMNS else set()
        if not set(column.encodings) <= {"PLAIN", "RLE"} | dictionary_encodings:
            raise unreadable(file, f"its column {name[:80]!r} is encoded as {column.encodings}")


def _unfolds_too_far(metadata: pq.FileMetaData, path: Path) -> bool:
    unfolded = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return bool(unfolded > _MIN_BYTES_ALLOWED + _MAX_EXPANSION * path.stat().st_size)


def read_vectors(file: StoredFile) -> np.ndarray:
    """Maps the vectors of one file into memory, (n, D) in float32, read-only; errors as `read_passages`."""
    vectors = open_arrays(file.path)[0].get("vectors")
    if vectors is None or vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] > _MAX_DIM:
        raise unreadable(file, "it holds no float32 matrix named `vectors`")
    if len(vectors) != file.rows:
        raise unreadable(file, f"it holds {len(vectors)} rows instead of {file.rows}")
    return vectors


def join_vectors(parts: Sequence[np.ndarray], files: Sequence[StoredFile]) -> np.ndarray:
    """The vectors of several files as one array, (N, D); `KnowledgeBaseCorruptError` if they differ in width."""
    filled = [(part, file) for part, file in zip(parts, files, strict=True) if len(part)]
    if not filled:
        return parts[0] if parts else np.zeros((0, 0), np.float32)
    dim = filled[0][0].shape[1]
    for part, file in filled:
        if part.shape[1] != dim:
            raise unreadable(file, f"its vectors are {part.shape[1]} wide, those of other files {dim}")
    return joined([part for part, _ in filled])


def salvage_vectors(file: StoredFile) -> tuple[np.ndarray, np.ndarray]:
    """Reads those rows of a damaged file whose block still has its checksum.

    Returns:
        Vectors (n, D), in which a lost row is the first unit vector, and a bool mask (n,) of the rows that are right.

    Raises:
        KnowledgeBaseCorruptError: If the manifest does not say enough about the file.
    """
    dim, rows_per_block, blocks = (file.fields.get(name) for name in ("dim", "rows_per_block", "blocks"))
    if not (isinstance(dim, int) and isinstance(rows_per_block, int) and isinstance(blocks, list)):
        raise unreadable(file, "it is damaged, and nothing says which of its rows are right")
    if not (0 < dim <= _MAX_DIM and rows_per_block > 0 and len(blocks) == -(-file.rows // rows_per_block)):
        raise unreadable(file, f"it cannot have {len(blocks)} blocks of {rows_per_block} rows of {dim} numbers")
    start = file.num_bytes - file.rows * dim * 4
    num_bytes = file.path.stat().st_size if file.path.is_file() else 0
    if start < 8 or file.num_bytes > max(_MAX_SALVAGED_BYTES, 8 * num_bytes):
        raise unreadable(file, f"{file.rows} rows of {dim} numbers do not fit into {file.num_bytes:,} bytes")
    vectors = np.zeros((file.rows, dim), "<f4")
    vectors[:, 0] = 1
    right = np.zeros(file.rows, bool)
    if num_bytes == 0:
        return vectors, right
    with open(file.path, "rb") as opened:
        for number, expected in enumerate(blocks):
            first = number * rows_per_block
            block = vectors[first : first + rows_per_block]
            opened.seek(start + first * dim * 4)
            data = opened.read(block.nbytes)
            if len(data) == block.nbytes and hashlib.sha256(data).hexdigest() == expected:
                block[:] = np.frombuffer(data, "<f4").reshape(block.shape)
                right[first : first + rows_per_block] = True
    return vectors, right


def unreadable(file: StoredFile, reason: str) -> KnowledgeBaseCorruptError:
    """An error about a file whose content is not what its role promises."""
    if reason.startswith(str(file.path)):
        return KnowledgeBaseCorruptError(reason)
    return KnowledgeBaseCorruptError(
        f"{file.path}: the stored {file.role} cannot be read: {reason}. Download or copy the knowledge base again."
    )
