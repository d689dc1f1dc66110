"""Rank fusion, per-source caps, near-duplicates, marginal relevance, for many queries at once.

Equal scores stand in the order of their rows, so that the same question always gets the same answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ...errors import InvalidInputError
from ...metrics.ranking import ndcg_at_k


Normalisation = Literal["zscore", "minmax"]


class Ranking(NamedTuple):
    """Candidates of several queries, best first.

    Attributes:
        scores: Shape (n, m) in float32; -inf where there is no candidate.
        rows: Rows of the knowledge base, shape (n, m) in int64; -1 where there is no candidate, at the end.
    """

    scores: np.ndarray
    rows: np.ndarray

    @classmethod
    def empty(cls, num_queries: int, width: int = 0) -> Ranking:
        """Returns no candidates, in arrays of shape (num_queries, width) that may be filled."""
        return cls(np.full((num_queries, width), -np.inf, np.float32), np.full((num_queries, width), -1, np.int64))

    def top(self, k: int) -> Ranking:
        """Returns the best `k` of every query."""
        return Ranking(self.scores[:, :k], self.rows[:, :k])

    def at(self, places: np.ndarray) -> Ranking:
        """Returns the candidates at some places (n, k) of each query; none where a place is negative."""
        scores, rows = (np.take_along_axis(values, np.maximum(places, 0), axis=1) for values in self)
        return Ranking(np.where(places >= 0, scores, -np.inf).astype(np.float32), np.where(places >= 0, rows, -1))

    def keep(self, mask: np.ndarray) -> Ranking:
        """Returns the candidates where `mask` (n, m) is true, moved up to fill the gaps."""
        mask = mask & (self.rows >= 0)
        order = np.argsort(~mask, axis=1, kind="stable")[:, : mask.sum(axis=1).max(initial=0)]
        return self.at(np.where(np.take_along_axis(mask, order, axis=1), order, -1))


def ranking_from_lists(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> Ranking:
    """Pads pairs of scores and rows, one per query and best first, to a `Ranking`.

    >>> ranking_from_lists([(np.array([0.9, 0.5]), np.array([4, 2])), (np.array([]), np.array([]))]).rows
    array([[ 4,  2],
           [-1, -1]])
    """
    ranking = Ranking.empty(len(found), max((len(rows) for _, rows in found), default=0))
    for place, (scores, rows) in enumerate(found):
        ranking.scores[place, : len(scores)], ranking.rows[place, : len(rows)] = scores, rows
    return ranking


def reciprocal_rank_fusion(rankings: Sequence[np.ndarray], k: int = 60) -> Ranking:
    """Joins rankings by rank alone: a candidate's score is the sum over the rankings of `1 / (k + rank)`, from rank 1.

    Cormack, Clarke, Büttcher, SIGIR 2009.

    Args:
        rankings: Rows of each ranking, best first, each of shape (n, m) with its own m; -1 at the end stands for none.
        k: How little the first ranks stand out.

    Raises:
        InvalidInputError: If `k < 0` or there are no rankings.

    Example: row 7 is second in both rankings and beats those that only one ranking knows.

    >>> fused = reciprocal_rank_fusion([np.array([[5, 7]]), np.array([[3, 7]])])
    >>> fused.rows, fused.scores.round(4)
    (array([[7, 3, 5]]), array([[0.0323, 0.0164, 0.0164]], dtype=float32))
    """
    if k < 0 or not rankings:
        raise InvalidInputError(f"k={k} with {len(rankings)} rankings: expected k of at least 0 and a ranking.")
    pool = _pooled(rankings)
    gains = [np.broadcast_to(1 / (k + np.arange(1, rows.shape[1] + 1)), rows.shape)[rows >= 0] for rows in rankings]
    return _ranked(pool, np.bincount(np.concatenate(pool.places), np.concatenate(gains), len(pool.rows)))


def weighted_fusion(
    rankings: Sequence[Ranking], weights: Sequence[float], normalise: Normalisation = "zscore"
) -> Ranking:
    """Joins rankings by the weighted sum of their scores, each brought to one scale within its query first.

    A candidate that a ranking does not list gets that ranking's lowest score for the query, 0 if it lists nothing.

    Args:
        rankings: One per channel, over the same queries.
        weights: One per channel, at least 0; they need not add up to 1.
        normalise: `"zscore"` takes the mean off and divides by the standard deviation; `"minmax"` maps to 0..1.

    Raises:
        InvalidInputError: If the weights do not fit, or `normalise` is not known.

    >>> dense = Ranking(np.array([[0.9, 0.5]], np.float32), np.array([[1, 2]]))
    >>> words = Ranking(np.array([[12.0, 3.0, 0.0]], np.float32), np.array([[2, 3, 1]]))
    >>> weighted_fusion([dense, words], [0.4, 0.6], normalise="minmax")
    Ranking(scores=array([[0.6 , 0.4 , 0.15]], dtype=float32), rows=array([[2, 1, 3]]))
    """
    if len(rankings) != len(weights) or not rankings:
        raise InvalidInputError(f"{len(rankings)} rankings came with {len(weights)} weights. Pass one for each.")
    check_weights(weights)
    pool = _pooled([ranking.rows for ranking in rankings])
    return _ranked(pool, _score_table(rankings, pool, normalise) @ np.asarray(weights, np.float64))


def check_weights(weights: Sequence[float]) -> None:
    """Raises `InvalidInputError` unless channels can be weighed so."""
    if not np.isfinite(weights).all() or min(weights) < 0 or max(weights) == 0:
        raise InvalidInputError(f"weights={list(weights)}: expected finite numbers of at least 0, not all of them 0.")


def learn_weights(
    rankings: Mapping[str, Ranking],
    gold: Sequence[Collection[int]],
    *,
    normalise: Normalisation = "zscore",
    k: int = 10,
    step: float = 0.1,
) -> dict[str, Any]:
    """Finds the weights of `weighted_fusion` that rank known answers best, by trying all on a grid.

    The best channel alone is on the grid, too. Of equally good weights it takes the most even.

    Args:
        rankings: The candidates of each channel by name, over the same queries; 50 to 100 per query will do.
        gold: The rows that each query wants. Queries that want nothing are left out.
        normalise: As `weighted_fusion`.
        k: The weights are judged by the mean nDCG@k with gains of 0 and 1.
        step: The grid's step; weights add up to 1.

    Returns:
        A dictionary for JSON: `weights` by name and `normalise`, both for `SearchOptions`; `ndcg`, `k`, `num_queries`.

    Raises:
        InvalidInputError: If `gold` does not fit the rankings, or holds no row.

    >>> good = Ranking(np.array([[0.9, 0.8]], np.float32), np.array([[2, 1]]))
    >>> bad = Ranking(np.array([[0.9, 0.1]], np.float32), np.array([[1, 2]]))
    >>> learn_weights({"good": good, "bad": bad}, [{2}])["weights"]
    {'good': 0.6, 'bad': 0.4}
    """
    if not rankings or any(len(ranking.rows) != len(gold) for ranking in rankings.values()):
        shapes = {name: ranking.rows.shape for name, ranking in rankings.items()}
        raise InvalidInputError(f"{len(gold)} sets of gold rows came with rankings of shapes {shapes}.")
    wanted = [set(rows) for rows in gold]
    num_gold = np.array([len(rows) for rows in wanted])
    asking = num_gold > 0
    if not asking.any():
        raise InvalidInputError("No query wants anything; there is nothing to learn from.")
    pool = _pooled([ranking.rows for ranking in rankings.values()])
    table = _score_table(list(rankings.values()), pool, normalise)  # (F, C)
    is_wanted = np.array([row in wanted[query] for query, row in zip(pool.queries, pool.rows, strict=True)], bool)
    best: tuple[float, float, tuple[float, ...]] | None = None
    for weights in _simplex(len(rankings), round(1 / step)):
        order, ranks = _order(pool, table @ np.array(weights))
        relevant = np.zeros((len(wanted), ranks.max(initial=-1) + 1), bool)
        relevant[pool.queries, ranks] = is_wanted[order]
        quality = float(ndcg_at_k(relevant[asking], num_gold[asking], k).mean())
        candidate = (round(quality, 12), -float(np.square(weights).sum()), weights)
        best = candidate if best is None or candidate > best else best
    assert best is not None
    learned = {name: round(weight, 6) for name, weight in zip(rankings, best[2], strict=True)}
    num_queries = int(asking.sum())
    return {"weights": learned, "normalise": normalise, "ndcg": best[0], "k": k, "num_queries": num_queries}


def cap_per_source(sources: np.ndarray, max_per_source: int) -> np.ndarray:
    """Returns which candidates to keep, bool (n, m): the first `max_per_source` of every source.

    Args:
        sources: A number for the source of each candidate, shape (n, m), best first; negative ones are not capped.
        max_per_source: At least 1.

    Raises:
        InvalidInputError: If `max_per_source < 1`.

    >>> cap_per_source(np.array([[3, 3, 5, 3, -1, -1]]), max_per_source=2)
    array([[ True,  True,  True, False,  True,  True]])
    """
    if max_per_source < 1:
        raise InvalidInputError(f"max_per_source={max_per_source}: expected at least 1.")
    order = np.argsort(sources, axis=1, kind="stable")  # (n, m), each source together, in the order of rank
    ordered = np.take_along_axis(sources, order, axis=1)
    places = np.broadcast_to(np.arange(sources.shape[1]), sources.shape)
    begins = np.ones_like(ordered, dtype=bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    keep = np.empty(sources.shape, bool)
    np.put_along_axis(keep, order, (places - starts < max_per_source) | (ordered < 0), axis=1)
    return keep


def drop_near_duplicates(similarities: np.ndarray, threshold: float) -> np.ndarray:
    """Returns which candidates to keep, bool (n, m): those unlike every better one that is kept.

    Args:
        similarities: Cosines between the candidates of each query, shape (n, m, m), best candidate first.
        threshold: A candidate goes if its cosine with a kept one is above it; 0.95 drops copies, 0.9 paraphrases too.

    Example: the second is a copy of the first; the third resembles only the second, which is gone.

    >>> cosines = np.array([[[1.0, 0.99, 0.8], [0.99, 1.0, 0.96], [0.8, 0.96, 1.0]]])
    >>> drop_near_duplicates(cosines, threshold=0.95)
    array([[ True, False,  True]])
    """
    keep = np.ones(similarities.shape[:2], bool)
    for place in range(1, similarities.shape[1]):
        alike = (similarities[:, place, :place] > threshold) & keep[:, :place]
        keep[:, place] = ~alike.any(axis=1)
    return keep


def maximal_marginal_relevance(
    relevance: np.ndarray, similarities: np.ndarray, k: int, relevance_weight: float = 0.5
) -> np.ndarray:
    """Picks candidates one by one, each relevant and unlike those before, and returns their places.

    Each has the largest `λ · relevance - (1 - λ) · max cosine with those` (Carbonell, Goldstein, SIGIR 1998).

    Args:
        relevance: Shape (n, m), on a scale that compares with cosines; -inf where there is no candidate.
        similarities: Cosines between the candidates of each query, shape (n, m, m).
        k: How many to pick.
        relevance_weight: `λ`, from 0 (only unlike) to 1 (only relevant).

    Returns:
        Places in the order of picking, shape (n, min(k, m)) in int64; -1 where there is none.

    Raises:
        InvalidInputError: If `relevance_weight` is not from 0 to 1.

    Example: the second candidate resembles the first; the third is less relevant but new.

    >>> cosines = np.array([[[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]]])
    >>> maximal_marginal_relevance(np.array([[1.0, 0.9, 0.6]]), cosines, k=3)
    array([[0, 2, 1]])
    """
    if not 0 <= relevance_weight <= 1:
        raise InvalidInputError(f"relevance_weight={relevance_weight}: expected a number from 0 to 1.")
    num_queries, num_candidates = relevance.shape
    queries = np.arange(num_queries)
    nearest = np.full(relevance.shape, -np.inf)  # the largest cosine with a picked one
    free = np.isfinite(relevance)
    picked = np.full((num_queries, min(k, num_candidates)), -1, np.int64)
    gains = relevance
    for step in range(picked.shape[1]):
        if step > 0:
            gain, penalty = np.where(free, relevance, 0), np.where(free, nearest, 0)
            gains = relevance_weight * gain - (1 - relevance_weight) * penalty
        places = np.where(free, gains, -np.inf).argmax(axis=1)
        picked[:, step] = np.where(free.any(axis=1), places, -1)
        free[queries, places] = False
        nearest = np.maximum(nearest, similarities[queries, places])
    return picked


def scaled_to_unit(ranking: Ranking) -> np.ndarray:
    """Returns the scores (n, m) mapped to 0..1 in every query, equal ones to 1; -inf where there is no candidate."""
    values, _ = _minmax(ranking.scores, ranking.rows >= 0)
    return np.where(ranking.rows >= 0, values, -np.inf)


class _Pool(NamedTuple):
    """All candidates that occur in any of several rankings, once per query, as one flat list of length F."""

    num_queries: int
    queries: np.ndarray  # (F,) the query of each, rising
    rows: np.ndarray  # (F,) the row of each, rising within a query
    places: list[np.ndarray]  # for every ranking, where in this list its candidates stand


def _pooled(rankings: Sequence[np.ndarray]) -> _Pool:
    span = max(int(rows.max(initial=0)) for rows in rankings) + 1
    keys = [(np.arange(len(rows))[:, None] * span + rows)[rows >= 0] for rows in rankings]
    unique, places = np.unique(np.concatenate(keys), return_inverse=True)
    ends = np.cumsum([len(part) for part in keys])
    return _Pool(len(rankings[0]), *np.divmod(unique, span), np.split(places, ends[:-1]))


def _order(pool: _Pool, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidates by query, then best first, then row; and the rank of each in that order, from 0."""
    # float32: sums that differ only in the order of their terms are ties.
    order = np.lexsort((pool.rows, -scores.astype(np.float32), pool.queries))
    starts = np.searchsorted(pool.queries, np.arange(pool.num_queries))
    return order, np.arange(len(pool.rows)) - starts[pool.queries]


