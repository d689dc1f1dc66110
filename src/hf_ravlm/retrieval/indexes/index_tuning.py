"""Knows how hard an index must search to find what exact search finds, and measures it once after the build.

The one setting of an index, its effort, is the least that reaches the wanted recall on a sample of queries. It is
found for several depths: the ten best of every third row lie as deep as the thirty best of all, so one table serves
larger `k` and filters alike. Costs are counts of compared vectors, not seconds: the same build gives the same table.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from .approximate_search import search_candidates
from .exact_search import exact_search
from .faiss_settings import import_faiss
from .index_types import index_type, inverted_lists
from .search_planning import search_cost


logger = logging.getLogger(__name__)

TUNED_K = 10
_DEPTHS = (1.0, 3.0, 10.0, 30.0)
_NUM_QUERIES = 1024
_NUM_FILTERED_QUERIES = 256
_NOISE_VECTORS = 2_000
# Where the wanted recall is out of reach: so far from the best that can be had, no more effort is spent.
_NEARLY = 0.005


@dataclass(frozen=True)
class EffortTable:
    """How hard to search.

    Attributes:
        candidates: How many times `k` candidates get exact scores.
        depths: The depths that were measured, from 1 up: the wanted number of rows over 10, over the share of rows
            that a filter keeps.
        efforts: `efSearch` or `nprobe` for each of them.
        costs: How many vectors a query is compared with, for each of them.
        recall: The share of the exact ten best that was found, on queries that took no part in the choice.
    """

    candidates: int
    depths: tuple[float, ...]
    efforts: tuple[int, ...]
    costs: tuple[float, ...]
    recall: float

    def effort(self, depth: float) -> int:
        """The effort for a depth: on a straight line between logarithms, in proportion beyond the last one."""
        if depth <= 1:
            return self.efforts[0]
        beyond = max(depth / self.depths[-1], 1.0)
        inside = np.exp(np.interp(np.log(depth), np.log(self.depths), np.log(self.efforts)))
        return int(np.ceil(inside * beyond - 1e-9))

    def cost(self, depth: float) -> float:
        """The number of vectors that a query is compared with at a depth; infinite where it was not measured."""
        if depth <= 1:
            return self.costs[0]
        if depth > self.depths[-1] * 1.001:
            return float("inf")
        return float(np.exp(np.interp(np.log(depth), np.log(self.depths), np.log(self.costs))))


def perturbed_passages(vectors: np.ndarray, num_queries: int, seed: int) -> np.ndarray:
    """Makes queries for vectors that came without any: passages plus noise with the covariance of the passages.

    Passages themselves would flatter the index, for every passage is a place that the index was built around. With
    MiniLM vectors of WordNet glosses, lists of bytes with nprobe 32 / 64 / 128 find .951 / .972 / .986 of the
    neighbours of passages, .911 / .953 / .978 of those of real questions, and .919 / .953 / .978 with this noise; a
    graph with ef 32 / 64 finds .988 / .991, .949 / .976, and .959 / .980. Equal noise in all directions flatters, too
    (.943 / .968 / .984): it leaves the passage's neighbours in their order.

    Args:
        vectors: Unit vectors (N, D).
        num_queries: How many to make.
        seed: Seed of the choice and the noise.

    Returns:
        Unit vectors of shape (num_queries, D) in float32.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(vectors), min(_NOISE_VECTORS, len(vectors)), replace=False))
    sample = np.asarray(vectors[rows])
    # Random sums of centred vectors have their covariance.
    weights = rng.standard_normal((num_queries, len(sample)), dtype=np.float32) / np.sqrt(len(sample))
    passages = np.asarray(vectors[np.sort(rng.integers(len(vectors), size=num_queries))])
    moved = passages + weights @ (sample - sample.mean(axis=0))
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.ascontiguousarray(np.where(norms > 1e-6, moved / np.maximum(norms, 1e-6), passages), np.float32)


