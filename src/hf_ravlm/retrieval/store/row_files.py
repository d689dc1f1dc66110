"""Knows how passages lie in Parquet files: shards of bounded size with page checksums, read within bounds.

A checksum of the whole file is compared before it comes here. What is checked here is the rest: that a small file does
not unfold into a huge table, that its columns are ours, and that its ids are the ones its vectors were made for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import KnowledgeBaseCorruptError
from ..passage import SCHEMA
from .manifest import StoredFile


_MAX_ROWS_PER_FILE = 50_000
_MAX_BYTES_PER_FILE = 500_000_000
_ROWS_PER_GROUP = 5_000

# Only these repeat; in another column a dictionary, or a shared prefix, could unfold a small file into gigabytes.
_DICTIONARY_COLUMNS = ("source", "licence")
_PLAIN_ENCODINGS = {"PLAIN", "RLE"}
_DICTIONARY_ENCODINGS = {*_PLAIN_ENCODINGS, "RLE_DICTIONARY", "PLAIN_DICTIONARY"}
_MAX_EXPANSION = 200
_MIN_BYTES_ALLOWED = 32_000_000


def shards(table: pa.Table) -> Iterator[pa.Table]:
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
    _write_table(table, path, "zstd")
    if _unfolds_too_far(pq.read_metadata(path), path):  # such as one image in every row
        _write_table(table, path, "none")


def _write_table(table: pa.Table, path: Path, compression: str) -> None:
    pq.write_table(
        table,
        path,
        row_group_size=_ROWS_PER_GROUP,
        compression=compression,
        use_dictionary=list(_DICTIONARY_COLUMNS),
        write_page_checksum=True,
    )


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
        raise broken(file, str(error)[:300]) from error
    if not table.schema.equals(SCHEMA):
        raise broken(file, f"it has the columns {str(table.schema.names)[:300]}")
    if len(table) != file.rows or table["id"].null_count:
        raise broken(file, f"it holds {len(table)} rows with {table['id'].null_count} ids missing, not {file.rows}")
    return table


def broken(file: StoredFile, reason: str) -> KnowledgeBaseCorruptError:
    """An error about a file whose content is not what its role promises."""
    if reason.startswith(str(file.path)):
        return KnowledgeBaseCorruptError(reason)
    return KnowledgeBaseCorruptError(
        f"{file.path}: the stored {file.role} cannot be read: {reason}. Download or copy the knowledge base again."
    )


def _check_size(metadata: pq.FileMetaData, file: StoredFile) -> None:
    if metadata.num_rows != file.rows:
        raise broken(file, f"it holds {metadata.num_rows} rows instead of {file.rows}")
    if metadata.num_columns != len(SCHEMA):
        raise broken(file, f"it has {metadata.num_columns} columns instead of {len(SCHEMA)}")
    if _unfolds_too_far(metadata, file.path):
        raise broken(file, f"its {file.num_bytes:,} bytes would unfold into more than {_MAX_EXPANSION} times as many")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for column in (group.column(number) for group in groups for number in range(metadata.num_columns)):
        name = column.path_in_schema
        known = _DICTIONARY_ENCODINGS if name in _DICTIONARY_COLUMNS else _PLAIN_ENCODINGS
        if not known.issuperset(column.encodings):
            raise broken(file, f"its column {name[:80]!r} is encoded as {column.encodings}")


def _unfolds_too_far(metadata: pq.FileMetaData, path: Path) -> bool:
    unfolded = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return bool(unfolded > _MIN_BYTES_ALLOWED + _MAX_EXPANSION * path.stat().st_size)
