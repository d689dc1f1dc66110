"""Knows how to ask a FAISS index for candidates and how to make an answer of them with exact scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import KnowledgeBaseCorruptError
from .exact_search import best_first, exact_scores, exact_search
from .faiss_settings import import_faiss
from .index_types import index_type, search_parameters


# Codes of few bits need many candidates; the scores in float64 are for those that may be among the best.
_FEW = 4


def approximate_search(
    index: Any,
    kind: str,
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    effort: int,
    candidates: int,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best rows that an index finds, with exact scores, best first; equal scores in the order of rows.

    Args:
        index: A FAISS index of this kind over `vectors`.
        kind: A key of `INDEX_TYPES`.
        vectors: Unit vectors (N, D) in float32, contiguous.
        queries: Unit vectors (n, D) in float32, contiguous.
        k: How many rows per query, at most as many as are allowed.
        effort: The value of the index's one setting, `efSearch` or `nprobe`.
        candidates: How many times `k` rows are scored exactly.
        allowed: Which rows may be found, bool of shape (N,); `None` for all.

    Returns:
        Scores (n, k) in float32, rows (n, k) in int64, all valid: a query for which the index found fewer than `k`
        is answered by exact search.

    Raises:
        KnowledgeBaseCorruptError: If the index names a row that does not exist.
    """
    scores, rows = search_candidates(
        index, kind, vectors, queries, k, effort=effort, candidates=candidates, allowed=allowed
    )
    short = np.flatnonzero(rows[:, -1] < 0)
    if len(short):
        scores[short], rows[short] = exact_search(queries[short], vectors, k, allowed)
    return scores, rows


def search_candidates(
    index: Any,
    kind: str,
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    effort: int,
    candidates: int,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `approximate_search`, but where the index found too little, rows end in -1 and scores in minus infinity."""
    count = min(k * candidates, len(vectors))
    if index_type(kind).effort == "efSearch":
        effort = max(effort, count)
    selector = None if allowed is None else import_faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    parameters = search_parameters(kind, effort, selector)
    _, rows = index.search(queries, count, params=parameters)  # (n, count), -1 where nothing was found
    if rows.max(initial=-1) >= len(vectors) or rows.min(initial=0) < -1:
        raise KnowledgeBaseCorruptError(
            f"The index returned a row outside 0..{len(vectors) - 1}: it is damaged or belongs to other vectors. "
            "Build it again with `build_index`."
        )
    if count > k + _FEW:
        rows = _nearest(queries, vectors, rows, k + _FEW)
    scores = exact_scores(queries, vectors, rows)
    scores[rows < 0] = -np.inf
    return best_first(scores, rows, k)


def _nearest(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """The best `count` of many candidates (n, c), by scores in float32 that FAISS computes where the vectors are."""
    faiss = import_faiss()
    scores, best = np.empty((len(rows), count), np.float32), np.empty((len(rows), count), np.int64)
    inputs = [faiss.swig_ptr(array) for array in (queries, vectors, rows)]
    sizes = vectors.shape[1], len(queries), len(vectors), rows.shape[1], count
    faiss.knn_inner_products_by_idx(*inputs, *sizes, faiss.swig_ptr(scores), faiss.swig_ptr(best), rows.shape[1])
    return best
