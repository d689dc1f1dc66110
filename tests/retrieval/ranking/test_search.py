"""The whole search: each step in its place, the same answer for one query and for many."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.ranking.channels import Query
from hf_ravlm.retrieval.ranking.fusion import (
    Ranking,
    ranking_from_lists,
    reciprocal_rank_fusion,
    scaled_to_unit,
    weighted_fusion,
)
from hf_ravlm.retrieval.ranking.search import search
from hf_ravlm.retrieval.ranking.search_options import SearchOptions


NUM_ROWS, DIM = 40, 6


class TableChannel:
    """Scores come from a table; a query's text is its line in it. Counts how often it is asked."""

    def __init__(self, name, table):
        self.name, self.table, self.asked = name, table, []

    def search(self, queries, k, allowed):
        self.asked.append((len(queries), k))
        found = []
        for query in queries:
            scores = self.table[int(query.text)] if query.text is not None else np.full(NUM_ROWS, -np.inf)
            rows = np.flatnonzero(np.isfinite(scores) & (True if allowed is None else allowed))
            rows = rows[np.lexsort((rows, -scores[rows]))][:k]
            found.append((scores[rows], rows))
        return ranking_from_lists(found)


class TableReranker:
    """Scores a passage by a function of the query's number and the passage's row."""

    def __init__(self, judge):
        self.judge, self.num_judged = judge, []

    def score(self, queries, candidates):
        self.num_judged.append([len(found) for found in candidates])
        return [
            np.array([self.judge(int(query.text), int(passage.id)) for passage in found], np.float32)
            for query, found in zip(queries, candidates)
        ]


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(NUM_ROWS, DIM)).astype(np.float32)
    vectors[10] = vectors[11] = vectors[12]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [
        {"id": str(row), "text": f"passage {row}", "source": None if row % 7 == 0 else f"source {row % 3}"}
        for row in range(NUM_ROWS)
    ]
    channels = {name: TableChannel(name, rng.normal(size=(5, NUM_ROWS))) for name in ("dense", "bm25")}
    return channels, KnowledgeBase.from_dicts(rows), vectors


QUERIES = [Query(str(number)) for number in range(5)]
BOTH = ("dense", "bm25")


def run(world, queries=QUERIES, allowed=None, **options):
    channels, knowledge_base, vectors = world
    return search(channels, queries, SearchOptions(**options), knowledge_base, vectors, allowed)


def test_one_channel_alone_is_that_channel(world):
    channels, *_ = world
    ranking = run(world, k=7)
    expected = channels["dense"].search(QUERIES, 7, None)
    np.testing.assert_array_equal(ranking.rows, expected.rows)
    np.testing.assert_array_equal(ranking.scores, expected.scores)
    assert channels["dense"].asked[0] == (5, 7)  # not for more than is needed


def test_two_channels_are_fused(world):
    channels, *_ = world
    found = [channels[name].search(QUERIES, 20, None) for name in BOTH]
    by_rank = run(world, k=9, channels=BOTH, num_candidates=20)
    np.testing.assert_array_equal(by_rank.rows, reciprocal_rank_fusion([r.rows for r in found]).rows[:, :9])
    by_weight = run(
        world, k=9, channels=BOTH, num_candidates=20, weights={"bm25": 0.8, "dense": 0.2}, normalise="minmax"
    )
    np.testing.assert_array_equal(by_weight.rows, weighted_fusion(found, [0.2, 0.8], "minmax").rows[:, :9])


@pytest.mark.parametrize(
    "options",
    [
        {"channels": BOTH},
        {"channels": BOTH, "weights": {"dense": 1, "bm25": 2}, "max_per_source": 2, "near_duplicate_threshold": 0.7},
        {"channels": BOTH, "mmr_lambda": 0.5, "max_per_source": 1},
        {"reranker": TableReranker(lambda query, row: (row * 7 + query) % 5), "rerank_mix": 0.3, "mmr_lambda": 0.8},
    ],
)
def test_many_queries_are_answered_like_each_alone(world, options):
    together = run(world, k=6, num_candidates=12, **options)
    for place, query in enumerate(QUERIES):
        alone = run(world, [query], k=6, num_candidates=12, **options)
        rows = together.rows[place]
        np.testing.assert_array_equal(alone.rows[0], rows[: alone.rows.shape[1]])
        assert (rows[alone.rows.shape[1] :] == -1).all()


def test_a_query_that_one_channel_cannot_serve(world):
    channels, *_ = world
    channels["bm25"].table[2] = -np.inf
    ranking = run(world, k=5, channels=BOTH)
    np.testing.assert_array_equal(ranking.rows[2], channels["dense"].search(QUERIES, 5, None).rows[2])


def test_rows_that_are_not_allowed_are_never_found(world):
    allowed = np.random.default_rng(1).random(NUM_ROWS) < 0.2
    ranking = run(world, k=30, channels=BOTH, allowed=allowed, max_per_source=3, mmr_lambda=0.5)
    assert allowed[ranking.rows[ranking.rows >= 0]].all()
    assert run(world, allowed=np.zeros(NUM_ROWS, bool)).rows.shape == (5, 0)


def test_filters_are_combined_with_allowed_rows(world):
    allowed = np.arange(NUM_ROWS) < 20
    ranking = run(world, k=40, where={"source": "source 1"}, allowed=allowed)
    expected = [row for row in range(20) if row % 3 == 1 and row % 7 != 0]
    assert sorted(ranking.rows[0].tolist()) == expected


