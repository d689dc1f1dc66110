"""Exact search for the nearest of many unit vectors, in place, one query or a thousand at a time.

Three steps: (1) a scan gives a few more candidates than asked for, with scores that are off by a known bound: a pass
over the rows for single queries, matrix products for batches, in bfloat16 where the processor computes with it;
(2) the candidates' scores are computed again in float64; (3) a query is done if the bound proves that no other vector
can belong to its answer; the rest, such as queries with many equal vectors, collect all vectors within the bound. So
the answer is the same whatever the size of the batch, and equal vectors come in the order of their rows.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np

from ..unit_vectors import UNIT_TOLERANCE
from .faiss_settings import import_faiss, matrix_products


# From this many queries on, matrix products beat as many passes over the vectors; and those in bfloat16 the others.
_MIN_QUERIES_FOR_BLAS = 8
_MIN_QUERIES_FOR_BFLOAT16 = 16
_QUERIES_PER_BLOCK = 1024
_ROWS_PER_BFLOAT16_BLOCK = 16_384
_ROWS_PER_BLOCK = 65_536
_ELEMENTS_PER_RERANK = 1_000_000

# Both vectors and the result are rounded to 8 bits of mantissa, relative error 2**-9 each; by Cauchy-Schwarz no more
# for the sum. A tenth is added for terms of higher order and for lengths within the tolerance.
_BFLOAT16_ERROR = 1.1 * 3 * 2.0**-9


def exact_search(
    queries: np.ndarray, vectors: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best rows of every query, best first; equal scores in the order of rows.

    Args:
        queries: Unit vectors (n, D) in float32, contiguous.
        vectors: Unit vectors (N, D) in float32, contiguous; they are read where they are, also in a memory map.
        k: How many rows per query, at least 1.
        allowed: Which rows may be found, bool of shape (N,); `None` for all.

    Returns:
        Cosines (n, min(k, number of allowed rows)) in float32, and rows of the same shape in int64.

    >>> vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    >>> exact_search(vectors[:1], vectors, k=2)
    (array([[1. , 0.6]], dtype=float32), array([[0, 2]]))
    """
    rows = None if allowed is None or allowed.all() else np.flatnonzero(allowed)
    k = min(k, len(vectors) if rows is None else len(rows))
    if k == 0 or len(queries) == 0:
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
    parts = [
        _search_block(queries[start : start + _QUERIES_PER_BLOCK], vectors, k, rows)
        for start in range(0, len(queries), _QUERIES_PER_BLOCK)
    ]
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([found for _, found in parts])