def tune(
    index: Any, kind: str, vectors: np.ndarray, recall: float, queries: np.ndarray | None, seed: int
) -> EffortTable:
    """Chooses the effort for every depth on one half of the queries and measures the recall on the other.

    Args:
        index: A FAISS index of this kind over `vectors`.
        kind: A key of `INDEX_TYPES`.
        vectors: Unit vectors (N, D), at least one.
        recall: The wanted share of the exact ten best.
        queries: Unit vectors (n, D) of typical queries, at least 2; `None` makes some of the passages.
        seed: Seed of made queries and of the filters that are tried.
    """
    if queries is None:
        queries = perturbed_passages(vectors, 2 * _NUM_QUERIES, seed)
    queries = queries[: 2 * _NUM_QUERIES]
    chosen, held_out = (np.ascontiguousarray(queries[start::2]) for start in (0, 1))
    k = min(TUNED_K, len(vectors))
    grid = _grid(index, kind, len(vectors))
    rng = np.random.default_rng(seed)
    candidates = 0
    depths: list[float] = []
    efforts: list[int] = []
    costs: list[float] = []
    for depth in _DEPTHS:
        allowed = None if depth == 1 else rng.random(len(vectors)) < 1 / depth
        if allowed is not None and np.count_nonzero(allowed) < k:
            break
        sample = chosen if depth == 1 else chosen[:_NUM_FILTERED_QUERIES]
        trial = _Trial(index, kind, vectors, sample, exact_search(sample, vectors, k, allowed)[1], allowed)
        effort: int | None
        if depth == 1:
            candidates, effort = _cheapest(trial, grid, recall)
        else:
            effort = _least_effort(trial, grid, candidates, recall)
        if effort is None:
            break
        depths.append(depth)
        efforts.append(max(effort, *efforts, 1))
        costs.append(trial.cost(efforts[-1], candidates))
    exact = exact_search(held_out, vectors, k)[1]
    seen = _Trial(index, kind, vectors, held_out, exact, None).recall(efforts[0], candidates)
    return EffortTable(candidates, tuple(depths), tuple(efforts), tuple(costs), seen)


@dataclass(frozen=True)
class _Trial:
    """Queries with their exact answers, to be put to an index at several efforts."""

    index: Any
    kind: str
    vectors: np.ndarray
    queries: np.ndarray
    exact: np.ndarray
    allowed: np.ndarray | None

    def search(self, effort: int, candidates: int) -> np.ndarray:
        """The rows (n, k) that are found."""
        return search_candidates(
            self.index,
            self.kind,
            self.vectors,
            self.queries,
            self.exact.shape[1],
            effort=effort,
            candidates=candidates,
            allowed=self.allowed,
        )[1]

    def recall(self, effort: int, candidates: int) -> float:
        """The share of the exact answers that is found."""
        return found_share(self.search(effort, candidates), self.exact)

    def reaches(self, recall: float, effort: int, candidates: int) -> bool:
        """Whether the recall is reached by more than the error of the mean: a graph misses some queries altogether."""
        shares = _shares(self.search(effort, candidates), self.exact)
        return bool(shares.mean() >= min(recall + shares.std() / np.sqrt(len(shares)), 1.0))

    def cost(self, effort: int, candidates: int) -> float:
        """How many vectors one query is compared with."""
        num_rows = len(self.vectors)
        lists = inverted_lists(self.index)
        if lists is not None:
            return float(lists.nlist + num_rows * min(effort / lists.nlist, 1.0))
        statistics = import_faiss().cvar.hnsw_stats
        before = statistics.ndis
        self.search(effort, candidates)
        return float(statistics.ndis - before) / len(self.queries)


def found_share(rows: np.ndarray, exact: np.ndarray) -> float:
    """The mean recall: which share of the exact rows (n, k) is among the rows found (n, k).

    Example:

    ```python
    >>> from hf_ravlm.retrieval.indexes.index_tuning import found_share
    >>> found_share(np.array([[4, 7], [1, 2]]), np.array([[7, 5], [1, 2]]))
    0.75

    ```
    """
    return float(_shares(rows, exact).mean())


def _shares(rows: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The recall (n,) of each query."""
    shares: np.ndarray = (rows[:, :, None] == exact[:, None, :]).any(axis=1).mean(axis=1)
    return shares


def _grid(index: Any, kind: str, num_vectors: int) -> list[int]:
    """Efforts to try: steps of a fifth."""
    lists = inverted_lists(index)
    least, most = (1, lists.nlist) if lists is not None else (16, min(max(num_vectors, 16), 2048))
    steps = np.geomspace(least, most, max(int(np.ceil(np.log(most / least) / np.log(1.2))) + 1, 1))
    return sorted({int(round(step)) for step in steps})


def _cheapest(trial: _Trial, grid: list[int], recall: float) -> tuple[int, int]:
    """The number of candidates and the effort that reach the recall at the least cost, or come nearest to it."""
    options = []
    k = trial.exact.shape[1]
    for candidates in index_type(trial.kind).candidates:
        effort = _least_effort(trial, grid, candidates, recall)
        if effort is not None:
            cost = search_cost(trial.cost(effort, candidates), k * candidates, trial.kind)
            options.append((cost, candidates, effort))
    if options:
        return min(options)[1:]
    most = index_type(trial.kind).candidates[-1]
    nearly = trial.recall(grid[-1], most) - _NEARLY
    return most, next(effort for effort in grid if trial.recall(effort, most) >= nearly)


def _least_effort(trial: _Trial, grid: list[int], candidates: int, recall: float) -> int | None:
    """The least effort of the grid that reaches the recall, by bisection; `None` if none does."""
    low, high = 0, len(grid)
    while low < high:
        middle = (low + high) // 2
        if trial.reaches(recall, grid[middle], candidates):
            high = middle
        else:
            low = middle + 1
    return grid[low] if low < len(grid) else None
