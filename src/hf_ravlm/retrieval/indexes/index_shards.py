"""Knows how an index is built in shards, by any number of processes, and is that of a single build, bit for bit.

Three steps: (1) `write_trained_index` once; (2) `write_index_shard` for every range of rows, anywhere, in any order;
(3) `index_from_shards`. No engine is needed but whatever starts processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from .faiss_settings import import_faiss
from .index_building import ROWS_PER_ADD, trained_index
from .index_types import index_type, inverted_lists
from .vector_index import ApproximateIndex, check_unit_vectors, tuned_index


def write_trained_index(path: str | os.PathLike[str], vectors: np.ndarray, kind: str, seed: int = 0) -> None:
    """Trains an index for a corpus and writes it, empty: the first of the three steps of a sharded build.

    Args:
        path: The file to write.
        vectors: The unit vectors (N, D) of the whole corpus, in float32; may be a memory map.
        kind: A kind with inverted lists: `"ivf_sq8"`, `"ivf_rabitq"`, ...
        seed: Seed of sample and k-means.

    Raises:
        InvalidInputError: If the kind has no inverted lists, for only these can be merged.
    """
    if index_type(kind).effort != "nprobe":
        raise InvalidInputError(f"An index of kind {kind!r} cannot be merged from shards. Choose one with 'ivf'.")
    import_faiss().write_index(trained_index(vectors, kind, seed), os.fspath(path))


def write_index_shard(
    path: str | os.PathLike[str], trained: str | os.PathLike[str], vectors: np.ndarray, first_row: int
) -> None:
    """Fills a copy of a trained index with one range of rows: the second step, one call per process.

    Args:
        path: The file to write.
        trained: What `write_trained_index` wrote.
        vectors: The unit vectors (n, D) of this range.
        first_row: The row of the first of them in the whole corpus.
    """
    faiss = import_faiss()
    index = faiss.read_index(os.fspath(trained))
    for start in range(0, len(vectors), ROWS_PER_ADD):
        block = vectors[start : start + ROWS_PER_ADD]
        index.add_with_ids(block, np.arange(first_row + start, first_row + start + len(block)))
    faiss.write_index(index, os.fspath(path))


def index_from_shards(
    trained: str | os.PathLike[str],
    shards: Sequence[str | os.PathLike[str]],
    vectors: Any,
    kind: str,
    *,
    recall: float = 0.95,
    queries: Any | None = None,
    num_threads: int | None = None,
    seed: int = 0,
) -> ApproximateIndex:
    """Merges the shards of a corpus: the third step.

    Args:
        trained: What `write_trained_index` wrote.
        shards: What `write_index_shard` wrote, in the order of rows. Files from elsewhere must not be given: they are
            read as they are.
        vectors: The unit vectors (N, D) of the whole corpus; may be a memory map.
        kind: The kind that was trained.
        recall: As in `build_index`, and so are the others.
        queries: See there.
        num_threads: See there.
        seed: See there.

    Raises:
        InvalidInputError: If the shards do not hold as many rows as there are vectors.
    """
    checked = check_unit_vectors(vectors, "passage vectors")
    index = merged_index(trained, shards)
    if index.ntotal != len(checked):
        raise InvalidInputError(
            f"{len(shards)} shards hold {index.ntotal} rows, but there are {len(checked)} vectors. Pass every shard "
            "once, in the order of rows."
        )
    return tuned_index(index, kind, checked, recall, queries=queries, num_threads=num_threads, seed=seed)


def merged_index(trained: str | os.PathLike[str], shards: Sequence[str | os.PathLike[str]]) -> Any:
    """Returns the FAISS index of the whole corpus: the third step; `index_from_shards` makes a `VectorIndex` of it.

    Args:
        trained: What `write_trained_index` wrote.
        shards: What `write_index_shard` wrote, in the order of rows.
    """
    faiss = import_faiss()
    index = faiss.read_index(os.fspath(trained))
    for shard in shards:
        part = faiss.read_index(os.fspath(shard))
        index.merge_from(part, 0) if not hasattr(index, "chain") else _merge_behind_rotation(index, part)
    return index


def _merge_behind_rotation(index: Any, part: Any) -> None:
    inverted_lists(index).merge_from(inverted_lists(part), 0)  # type: ignore[union-attr]
    index.ntotal = index.index.ntotal
