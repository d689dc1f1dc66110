"""Fusion, learned weights, caps, near-duplicates and marginal relevance against loops written out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval.ranking.fusion import (
    Ranking,
    cap_per_source,
    drop_near_duplicates,
    learn_weights,
    maximal_marginal_relevance,
    ranking_from_lists,
    reciprocal_rank_fusion,
    scaled_to_unit,
    weighted_fusion,
)


def random_ranking(rng, num_queries=6, num_rows=30, width=12) -> Ranking:
    """Distinct rows, falling scores, a different number of candidates per query, none for the first."""
    lengths = [0, *rng.integers(1, width + 1, num_queries - 1)]
    return ranking_from_lists(
        [(-np.sort(-rng.normal(size=n)), rng.choice(num_rows, n, replace=False)) for n in lengths]
    )


def as_lists(ranking):
    return [
        {int(row): float(score) for score, row in zip(scores, rows) if row >= 0}
        for scores, rows in zip(ranking.scores, ranking.rows)
    ]


def assert_sound(ranking):
    valid = ranking.rows >= 0
    assert (np.diff(valid.astype(int), axis=1) <= 0).all()  # pads come last
    assert (ranking.scores[~valid] == -np.inf).all()
    for scores, rows, count in zip(ranking.scores, ranking.rows, valid.sum(axis=1)):
        assert len(set(rows[:count])) == count
        steps = np.diff(scores[:count])
        assert (steps <= 0).all()
        assert (np.diff(rows[:count])[steps == 0] > 0).all()


@pytest.mark.parametrize("k", [0, 60])
def test_reciprocal_rank_fusion_is_the_formula(k):
    rng = np.random.default_rng(0)
    rankings = [random_ranking(rng), random_ranking(rng, width=4), random_ranking(rng, width=20)]
    fused = reciprocal_rank_fusion([ranking.rows for ranking in rankings], k)
    for query, found in enumerate(as_lists(fused)):
        expected: dict[int, float] = {}
        for ranking in rankings:
            for rank, row in enumerate(ranking.rows[query], start=1):
                if row >= 0:
                    expected[int(row)] = expected.get(int(row), 0) + 1 / (k + rank)
        assert found == pytest.approx(expected)
    assert_sound(fused)


def test_reciprocal_rank_fusion_does_not_depend_on_the_order_of_channels():
    rng = np.random.default_rng(3)
    rows = [random_ranking(rng, num_rows=15).rows for _ in range(3)]
    forward, backward = reciprocal_rank_fusion(rows), reciprocal_rank_fusion(rows[::-1])
    np.testing.assert_array_equal(forward.rows, backward.rows)


@pytest.mark.parametrize("normalise", ["zscore", "minmax"])
def test_weighted_fusion_is_the_formula(normalise):
    rng = np.random.default_rng(1)
    rankings, weights = [random_ranking(rng), random_ranking(rng, width=5)], [0.3, 0.7]
    fused = weighted_fusion(rankings, weights, normalise)
    for query, found in enumerate(as_lists(fused)):
        lists = [as_lists(ranking)[query] for ranking in rankings]
        expected = dict.fromkeys({row for entries in lists for row in entries}, 0.0)
        for entries, weight in zip(lists, weights):
            if not entries:
                continue
            values = np.array(list(entries.values()))
            if np.ptp(values) == 0:
                scaled = dict.fromkeys(entries, 1.0 if normalise == "minmax" else 0.0)
                floor = scaled[next(iter(entries))] - 1
            else:
                shift, scale = (
                    (values.mean(), values.std()) if normalise == "zscore" else (values.min(), np.ptp(values))
                )
                scaled = {row: (value - shift) / scale for row, value in entries.items()}
                floor = min(scaled.values())
            for row in expected:
                expected[row] += weight * scaled.get(row, floor)
        assert found == pytest.approx(expected, abs=1e-5)
    assert_sound(fused)


@pytest.mark.parametrize("normalise", ["zscore", "minmax"])
def test_what_one_channel_alone_finds_beats_what_it_does_not_find(normalise):
    single = Ranking(np.array([[4.2]], np.float32), np.array([[9]]))
    both = Ranking(np.array([[0.5, 0.5]], np.float32), np.array([[3, 9]]))
    assert weighted_fusion([single, both], [0.5, 0.5], normalise).rows.tolist() == [[9, 3]]


def test_weights_of_zero_leave_the_other_ranking():
    rng = np.random.default_rng(2)
    ranking, other = random_ranking(rng), random_ranking(rng)
    fused = weighted_fusion([ranking, other], [1.0, 0.0])
    for query in range(1, 6):
        count = (ranking.rows[query] >= 0).sum()
        if np.ptp(ranking.scores[query, :count]) > 0:  # unlisted rows tie with the last one only
            np.testing.assert_array_equal(fused.rows[query, : count - 1], ranking.rows[query, : count - 1])


def ndcg_by_hand(ranking, gold, k):
    values = []
    for rows, wanted in zip(ranking.rows, gold):
        if wanted:
            gained = sum(1 / math.log2(rank + 2) for rank, row in enumerate(rows[:k]) if row in wanted)
            values.append(gained / sum(1 / math.log2(rank + 2) for rank in range(min(len(wanted), k))))
    return np.mean(values)


@pytest.mark.parametrize("normalise", ["zscore", "minmax"])
def test_learned_weights_are_the_best_of_the_grid(normalise):
    rng = np.random.default_rng(4)
    rankings = {name: random_ranking(rng, num_queries=40) for name in ("dense", "bm25", "image")}
    gold = [set(rng.choice(30, rng.integers(0, 4), replace=False).tolist()) for _ in range(40)]
    learned = learn_weights(rankings, gold, normalise=normalise, step=0.25, k=5)
    qualities = [
        ndcg_by_hand(weighted_fusion(list(rankings.values()), [a / 4, b / 4, (4 - a - b) / 4], normalise), gold, 5)
        for a in range(5)
        for b in range(5 - a)
    ]
    weights = list(learned["weights"].values())
    assert learned["ndcg"] == pytest.approx(max(qualities))
    assert learned["ndcg"] == pytest.approx(
        ndcg_by_hand(weighted_fusion(list(rankings.values()), weights, normalise), gold, 5)
    )
    assert sum(weights) == pytest.approx(1)
    assert learned["num_queries"] == sum(bool(wanted) for wanted in gold)
    assert json.loads(json.dumps(learned)) == learned


def test_of_equally_good_weights_the_most_even_are_taken():
    same = Ranking(np.array([[0.9, 0.1]], np.float32), np.array([[0, 1]]))
    assert learn_weights({"a": same, "b": same}, [{0}])["weights"] == {"a": 0.5, "b": 0.5}


def test_a_useless_channel_gets_little_weight():
    rng = np.random.default_rng(5)
    gold = [{int(row)} for row in rng.integers(0, 30, 50)]
    good = ranking_from_lists([(np.array([0.9, 0.1]), np.array([*wanted, (*wanted,)[0] + 1])) for wanted in gold])
    learned = learn_weights({"noise": random_ranking(rng, num_queries=50), "good": good}, gold)
    assert learned["ndcg"] == 1.0
    assert learned["weights"]["good"] > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_cap_keeps_the_first_of_each_source(seed):
    rng = np.random.default_rng(seed)
    sources = rng.integers(-1, 4, (5, 20))
    for cap in (1, 2, 5):
        keep = cap_per_source(sources, cap)
        for of_query, kept in zip(sources, keep):
            seen: list[int] = []
            for source, is_kept in zip(of_query, kept):
                assert is_kept == (source < 0 or seen.count(source) < cap)
                seen.append(source)


def random_vectors(seed, num_queries=4, num_candidates=10, dim=3):
    vectors = np.random.default_rng(seed).normal(size=(num_queries, num_candidates, dim))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors, vectors @ vectors.swapaxes(1, 2)


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_near_duplicates_by_the_greedy_loop(threshold):
    vectors, similarities = random_vectors(0)
    keep = drop_near_duplicates(similarities, threshold)
    assert not keep.all()
    for of_query, kept in zip(vectors, keep):
        expected: list[int] = []
        for place, vector in enumerate(of_query):
            if all(vector @ of_query[other] <= threshold for other in expected):
                expected.append(place)
        np.testing.assert_array_equal(np.flatnonzero(kept), expected)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
def test_marginal_relevance_by_the_greedy_loop(weight):
    vectors, similarities = random_vectors(1)
    relevance = np.random.default_rng(2).random((4, 10))
    relevance[0, 7:] = -np.inf  # the first query has seven candidates
    picked = maximal_marginal_relevance(relevance, similarities, 9, weight)
    for of_query, wanted, result in zip(vectors, relevance, picked):
        free = [place for place in range(10) if np.isfinite(wanted[place])]
        expected = [max(free, key=lambda place: (wanted[place], -place))]
        free.remove(expected[0])
        while free and len(expected) < 9:
            gains = {
                place: weight * wanted[place]
                - (1 - weight) * max(of_query[place] @ of_query[other] for other in expected)
                for place in free
            }
            expected.append(max(free, key=lambda place: (round(gains[place], 12), -place)))
            free.remove(expected[-1])
        assert result[result >= 0].tolist() == expected


def test_relevance_alone_keeps_the_ranking():
    _, similarities = random_vectors(3)
    relevance = -np.sort(-np.random.default_rng(3).random((4, 10)))
    np.testing.assert_array_equal(
        maximal_marginal_relevance(relevance, similarities, 10, 1.0), np.tile(np.arange(10), (4, 1))
    )


def test_keep_moves_up_and_pads():
    ranking = Ranking(np.array([[3, 2, 1], [3, 2, -np.inf]], np.float32), np.array([[5, 6, 7], [8, 9, -1]]))
    kept = ranking.keep(np.array([[False, True, True], [False, True, True]]))
    assert kept.rows.tolist() == [[6, 7], [9, -1]]
    assert kept.scores.tolist() == [[2, 1], [2, -np.inf]]


def test_scaling_to_unit():
    ranking = ranking_from_lists([(np.array([4.0, 3.0, 2.0]), np.arange(3)), (np.array([7.0]), np.array([1]))])
    assert scaled_to_unit(ranking).tolist() == [[1, 0.5, 0], [1, -np.inf, -np.inf]]


def test_no_queries_and_no_candidates():
    for num_queries in (0, 2):
        nothing = Ranking(np.zeros((num_queries, 0), np.float32), np.zeros((num_queries, 0), np.int64))
        assert reciprocal_rank_fusion([nothing.rows, nothing.rows]).rows.shape == (num_queries, 0)
        assert weighted_fusion([nothing, nothing], [1, 1]).rows.shape == (num_queries, 0)
        assert nothing.keep(np.zeros((num_queries, 0), bool)).rows.shape == (num_queries, 0)
        assert cap_per_source(nothing.rows, 1).shape == (num_queries, 0)


def test_wrong_arguments_are_refused():
    ranking = Ranking(np.ones((1, 1), np.float32), np.zeros((1, 1), np.int64))
    for call, message in [
        (lambda: reciprocal_rank_fusion([ranking.rows], -1), "k=-1"),
        (lambda: weighted_fusion([ranking], [1, 2]), "2 weights"),
        (lambda: weighted_fusion([ranking], [0.0]), "weights="),
        (lambda: weighted_fusion([ranking], [float("nan")]), "weights="),
        (lambda: weighted_fusion([ranking], [1], normalise="softmax"), "minmax"),
        (lambda: learn_weights({"a": ranking}, [{0}, {1}]), "2 sets"),
        (lambda: learn_weights({"a": ranking}, [set()]), "nothing to learn"),
        (lambda: cap_per_source(ranking.rows, 0), "max_per_source=0"),
        (lambda: maximal_marginal_relevance(np.ones((1, 1)), np.ones((1, 1, 1)), 1, 1.5), "1.5"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            call()