def exact_scores(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the cosines (n, c) in float32 between queries (n, D) and their own rows (n, c) of vectors (N, D).

    Computed in float64 and rounded once, so that a pair has one score, wherever it stands in whatever batch.
    """
    scores = np.empty(rows.shape, np.float32)
    step = max(_ELEMENTS_PER_RERANK // max(rows.shape[1] * vectors.shape[1], 1), 1)
    for start in range(0, len(queries), step):
        chosen = vectors[rows[start : start + step]].astype(np.float64)  # (n, c, D)
        wide = queries[start : start + step].astype(np.float64)[:, :, None]
        scores[start : start + step] = np.matmul(chosen, wide)[..., 0]
    return scores


def best_first(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best `k` of candidates (n, c), best first; equal scores in the order of rows."""
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    queries = np.arange(len(rows))[:, None]
    return scores[queries, order], rows[queries, order]


def _search_block(
    queries: np.ndarray, vectors: np.ndarray, k: int, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    num_allowed = len(vectors) if rows is None else len(rows)
    in_bfloat16 = len(queries) >= _MIN_QUERIES_FOR_BFLOAT16 and _has_fast_bfloat16()
    rounding = _float32_error(vectors.shape[1]) + (_BFLOAT16_ERROR if in_bfloat16 else 0.0)
    count = min(2 * k + 16 if in_bfloat16 else k + 8, num_allowed)
    if len(queries) < _MIN_QUERIES_FOR_BLAS:
        approximate, candidates = _pass_over_rows(queries, vectors, count, rows)
    else:
        approximate, candidates = _products(queries, vectors, count, rows, in_bfloat16)
    scores, found = best_first(exact_scores(queries, vectors, candidates), candidates, k)
    if count < num_allowed:
        # Whatever is no candidate scores at most the worst candidate's approximate score plus the error.
        open_cases = np.flatnonzero(scores[:, -1] <= approximate.min(axis=1) + rounding)
        for case in open_cases:
            scores[case], found[case] = _all_within_reach(queries[case], vectors, scores[case, -1], k, rows)
    return scores, found


def _pass_over_rows(
    queries: np.ndarray, vectors: np.ndarray, count: int, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    faiss = import_faiss()
    if rows is None:
        scores, found = faiss.knn(queries, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        scores, found = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
        pointers = [faiss.swig_ptr(array) for array in (queries, vectors, scores, found)]
        sizes = queries.shape[1], len(queries), len(vectors), count
        # A list of rows is read row by row; with a bitmap, FAISS would test every place of it for every query.
        faiss.knn_inner_product(*pointers[:2], *sizes, *pointers[2:], faiss.IDSelectorArray(rows))
    return scores, _checked(found, len(vectors))


def _products(
    queries: np.ndarray, vectors: np.ndarray, count: int, rows: np.ndarray | None, in_bfloat16: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` candidates among all vectors, or those at some rows, by matrix products block by block."""
    scan, block = (_bfloat16_scan, _ROWS_PER_BFLOAT16_BLOCK) if in_bfloat16 else (_float32_scan, _ROWS_PER_BLOCK)
    total = len(vectors) if rows is None else len(rows)
    scores, found = [], []
    for start in range(0, total, block):
        stop = min(start + block, total)
        part = vectors[start:stop] if rows is None else vectors[rows[start:stop]]
        part_scores, places = scan(queries, part, min(count, stop - start))
        scores.append(part_scores)
        found.append(places + start if rows is None else rows[start:stop][places])
    all_scores, all_rows = np.concatenate(scores, axis=1), np.concatenate(found, axis=1)
    best = np.argpartition(-all_scores, count - 1, axis=1)[:, :count]
    return np.take_along_axis(all_scores, best, axis=1), np.take_along_axis(all_rows, best, axis=1)


def _float32_scan(queries: np.ndarray, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    faiss = import_faiss()
    with matrix_products():
        scores, places = faiss.knn(queries, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, _checked(places, len(vectors))


def _bfloat16_scan(queries: np.ndarray, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    import torch

    with torch.inference_mode():
        products = _as_tensor(queries).bfloat16() @ _as_tensor(vectors).bfloat16().mT  # (n, N)
        scores, places = products.topk(count, dim=1, sorted=False)
        return scores.float().numpy(), places.numpy()


def _as_tensor(array: np.ndarray) -> Any:
    """A tensor over the same memory, which is only read: torch warns of memory that cannot be written."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


@lru_cache(maxsize=1)
def _has_fast_bfloat16() -> bool:
    import torch

    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_tile"))


def _all_within_reach(
    query: np.ndarray, vectors: np.ndarray, reached: float, k: int, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The exact answer of one query, of which `k` rows are known to score at least `reached`."""
    threshold = reached - _float32_error(vectors.shape[1])
    blocks = (vectors[start : start + _ROWS_PER_BLOCK] for start in range(0, len(vectors), _ROWS_PER_BLOCK))
    within = np.flatnonzero(np.concatenate([block @ query >= threshold for block in blocks]))
    within = within if rows is None else np.intersect1d(within, rows, assume_unique=True)
    parts = [within[None, start : start + _ROWS_PER_BLOCK] for start in range(0, len(within), _ROWS_PER_BLOCK)]
    scores = np.concatenate([exact_scores(query[None], vectors, part) for part in parts], axis=1)
    best_scores, best_rows = best_first(scores, within[None], k)
    return best_scores[0], best_rows[0]


def _float32_error(dim: int) -> float:
    """A bound on the error of an inner product of two unit vectors in float32, in whatever order it is summed.

    n u / (1 - n u) with u = 2**-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and one
    rounding of the result of each side.
    """
    unit = 2.0**-24
    return (1 + UNIT_TOLERANCE) ** 2 * ((dim + 2) * unit / (1 - dim * unit)) + 2 * unit


def _checked(rows: np.ndarray, num_rows: int) -> np.ndarray:
    # FAISS pads with -1, and `passages[-1]` would be the last passage.
    if rows.size and (rows.min() < 0 or rows.max() >= num_rows):
        raise RuntimeError(f"FAISS returned rows outside 0..{num_rows - 1}; please report this.")
    return rows