def _ranked(pool: _Pool, scores: np.ndarray) -> Ranking:
    order, ranks = _order(pool, scores)
    ranking = Ranking.empty(pool.num_queries, int(ranks.max(initial=-1)) + 1)
    ranking.scores[pool.queries, ranks] = scores[order]
    ranking.rows[pool.queries, ranks] = pool.rows[order]
    return ranking


def _score_table(rankings: Sequence[Ranking], pool: _Pool, normalise: str) -> np.ndarray:
    """Normalised scores of every candidate in every ranking, (F, C); the ranking's floor where it is not listed."""
    if normalise not in _NORMALISATIONS:
        raise InvalidInputError(f"normalise={normalise!r} is not known. Choose one of {sorted(_NORMALISATIONS)}.")
    table = np.empty((len(pool.rows), len(rankings)))
    for column, ((scores, rows), places) in enumerate(zip(rankings, pool.places, strict=True)):
        listed = rows >= 0
        values, floors = _NORMALISATIONS[normalise](scores, listed)  # (n, m), (n,)
        table[:, column] = floors[pool.queries]
        table[places, column] = values[listed]
    return table


def _zscore(scores: np.ndarray, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.where(listed, scores, 0).astype(np.float64)
    counts = np.maximum(listed.sum(axis=1), 1)
    centred = np.where(listed, values - (values.sum(axis=1) / counts)[:, None], 0)
    deviations = np.sqrt(np.square(centred).sum(axis=1) / counts)
    spread = deviations > 1e-9
    normalised = centred / np.where(spread, deviations, 1)[:, None]
    # Where all scores are equal, what is found still stands above what is not.
    floors = np.where(spread, normalised.min(axis=1, initial=0), -1.0)
    return normalised, np.where(listed.any(axis=1), floors, 0)


def _minmax(scores: np.ndarray, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lowest = np.where(listed, scores, np.inf).min(axis=1, initial=np.inf)
    highest = np.where(listed, scores, -np.inf).max(axis=1, initial=-np.inf)
    spread = highest - lowest > 1e-9
    lowest, width = np.where(spread, lowest, 0), np.where(spread, highest - lowest, 1)
    values = np.where(spread[:, None], (np.where(listed, scores, 0) - lowest[:, None]) / width[:, None], 1.0)
    return values, np.zeros(len(scores))


_NORMALISATIONS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "zscore": _zscore,
    "minmax": _minmax,
}


def _simplex(num_weights: int, steps: int) -> Iterator[tuple[float, ...]]:
    """All weights that are multiples of `1 / steps` and add up to 1."""
    for bars in itertools.combinations(range(steps + num_weights - 1), num_weights - 1):
        edges = (-1, *bars, steps + num_weights - 1)
        yield tuple((right - left - 1) / steps for left, right in itertools.pairwise(edges))
