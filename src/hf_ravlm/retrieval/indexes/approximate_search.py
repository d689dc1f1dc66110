"""Approximate search: candidates of a FAISS index with exact scores, and when exact search is cheaper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import KnowledgeBaseCorruptError
from .exact_search import best_first, exact_scores
from .faiss_settings import import_faiss
from .index_types import index_type, search_parameters


# Codes of few bits need many candidates; the scores in float64 are for those that may be among the best.
_FEW = 4

# Costs are counted in comparisons of exact search, one vector after the other. The constants are measured with FAISS
# 1.15 on vectors of width 384 (a comparison takes a tenth of a microsecond), and good to half as much again.
# From 8 queries on, exact search works by matrix products: it reads vectors once and copies what a filter leaves.
_MIN_QUERIES_FOR_PRODUCTS = 8
_PRODUCT, _READ, _COPY = 0.05, 2.0, 2.0
# The vectors of a graph lie anywhere in memory; so does a candidate, which is kept and scored.
_GRAPH, _CANDIDATE = 1.7, 5.0
# In a list: comparing, and testing whether a row is allowed. Fast scan compares all codes of a list first.
_LIST, _LIST_TEST = 0.45, 0.1
_FAST_SCAN = {"ivf_pq": 0.08, "ivf_opq_pq": 0.08, "ivf_rabitq": 0.27, "binary": 0.1}
# An exact answer misses nothing, and may take so many times as long.
_WORTH_OF_EXACT = 1.15


@dataclass(frozen=True)
class FilledIndex:
    """A FAISS index, its kind (a key of `INDEX_TYPES`), and the unit vectors (N, D) that were added to it."""

    index: Any
    kind: str
    vectors: np.ndarray


def approximate_search(
    filled: FilledIndex, queries: np.ndarray, k: int, effort: int, candidates: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best rows that an index finds, with exact scores, best first; equal scores in the order of rows.

    Args:
        filled: The index, over vectors in float32, contiguous.
        queries: As `exact_search`.
        k: How many rows per query, at most as many as are allowed.
        effort: The value of the index's one setting, `efSearch` or `nprobe`.
        candidates: How many times `k` rows are scored exactly.
        allowed: As `exact_search`.

    Returns:
        Scores (n, k) in float32, rows (n, k) in int64; they end in minus infinity and -1 where fewer were found.

    Raises:
        KnowledgeBaseCorruptError: If the index names a row that does not exist.
    """
    vectors = filled.vectors
    count = min(k * candidates, len(vectors))
    if index_type(filled.kind).effort == "efSearch":
        effort = max(effort, count)
    knows_filters = index_type(filled.kind).effort != "candidates"
    if allowed is not None and not knows_filters:  # as many as will be left when the others are taken out
        count = min(int(np.ceil(count * len(vectors) / max(int(np.count_nonzero(allowed)), 1))), len(vectors))
    selector = None if allowed is None else import_faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    parameters = search_parameters(filled.kind, effort, selector)
    _, rows = filled.index.search(queries, count, params=parameters)  # (n, count)
    if rows.max(initial=-1) >= len(vectors) or rows.min(initial=0) < -1:  # -1 where nothing was found
        raise KnowledgeBaseCorruptError(
            f"The index returned a row outside 0..{len(vectors) - 1}: it is damaged or belongs to other vectors. "
            "Build it again with `build_index`."
        )
    if allowed is not None and not knows_filters:
        rows = np.where((rows >= 0) & allowed[np.maximum(rows, 0)], rows, -1)
        rows = np.take_along_axis(rows, np.argsort(rows < 0, axis=1, kind="stable"), axis=1)  # nothing at the end
    if count > k + _FEW:
        rows = _nearest(queries, vectors, rows, k + _FEW)
    scores = exact_scores(queries, vectors, rows)
    missing = rows < 0
    if missing.any():
        scores[missing] = -np.inf
    return best_first(scores, rows, k)


def _nearest(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """The best `count` of many candidates (n, c), by scores in float32 that FAISS computes where the vectors are."""
    faiss = import_faiss()
    scores, best = np.empty((len(rows), count), np.float32), np.empty((len(rows), count), np.int64)
    inputs = [faiss.swig_ptr(array) for array in (queries, vectors, rows)]
    sizes = vectors.shape[1], len(queries), len(vectors), rows.shape[1], count
    faiss.knn_inner_products_by_idx(*inputs, *sizes, faiss.swig_ptr(scores), faiss.swig_ptr(best), rows.shape[1])
    return best


def search_cost(comparisons: float, candidates: int, kind: str, share: float = 1.0) -> float:
    """Returns the cost of a query that an index compares with so many vectors, `share` of them allowed."""
    if index_type(kind).effort == "efSearch":
        return _GRAPH * comparisons + _CANDIDATE * candidates
    return _FAST_SCAN.get(kind, _LIST_TEST + share * _LIST) * comparisons + _CANDIDATE * candidates


def exact_is_cheaper(
    comparisons: float, candidates: int, kind: str, num_rows: int, num_allowed: int, num_queries: int
) -> bool:
    """Whether exact search is expected to take hardly more time: an index that filters walks through much in vain.

    Args:
        comparisons: With how many vectors the index compares a query, allowed or not; infinite if unknown.
        candidates: How many of them get exact scores.
        kind: A key of `INDEX_TYPES`.
        num_rows: How many vectors there are.
        num_allowed: How many of them a filter keeps; `num_rows` without a filter.
        num_queries: How many queries are asked together.

    >>> [exact_is_cheaper(4000, 20, "hnsw_sq8", 100_000, allowed, num_queries=1) for allowed in (50_000, 5_000)]
    [False, True]
    """
    share = num_allowed / num_rows
    if num_queries < _MIN_QUERIES_FOR_PRODUCTS:
        exact = float(num_allowed)
    else:
        exact = num_allowed * (_PRODUCT + (_READ + (_COPY if share < 1 else 0.0)) / num_queries)
    return exact <= _WORTH_OF_EXACT * search_cost(comparisons, candidates, kind, share)