def test_reranker_decides_among_the_candidates(world):
    reranker = TableReranker(lambda query, row: -row)
    ranking = run(world, k=4, num_candidates=10, channels=BOTH, reranker=reranker)
    candidates = run(world, k=10, num_candidates=10, channels=BOTH)
    np.testing.assert_array_equal(ranking.rows, np.sort(candidates.rows, axis=1)[:, :4])
    np.testing.assert_array_equal(ranking.scores, -ranking.rows)
    assert reranker.num_judged == [[10] * 5]


def test_mixing_with_the_score_before(world):
    first = run(world, k=10)
    judge = lambda query, row: (row * 7 + query) % 11  # noqa: E731
    mixed = run(world, k=10, num_candidates=10, reranker=TableReranker(judge), rerank_mix=0.6)
    judged = np.array([[judge(q, row) for row in rows] for q, rows in enumerate(first.rows)], np.float32)
    expected = 0.6 * scaled_to_unit(first) + 0.4 * scaled_to_unit(Ranking(judged, first.rows))
    order = np.argsort(-expected, axis=1, kind="stable")
    np.testing.assert_array_equal(mixed.rows, np.take_along_axis(first.rows, order, axis=1))
    np.testing.assert_allclose(mixed.scores, np.take_along_axis(expected, order, axis=1), atol=1e-6)
    kept = run(world, k=10, num_candidates=10, reranker=TableReranker(judge), rerank_mix=1.0)
    np.testing.assert_array_equal(kept.rows, first.rows)


def test_what_cannot_be_judged_comes_last_and_silence_changes_nothing(world):
    first = run(world, k=10)
    reranker = TableReranker(lambda query, row: np.nan if query == 1 or row % 2 else row)
    ranking = run(world, k=10, num_candidates=10, reranker=reranker)
    np.testing.assert_array_equal(ranking.rows[1], first.rows[1])
    np.testing.assert_array_equal(ranking.scores[1], first.scores[1])
    even = sorted((row for row in first.rows[0].tolist() if row % 2 == 0), reverse=True)
    assert ranking.rows[0, : len(even)].tolist() == even
    assert np.isfinite(ranking.scores).all()


def test_no_source_exceeds_its_share_and_k_is_still_filled(world):
    """Ten candidates hold too few of some source; the search looks further for those queries."""
    channels, knowledge_base, _ = world
    sources = knowledge_base.table["source"].to_pylist()
    channels["dense"].table[3] = [10 if source == "source 1" else 0 for source in sources]
    ranking = run(world, k=6, num_candidates=6, max_per_source=2)
    for rows in ranking.rows:
        found = [sources[row] for row in rows]
        assert len(found) == 6
        assert all(found.count(source) <= 2 for source in found if source is not None)
    assert [asked for _, asked in channels["dense"].asked] == [6, 24]
    assert channels["dense"].asked[1][0] < 5  # only for the queries that were short


def test_near_duplicates_are_returned_once(world):
    channels, *_ = world
    channels["dense"].table[:, [10, 11, 12]] = [5, 6, 7]
    ranking = run(world, k=5, num_candidates=20, near_duplicate_threshold=0.999)
    for rows in ranking.rows:
        assert set(rows.tolist()) & {10, 11, 12} == {12}


def test_variety_starts_with_the_best_and_spreads(world):
    channels, _, vectors = world
    best = run(world, k=5)
    varied = run(world, k=5, num_candidates=20, mmr_lambda=0.3)
    np.testing.assert_array_equal(varied.rows[:, 0], best.rows[:, 0])

    def closeness(rows):
        cosines = vectors[rows] @ vectors[rows].T
        return cosines[np.triu_indices(5, 1)].mean()

    assert np.mean([closeness(rows) for rows in varied.rows]) < np.mean([closeness(rows) for rows in best.rows])


def test_similarities_in_pieces(world, monkeypatch):
    whole = run(world, k=5, num_candidates=10, mmr_lambda=0.5, near_duplicate_threshold=0.8)
    monkeypatch.setattr("hf_ravlm.retrieval.ranking.search._MOST_SIMILARITIES", 1)
    pieces = run(world, k=5, num_candidates=10, mmr_lambda=0.5, near_duplicate_threshold=0.8)
    np.testing.assert_array_equal(pieces.rows, whole.rows)


def test_no_queries(world):
    assert run(world, []).rows.shape == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"num_candidates": True}, "num_candidates"),
        ({"max_per_source": 0}, "max_per_source"),
        ({"mmr_lambda": 2}, "mmr_lambda"),
        ({"rerank_mix": -0.1}, "rerank_mix"),
        ({"near_duplicate_threshold": 2}, "near_duplicate_threshold"),
        ({"channels": "dense"}, "channels"),
        ({"channels": ()}, "channels"),
        ({"channels": ("dense", "dense")}, "channels"),
        ({"channels": ("dense", "colour")}, "colour"),
        ({"weights": {"bm25": 1}}, "weights"),
        ({"weights": {"dense": float("nan")}}, "finite numbers"),
    ],
)
def test_wrong_options_are_refused(world, options, message):
    with pytest.raises(InvalidInputError, match=message):
        run(world, **options)


def test_rerankers_that_miscount_are_refused(world):
    class Wrong:
        def score(self, queries, candidates):
            return [np.zeros(1)] * len(queries)

    with pytest.raises(InvalidInputError, match="scores for"):
        run(world, reranker=Wrong())


def test_variety_needs_vectors(world):
    channels, knowledge_base, _ = world
    with pytest.raises(InvalidInputError, match="vectors"):
        search(channels, QUERIES, SearchOptions(mmr_lambda=0.5), knowledge_base)
