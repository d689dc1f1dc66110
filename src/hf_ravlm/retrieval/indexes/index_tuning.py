"""The least effort with which an index reaches a wanted recall, measured once after the build and kept in a table.

It is measured for several depths: the ten best of every third row lie as deep as the thirty best of all, so one table
serves larger `k` and filters alike. Costs are counts of compared vectors, not seconds: the same build gives the same
table. (`faiss.ParameterSpace` goes by the clock and knows no filters.)
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import KnowledgeBaseCorruptError
from .approximate_search import FilledIndex, approximate_search, search_cost
from .exact_search import exact_search
from .faiss_settings import import_faiss
from .index_types import index_type, inverted_lists


TUNED_K = 10
_DEPTHS = (1.0, 3.0, 10.0, 30.0)
_NUM_QUERIES = 1024
_NUM_FILTERED_QUERIES = 256
_NOISE_VECTORS = 2_000
_MAX_EFFORT = 1_000_000
# Where the wanted recall is out of reach: so far from the best that can be had, no more effort is spent.
_NEARLY = 0.005


@dataclass(frozen=True)
class EffortTable:
    """How hard to search.

    Attributes:
        depths: What was measured, from 1 up: the wanted number of rows over 10, over the share that a filter keeps.
        efforts: `efSearch` or `nprobe` for each of them.
        costs: How many vectors a query is compared with, for each of them.
        candidates: How many times `k` candidates get exact scores, for each of them.
        recall: The share of the exact ten best that was found, on queries that took no part in the choice.
    """

    depths: tuple[float, ...]
    efforts: tuple[int, ...]
    costs: tuple[float, ...]
    candidates: tuple[int, ...]
    recall: float

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], path: str | os.PathLike[str]) -> tuple[EffortTable, dict[str, Any]]:
        """Returns the table in the stored description of an index, and what else the description says.

        Args:
            spec: The description. It may come from a stranger: every number is checked.
            path: The file of the index, for messages.

        Raises:
            KnowledgeBaseCorruptError: If something is missing, or a number cannot be.
        """
        try:
            facts = dict(spec)
            index_type(facts["kind"])
            for_all = [facts.pop("candidates")] if "candidates" in facts else []  # of earlier versions
            rows = [tuple(map(float, [*row, *for_all])) for row in facts.pop("effort")]
            depths, efforts, costs, candidates = (tuple(column) for column in zip(*rows, strict=True))
            whole = tuple(int(min(max(effort, 1), _MAX_EFFORT)) for effort in efforts)
            measured = float(facts["recall"]["measured"])
            table = cls(depths, whole, costs, tuple(int(min(number, _MAX_EFFORT)) for number in candidates), measured)
            facts["built_rows"], facts["seed"] = int(facts["built_rows"]), int(facts["seed"])
            wanted = float(facts["recall"]["wanted"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise KnowledgeBaseCorruptError(
                f"{path}: the description of the index cannot be used ({error!r}). Build it again with `build_index`."
            ) from error
        numbers = np.array(rows)  # (depths, 4)
        sound = depths[0] == 1 and np.isfinite(numbers).all() and numbers.min() > 0 and (np.diff(depths) > 0).all()
        if not (sound and 1 <= min(table.candidates) <= max(table.candidates) <= 1000 and 0 < wanted <= 1):
            raise KnowledgeBaseCorruptError(
                f"{path}: the description of the index holds impossible numbers. Build it again with `build_index`."
            )
        return table, facts

    def effort(self, depth: float) -> int:
        """Returns the effort for a depth, interpolated between logarithms, in proportion beyond the last one."""
        if depth <= 1:  # what most searches ask for
            return self.efforts[0]
        inside = np.exp(np.interp(np.log(depth), np.log(self.depths), np.log(self.efforts)))
        return int(np.ceil(inside * max(depth / self.depths[-1], 1.0) - 1e-9))

    def candidates_at(self, depth: float) -> int:
        """Returns how many times `k` candidates get exact scores: as many as at the next depth that was measured."""
        place = bisect.bisect_left(self.depths, depth / 1.001)
        return self.candidates[min(place, len(self.candidates) - 1)]

    def cost(self, depth: float) -> float:
        """Returns with how many vectors a query is compared at a depth; infinite where it was not measured."""
        if depth <= 1:
            return self.costs[0]
        if depth > self.depths[-1] * 1.001:
            return float("inf")
        return float(np.exp(np.interp(np.log(depth), np.log(self.depths), np.log(self.costs))))


def perturbed_passages(vectors: np.ndarray, num_queries: int, seed: int) -> np.ndarray:
    """Makes queries (num_queries, D) for vectors (N, D): passages plus noise with the covariance of the passages.

    Passages themselves would flatter the index, which was built around them. With MiniLM vectors of WordNet glosses,
    lists of bytes with nprobe 32 / 64 / 128 find .951 / .972 / .986 of the neighbours of passages, .911 / .953 / .978
    of those of real questions, .919 / .953 / .978 with this noise, .943 / .968 / .984 with white noise.
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


