"""Knows which files make up a stored knowledge base: passages as Parquet with page checksums, vectors as safetensors.

The vectors are the source of truth for every index; an exact index is made of them in no time, so none is stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import KnowledgeBaseCorruptError, KnowledgeBaseNotFoundError
from .passage_table import SCHEMA
from .safe_paths import safe_relpath
from .storage import Generation, NewFile, StoredFile, load_generation, write_generation


_MAX_ROWS_PER_FILE = 50_000
_MAX_BYTES_PER_FILE = 500_000_000
_ROWS_PER_GROUP = 5_000


class StoredKnowledge(NamedTuple):
    """What a stored knowledge base holds: passages, their vectors (N, D), and which encoder made these."""

    table: pa.Table
    vectors: np.ndarray
    encoder_name: str
    encoder_fingerprint: str


def save_knowledge(folder: str | os.PathLike[str], knowledge: StoredKnowledge) -> str:
    """Stores a knowledge base as the next generation in a folder; see `write_generation`."""
    table, vectors = knowledge.table, knowledge.vectors
    shards = [NewFile("passages", "parquet", len(shard), partial(_write_passages, shard)) for shard in _shards(table)]
    fields = {
        "rows": len(table),
        "encoder": {"name": knowledge.encoder_name, "fingerprint": knowledge.encoder_fingerprint},
        "index": {"type": "flat", "metric": "inner_product", "dim": int(vectors.shape[1])},
    }
    vector_file = NewFile("vectors", "safetensors", len(vectors), partial(_write_vectors, vectors))
    return write_generation(folder, fields, [*shards, vector_file])


def load_knowledge(folder: str | os.PathLike[str]) -> StoredKnowledge:
    """Reads and verifies a stored knowledge base.

    Raises:
        KnowledgeBaseNotFoundError: If the folder holds none.
        KnowledgeBaseCorruptError: If a file is damaged or missing, or passages and vectors differ in number.
    """
    return load_generation(folder, _read_knowledge, ("passages", "vectors"))


def load_passages(folder: str | os.PathLike[str]) -> pa.Table:
    """Reads and verifies the passages alone; errors as `load_knowledge`."""
    return load_generation(folder, _read_passages, ("passages",))


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


def _write_passages(table: pa.Table, path: Path) -> None:
    pq.write_table(
        table,
        path,
        row_group_size=_ROWS_PER_GROUP,
        compression="zstd",
        use_dictionary=["source", "licence"],
        write_page_checksum=True,
    )


def _write_vectors(vectors: np.ndarray, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"vectors": np.ascontiguousarray(vectors, dtype=np.float32)}, path)


def _read_knowledge(generation: Generation) -> StoredKnowledge:
    table = _read_passages(generation)
    vector_files = [file for file in generation.files if file.role == "vectors"]
    if len(vector_files) != 1:
        raise _unusable(generation, f"it lists {len(vector_files)} vector files instead of 1")
    vectors = _read_vectors(vector_files[0])
    if len(vectors) != len(table):
        raise _unusable(generation, f"it holds {len(table)} passages and {len(vectors)} vectors")
    encoder = generation.manifest.get("encoder")
    if not isinstance(encoder, dict) or not isinstance(encoder.get("fingerprint"), str):
        raise _unusable(generation, "it names no encoder")
    return StoredKnowledge(table, vectors, str(encoder.get("name")), encoder["fingerprint"])


def _read_passages(generation: Generation) -> pa.Table:
    parts = [_read_passage_file(file) for file in generation.files if file.role == "passages"]
    table = pa.concat_tables([SCHEMA.empty_table(), *parts])
    if len(table) != generation.manifest.get("rows"):
        raise _unusable(generation, f"it lists {generation.manifest.get('rows')} passages and holds {len(table)}")
    return table


def _read_passage_file(file: StoredFile) -> pa.Table:
    try:
        table = pq.read_table(file.path, page_checksum_verification=True, memory_map=False, partitioning=None)
        table = table.replace_schema_metadata(None)
        table.validate(full=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _broken(file, str(error)) from error
    if not table.schema.equals(SCHEMA):
        raise _broken(file, f"it has the columns {table.schema.names}")
    _check_row_count(len(table), file)
    return table


def _read_vectors(file: StoredFile) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        vectors: np.ndarray | None = load_file(file.path).get("vectors")
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(file, str(error)) from error
    if vectors is None or vectors.ndim != 2 or vectors.dtype != np.float32:
        raise _broken(file, "it holds no float32 matrix named `vectors`")
    _check_row_count(len(vectors), file)
    return vectors


def _check_row_count(num_rows: int, file: StoredFile) -> None:
    if num_rows != file.rows:
        raise _broken(file, f"it holds {num_rows} rows instead of {file.rows}")


def _broken(file: StoredFile, reason: str) -> KnowledgeBaseCorruptError:
    return KnowledgeBaseCorruptError(
        f"{file.path}: the stored {file.role} cannot be read: {reason}. Download or copy the knowledge base again."
    )


def _unusable(generation: Generation, reason: str) -> KnowledgeBaseCorruptError:
    return KnowledgeBaseCorruptError(
        f"{generation.folder}: the manifest {generation.name} does not fit its files: {reason}. Build the knowledge "
        "base again."
    )
