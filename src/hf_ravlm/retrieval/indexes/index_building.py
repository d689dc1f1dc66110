"""Training, filling, copying and reading FAISS indexes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import KnowledgeBaseCorruptError
from .faiss_settings import import_faiss, matrix_products, reading_limits
from .index_types import POINTS_PER_LIST, empty_index, index_type, inverted_lists, metric_of


_MIN_SAMPLE = 16_384
_ROWS_PER_ADD = 65_536


def trained_index(vectors: np.ndarray, kind: str, seed: int) -> Any:
    """Returns an empty FAISS index that was trained on a sample of unit vectors (N, D).

    k-means on 40 vectors per list for 8 rounds costs a twentieth of FAISS's own 256 for 25.
    """
    index = empty_index(kind, len(vectors), vectors.shape[1], seed)
    lists = inverted_lists(index)
    size = max(_MIN_SAMPLE, POINTS_PER_LIST * lists.nlist if lists is not None else 0)
    if size < len(vectors):
        rows = np.random.default_rng(seed).choice(len(vectors), size, replace=False)
        vectors = np.ascontiguousarray(vectors[np.sort(rows)])
    with matrix_products():
        index.train(vectors)
    return index


def add_rows(index: Any, vectors: np.ndarray) -> None:
    """Adds unit vectors (n, D) to a trained FAISS index, in blocks: a memory map is never held as a whole."""
    for start in range(0, len(vectors), _ROWS_PER_ADD):
        index.add(vectors[start : start + _ROWS_PER_ADD])


def own_copy(index: Any) -> Any:
    """Returns a copy that owns all its memory, so that it can grow while the first, or its file, is searched."""
    faiss = import_faiss()
    return faiss.deserialize_index(faiss.serialize_index(index))


def read_faiss_index(path: str | os.PathLike[str], kind: str, num_rows: int, dim: int, mmap: bool) -> Any:
    """Reads or maps an index file whose checksum was compared, within limits of memory.

    It must hold `num_rows` vectors of width `dim` in an index of this kind that compares by inner products.

    Raises:
        KnowledgeBaseCorruptError: If the file is missing, damaged, or does not fit.
    """
    faiss = import_faiss()
    expected = index_type(kind).classes
    try:
        with reading_limits(Path(path).stat().st_size):
            index = faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except (RuntimeError, OSError, MemoryError) as error:
        raise _unfit(path, f"it cannot be read ({str(error).strip()[:200]})") from error
    found: tuple[str, ...] = (type(index).__name__,)
    if hasattr(index, "chain"):
        found += (type(faiss.downcast_index(index.index)).__name__,)
    if found != expected:
        raise _unfit(path, f"it holds {' of '.join(found)} instead of {' of '.join(expected)}")
    if (index.ntotal, index.d) != (num_rows, dim):
        raise _unfit(path, f"it holds {index.ntotal} vectors of width {index.d} instead of {num_rows} of width {dim}")
    if index.metric_type != metric_of(kind) or not index.is_trained:
        raise _unfit(path, "it compares by another measure than its kind does, or was never trained")
    return index


def _unfit(path: str | os.PathLike[str], reason: str) -> KnowledgeBaseCorruptError:
    advice = "Nothing is lost: build it again from the vectors with `build_index`."
    return KnowledgeBaseCorruptError(f"{path}: the index file cannot be used: {reason}. {advice}")