def tune(filled: FilledIndex, recall: float, queries: np.ndarray | None, seed: int) -> EffortTable:
    """Chooses the effort for every depth on one half of the queries and measures the recall on the other.

    Args:
        filled: The index, over at least one vector.
        recall: The wanted share of the exact ten best.
        queries: Unit vectors (n, D), n at least 2, of typical queries; `None` makes some of the passages.
        seed: Seed of made queries and of the filters that are tried.
    """
    vectors = filled.vectors
    if queries is None:
        queries = perturbed_passages(vectors, 2 * _NUM_QUERIES, seed)
    chosen, held_out = (np.ascontiguousarray(queries[start : 2 * _NUM_QUERIES : 2]) for start in (0, 1))
    k = min(TUNED_K, len(vectors))
    grid = _grid(filled)
    rng = np.random.default_rng(seed)
    candidates = 0
    found: list[tuple[float, int, float, int]] = []  # depth, effort, cost, candidates
    for depth in _DEPTHS:
        allowed = None if depth == 1 else rng.random(len(vectors)) < 1 / depth
        if allowed is not None and np.count_nonzero(allowed) < k:
            break
        trial = _Trial(filled, chosen if depth == 1 else chosen[:_NUM_FILTERED_QUERIES], k, allowed)
        # What lies deeper differs by less: codes of few bits then need more candidates to tell it apart.
        best = _cheapest(trial, grid, recall, least=candidates)
        if best is None and depth > 1:
            break
        candidates, effort = best or _nearest_to_recall(trial, grid)
        effort = max(effort, 1, *(row[1] for row in found))
        found.append((depth, effort, trial.cost(effort, candidates), candidates))
    depths, efforts, costs, numbers = zip(*found, strict=True)
    measured = _Trial(filled, held_out, k).shares(efforts[0], numbers[0]).mean()
    return EffortTable(depths, efforts, costs, numbers, float(measured))


class _Trial:
    """Queries with their exact answers, to try an index at several efforts."""

    def __init__(self, filled: FilledIndex, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> None:
        self.filled, self.queries, self.k, self.allowed = filled, queries, k, allowed
        self.exact = exact_search(queries, filled.vectors, k, allowed)[1]

    def shares(self, effort: int, candidates: int) -> np.ndarray:
        """The recall (n,) of each query."""
        _, rows = approximate_search(self.filled, self.queries, self.k, effort, candidates, self.allowed)
        return _shares(rows, self.exact)

    def reaches(self, recall: float, effort: int, candidates: int) -> bool:
        """Whether the recall is reached by more than the error of the mean: a graph misses some queries altogether."""
        shares = self.shares(effort, candidates)
        return bool(shares.mean() >= min(recall + shares.std() / np.sqrt(len(shares)), 1.0))

    def cost(self, effort: int, candidates: int) -> float:
        """How many vectors one query is compared with."""
        lists = inverted_lists(self.filled.index)
        if lists is not None:
            return float(lists.nlist + len(self.filled.vectors) * min(effort / lists.nlist, 1.0))
        if index_type(self.filled.kind).effort == "candidates":  # all are compared
            return float(len(self.filled.vectors))
        statistics = import_faiss().cvar.hnsw_stats
        before = statistics.ndis
        self.shares(effort, candidates)
        return float(statistics.ndis - before) / len(self.queries)


def found_share(rows: np.ndarray, exact: np.ndarray) -> float:
    """Returns the mean recall: which share of the exact rows (n, k) is among the rows found (n, k).

    >>> found_share(np.array([[4, 7], [1, 2]]), np.array([[7, 5], [1, 2]]))
    0.75
    """
    return float(_shares(rows, exact).mean())


def _shares(rows: np.ndarray, exact: np.ndarray) -> np.ndarray:
    shares: np.ndarray = (rows[:, :, None] == exact[:, None, :]).any(axis=1).mean(axis=1)
    return shares


def _grid(filled: FilledIndex) -> list[int]:
    """Efforts to try: steps of a fifth."""
    if index_type(filled.kind).effort == "candidates":
        return [1]
    lists = inverted_lists(filled.index)
    least, most = (1, lists.nlist) if lists is not None else (16, min(max(len(filled.vectors), 16), 2048))
    steps = np.geomspace(least, most, max(int(np.ceil(np.log(most / least) / np.log(1.2))) + 1, 1))
    return sorted({int(round(step)) for step in steps})


def _cheapest(trial: _Trial, grid: list[int], recall: float, least: int) -> tuple[int, int] | None:
    """The number of candidates, from `least` up, and the effort that reach the recall at the least cost, if any do."""
    kind = trial.filled.kind
    options = []
    for candidates in index_type(kind).candidates:
        if candidates >= least and (effort := _least_effort(trial, grid, candidates, recall)) is not None:
            cost = search_cost(trial.cost(effort, candidates), trial.k * candidates, kind)
            options.append((cost, candidates, effort))
    return min(options)[1:] if options else None


def _nearest_to_recall(trial: _Trial, grid: list[int]) -> tuple[int, int]:
    """The most candidates, and the effort beyond which more of it finds hardly more."""
    most = index_type(trial.filled.kind).candidates[-1]
    nearly = trial.shares(grid[-1], most).mean() - _NEARLY
    return most, next(effort for effort in grid if trial.shares(effort, most).mean() >= nearly)


def _least_effort(trial: _Trial, grid: list[int], candidates: int, recall: float) -> int | None:
    """The least effort of the grid that reaches the recall, by bisection; `None` if none does."""
    place = bisect.bisect_left(grid, True, key=lambda effort: trial.reaches(recall, effort, candidates))
    return grid[place] if place < len(grid) else None
