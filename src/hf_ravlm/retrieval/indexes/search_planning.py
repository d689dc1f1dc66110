"""Knows when comparing a query with everything that is allowed costs less than asking an index.

An index that filters walks through much that is not allowed: when little is, it is slower than exact search, and finds
less. Costs are counted in comparisons of exact search, one vector after the other; the constants are measured with
FAISS 1.15 on vectors of width 384 (a comparison takes a tenth of a microsecond), and good to half as much again.
"""

from __future__ import annotations

from .index_types import index_type


# From 8 queries on, exact search works by matrix products, which read the vectors once for all of them, and copies
# those that a filter leaves.
_MIN_QUERIES_FOR_PRODUCTS = 8
_PRODUCT, _READ, _COPY = 0.05, 2.0, 2.0
# The vectors of a graph lie anywhere in memory.
_GRAPH = 1.7
# In a list: comparing, and testing whether a row is allowed. Fast scan compares all codes of a list first.
_LIST, _LIST_TEST = 0.45, 0.1
_FAST_SCAN = {"ivf_pq": 0.08, "ivf_opq_pq": 0.08, "ivf_rabitq": 0.27}


# Keeping a candidate, and scoring it: its vector lies anywhere in memory.
_CANDIDATE = 5.0


def search_cost(comparisons: float, candidates: int, kind: str, share: float = 1.0) -> float:
    """The cost of a query to an index.

    Args:
        comparisons: With how many vectors the index compares a query, allowed or not.
        candidates: How many of them get exact scores.
        kind: The kind of the index, a key of `INDEX_TYPES`.
        share: The share of the vectors that is allowed.
    """
    if index_type(kind).effort == "efSearch":
        return _GRAPH * comparisons + _CANDIDATE * candidates
    return _FAST_SCAN.get(kind, _LIST_TEST + share * _LIST) * comparisons + _CANDIDATE * candidates


def exact_is_cheaper(comparisons: float, kind: str, num_rows: int, num_allowed: int, num_queries: int) -> bool:
    """Whether exact search is expected to take less time than an approximate one.

    Args:
        comparisons: With how many vectors the index compares a query, allowed or not; infinite if unknown.
        kind: The kind of the index, a key of `INDEX_TYPES`.
        num_rows: How many vectors there are.
        num_allowed: How many of them a filter keeps; `num_rows` without a filter.
        num_queries: How many queries are asked together.

    Example:

    ```python
    >>> from hf_ravlm.retrieval.indexes.search_planning import exact_is_cheaper
    >>> [exact_is_cheaper(4000, "hnsw_sq8", 100_000, allowed, num_queries=1) for allowed in (50_000, 5_000)]
    [False, True]

    ```
    """
    share = num_allowed / num_rows
    if num_queries < _MIN_QUERIES_FOR_PRODUCTS:
        exact = float(num_allowed)
    else:
        exact = num_allowed * (_PRODUCT + (_READ + (_COPY if share < 1 else 0.0)) / num_queries)
    return exact <= search_cost(comparisons, 0, kind, share)
