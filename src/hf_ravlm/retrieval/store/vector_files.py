"""Knows how vectors lie in safetensors files: one file per commit, with a checksum for every block of rows.

One file is mapped into memory as it lies. Several, after passages were added, are copied into one array; `compact`
makes one file of them again. The checksums of the blocks say which rows of a damaged file are still what they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...saving.arrays import open_arrays, write_arrays
from .manifest import StoredFile
from .row_files import broken
from .versions import NewFile


_ROWS_PER_BLOCK = 50_000
_MAX_DIM = 65_536
# A manifest may claim anything of a file that is lost; this much memory is spent on its rows unseen.
_MAX_SALVAGED_BYTES = 1_000_000_000


def vector_file(vectors: np.ndarray, ids_sha256: str) -> NewFile:
    """The file for vectors (N, D) of passages whose ids have a digest, see `ids_digest`."""
    vectors = np.ascontiguousarray(vectors, dtype="<f4")
    starts = range(0, len(vectors), _ROWS_PER_BLOCK)
    fields = {
        "dim": int(vectors.shape[1]),
        "ids_sha256": ids_sha256,
        "rows_per_block": _ROWS_PER_BLOCK,
        "blocks": [hashlib.sha256(vectors[start : start + _ROWS_PER_BLOCK].data).hexdigest() for start in starts],
    }
    return NewFile("vectors", "safetensors", len(vectors), partial(_write_vectors, vectors), fields)


def _write_vectors(vectors: np.ndarray, path: Path) -> None:
    write_arrays(path, {"vectors": vectors})


def read_vectors(file: StoredFile) -> np.ndarray:
    """Maps the vectors of one file into memory, (n, D) in float32, read-only.

    Raises:
        FileNotFoundError: If it is gone.
        KnowledgeBaseCorruptError: If it holds something else.
    """
    vectors = open_arrays(file.path)[0].get("vectors")
    if vectors is None or vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] > _MAX_DIM:
        raise broken(file, "it holds no float32 matrix named `vectors`")
    if len(vectors) != file.rows:
        raise broken(file, f"it holds {len(vectors)} rows instead of {file.rows}")
    return vectors


def join_vectors(parts: Sequence[np.ndarray], files: Sequence[StoredFile]) -> np.ndarray:
    """Joins the vectors of several files, (N, D); a single one stays mapped.

    Raises:
        KnowledgeBaseCorruptError: If they differ in width.
    """
    filled = [(part, file) for part, file in zip(parts, files, strict=True) if len(part)]
    if not filled:
        return parts[0] if parts else np.zeros((0, 0), np.float32)
    for part, file in filled:
        if part.shape[1] != filled[0][0].shape[1]:
            raise broken(file, f"its vectors are {part.shape[1]} wide, those of other files {filled[0][0].shape[1]}")
    return filled[0][0] if len(filled) == 1 else np.concatenate([part for part, _ in filled])


def salvage_vectors(file: StoredFile) -> tuple[np.ndarray, np.ndarray]:
    """Reads those rows of a damaged file whose block still has its checksum.

    Returns:
        Vectors (n, D), in which a lost row is the first unit vector, and a mask (n,) of the rows that are right.

    Raises:
        KnowledgeBaseCorruptError: If the manifest does not say enough about the file.
    """
    dim, rows_per_block, blocks = (file.fields.get(name) for name in ("dim", "rows_per_block", "blocks"))
    if not (isinstance(dim, int) and isinstance(rows_per_block, int) and isinstance(blocks, list)):
        raise broken(file, "it is damaged, and nothing says which of its rows are right")
    if not (0 < dim <= _MAX_DIM and rows_per_block > 0 and len(blocks) == -(-file.rows // rows_per_block)):
        raise broken(file, f"it cannot have {len(blocks)} blocks of {rows_per_block} rows of {dim} numbers")
    start = file.num_bytes - file.rows * dim * 4
    num_bytes = file.path.stat().st_size if file.path.is_file() else 0
    if start < 8 or file.num_bytes > max(_MAX_SALVAGED_BYTES, 8 * num_bytes):
        raise broken(file, f"{file.rows} rows of {dim} numbers do not fit into {file.num_bytes:,} bytes")
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
