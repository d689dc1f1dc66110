"""The steps of a search.

With `group_by` the steps are taken twice: the first search finds the groups, the second the passages in them.

(1) `where` decides which rows may be found at all. (2) Every channel gives its best candidates. (3) They are joined by
reciprocal rank, or by weights. (4) A reranker scores the best of them anew. (5) Near-duplicates go, and so does what
exceeds the share of one source; where too few are left, the search looks further. (6) Marginal relevance trades a
little relevance for variety.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InvalidInputError
from ..passage import Passage, rows_at
from .channels import Channel, Query
from .filters import asks_metadata, matching_rows, same_value
from .fusion import (
    Ranking,
    cap_per_source,
    drop_near_duplicates,
    maximal_marginal_relevance,
    reciprocal_rank_fusion,
    scaled_to_unit,
    weighted_fusion,
)
from .grouping import search_groups
from .rerank import Reranker
from .search_options import SearchOptions


# How often, and by how much, a search looks further when caps leave too few candidates.
_REFILLS, _REFILL_FACTOR = 2, 4
# Similarities between candidates are computed for as many queries at once as fit into this many numbers.
_MOST_SIMILARITIES = 16_000_000


class SearchedKnowledge(Protocol):
    """What a search asks of the passages; rows are positions in the table."""

    @property
    def table(self) -> pa.Table: ...

    def passages(self, rows: Sequence[int]) -> list[Passage]: ...


def search(
    channels: Mapping[str, Channel],
    queries: Sequence[Query],
    options: SearchOptions,
    knowledge: SearchedKnowledge,
    vectors: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
) -> Ranking:
    """Finds the best passages of every query.

    Args:
        channels: All channels by name; `options.channels` chooses among them.
        queries: The queries.
        options: What to do.
        knowledge: The passages, such as a `KnowledgeBase`, for filters, sources and rerankers.
        vectors: Unit vectors of all passages, (N, D); needed against near-duplicates and for variety.
        allowed: Rows that may be found, bool (N,), beside what `options.where` says; `None` for all.

    Returns:
        At most `k` candidates per query, with the scores of the reranker, else the fusion, else the only channel.

    Raises:
        InvalidInputError: If a channel is not known, or vectors are needed and missing.
    """
    unknown = [name for name in options.channels if name not in channels]
    if unknown:
        raise InvalidInputError(f"There is no channel {unknown}. Choose among {sorted(channels)}.")
    if vectors is None and (options.near_duplicate_threshold is not None or options.mmr_lambda is not None):
        raise InvalidInputError("near_duplicate_threshold and mmr_lambda compare vectors of passages; there are none.")
    if options.group_by is not None:
        find = partial(_search, channels, knowledge=knowledge, vectors=vectors, allowed=allowed)
        return search_groups(find, queries, options, partial(_conditions_at, knowledge, options.group_by))
    return _search(channels, queries, options, knowledge, vectors, allowed)


def _search(
    channels: Mapping[str, Channel],
    queries: Sequence[Query],
    options: SearchOptions,
    knowledge: SearchedKnowledge,
    vectors: np.ndarray | None,
    allowed: np.ndarray | None,
) -> Ranking:
    """Finds passages, whatever group they are of."""
    if options.where is not None:
        matching = _matching_rows(knowledge, options.where)
        allowed = matching if allowed is None else allowed & matching
    num_rows = knowledge.table.num_rows if allowed is None else int(np.count_nonzero(allowed))
    if not queries or num_rows == 0:
        return Ranking.empty(len(queries))
    selected = [channels[name] for name in options.channels]
    candidates = partial(_candidates, selected, options, knowledge, vectors, allowed)
    plain = len(selected) == 1 and options.reranker is None and options.mmr_lambda is None and not options.thins_out
    num_candidates = options.k if plain else max(options.k, options.num_candidates)
    ranking = candidates(queries, num_candidates)
    for _ in range(_REFILLS if options.thins_out else 0):
        short = np.flatnonzero((ranking.rows >= 0).sum(axis=1) < min(options.k, num_rows))
        if len(short) == 0 or num_candidates >= num_rows:
            break
        num_candidates *= _REFILL_FACTOR
        more = candidates([queries[place] for place in short.tolist()], num_candidates)
        ranking = _replaced(ranking, short, more)
    if options.mmr_lambda is not None:
        assert vectors is not None
        relevance = scaled_to_unit(ranking)
        picked = np.full((len(queries), min(options.k, relevance.shape[1])), -1, np.int64)
        for part, similarities in _similarities(ranking.rows, vectors):
            picked[part] = maximal_marginal_relevance(relevance[part], similarities, options.k, options.mmr_lambda)
        ranking = ranking.at(picked)
    return ranking.top(options.k)


def _conditions_at(knowledge: SearchedKnowledge, name: str, rows: Sequence[int]) -> list[dict[str, Any]]:
    decoded = getattr(knowledge, "decoded_metadata", None) if asks_metadata(name) else None
    return same_value(knowledge.table, name, rows, decoded) if rows else []


def _matching_rows(knowledge: SearchedKnowledge, where: Mapping[str, Any]) -> np.ndarray:
    is_needed = isinstance(where, Mapping) and any(map(asks_metadata, where))
    # Decoding metadata takes seconds per million passages, so a living knowledge base keeps them decoded.
    decoded = getattr(knowledge, "decoded_metadata", None) if is_needed else None
    return matching_rows(knowledge.table, where, decoded)


def _candidates(
    channels: Sequence[Channel],
    options: SearchOptions,
    knowledge: SearchedKnowledge,
    vectors: np.ndarray | None,
    allowed: np.ndarray | None,
    queries: Sequence[Query],
    num_candidates: int,
) -> Ranking:
    """Steps 2 to 5: candidates found, joined, reranked and thinned out."""
    found = [channel.search(queries, num_candidates, allowed) for channel in channels]
    if len(found) == 1:
        ranking = found[0]
    elif options.weights is None:
        ranking = reciprocal_rank_fusion([part.rows for part in found])
    else:
        ranking = weighted_fusion(found, [options.weights[name] for name in options.channels], options.normalise)
    ranking = ranking.top(num_candidates)
    if options.reranker is not None:
        ranking = _reranked(ranking, queries, options.reranker, options.rerank_mix, knowledge)
    if options.near_duplicate_threshold is not None:
        assert vectors is not None
        keep = np.zeros(ranking.rows.shape, bool)
        for part, similarities in _similarities(ranking.rows, vectors):
            keep[part] = drop_near_duplicates(similarities, options.near_duplicate_threshold)
        ranking = ranking.keep(keep)
    if options.max_per_source is not None:
        sources = _source_numbers(knowledge.table, ranking.rows)
        ranking = ranking.keep(cap_per_source(sources, options.max_per_source))
    return ranking


def _reranked(
    ranking: Ranking, queries: Sequence[Query], reranker: Reranker, mix: float, knowledge: SearchedKnowledge
) -> Ranking:
    """The candidates in the order of the reranker; those it cannot judge stand after those it can."""
    valid = ranking.rows >= 0
    rows, places = np.unique(ranking.rows[valid], return_inverse=True)
    passages = knowledge.passages(rows.tolist())
    counts = valid.sum(axis=1).tolist()
    split = np.split(places, np.cumsum(counts)[:-1])
    judged = reranker.score(queries, [[passages[place] for place in of_query] for of_query in split])
    returned = [len(scores) for scores in judged]
    if returned != counts:
        raise InvalidInputError(f"The reranker returned {returned} scores for {counts} candidates.")
    scores: np.ndarray = np.full(ranking.rows.shape, np.nan, np.float32)
    scores[valid] = np.concatenate(judged)
    unjudged: np.ndarray = np.isnan(scores)
    silent = np.asarray(unjudged.all(axis=1))  # queries of which nothing could be judged keep the ranking they had
    lowest = np.where(unjudged, np.inf, scores).min(axis=1, keepdims=True, initial=np.inf)
    scores = np.where(unjudged, np.where(silent[:, None], 0, lowest), scores)
    if mix > 0:
        new = scaled_to_unit(Ranking(scores, ranking.rows))
        scores = np.where(valid, mix * scaled_to_unit(ranking) + (1 - mix) * np.where(valid, new, 0), -np.inf)
    scores = np.where(valid, np.where(silent[:, None], ranking.scores, scores), -np.inf).astype(np.float32)
    order = np.lexsort((ranking.rows, unjudged & ~silent[:, None], -scores, ~valid), axis=1)
    return Ranking(scores, ranking.rows).at(order)


def _similarities(rows: np.ndarray, vectors: np.ndarray) -> Any:
    """Cosines between the candidates of each query, a slice of queries at a time: (slice, (n, m, m))."""
    num_queries, num_candidates = rows.shape
    step = max(1, _MOST_SIMILARITIES // max(1, num_candidates * max(num_candidates, vectors.shape[1])))
    for start in range(0, num_queries, step):
        part = slice(start, start + step)
        # Where there is no candidate row 0 stands in; what comes out there is masked by the caller.
        of_candidates = vectors[np.maximum(rows[part], 0)]  # (n, m, D)
        yield part, of_candidates @ of_candidates.swapaxes(1, 2)


def _source_numbers(table: pa.Table, rows: np.ndarray) -> np.ndarray:
    """A number for the source of each candidate; -1 where it has none."""
    unique, places = np.unique(rows, return_inverse=True)
    sources = rows_at(table.select(["source"]), np.maximum(unique, 0))["source"].combine_chunks().dictionary_encode()
    numbers = np.asarray(pc.fill_null(sources.indices, -1))
    return np.asarray(np.where(rows >= 0, numbers[places].reshape(rows.shape), -1))


def _replaced(ranking: Ranking, places: np.ndarray, by: Ranking) -> Ranking:
    """`ranking` with the candidates of some queries replaced by others."""
    replaced = Ranking.empty(len(ranking.rows), max(ranking.rows.shape[1], by.rows.shape[1]))
    for target, old, new in zip(replaced, ranking, by, strict=True):
        target[:, : old.shape[1]] = old
        target[places, : new.shape[1]] = new
    return replaced
