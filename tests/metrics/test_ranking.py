"""Ranking metrics against cases computed by hand, and against loops over small random rankings."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.metrics import (
    average_precision,
    first_relevant_rank,
    hit_at_k,
    mean_rank,
    median_rank,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    relevance_from_ids,
    relevance_from_scores,
)


# four queries, four results each: wanted at ranks 1 and 3; at 2; at 4; nowhere
RELEVANT = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
NUM_GOLD = [4, 1, 1, 2]


@pytest.mark.parametrize(
    ("k", "hits", "recalls", "reciprocals"),
    [
        (1, [1, 0, 0, 0], [0.25, 0, 0, 0], [1, 0, 0, 0]),
        (2, [1, 1, 0, 0], [0.25, 1, 0, 0], [1, 0.5, 0, 0]),
        (3, [1, 1, 0, 0], [0.5, 1, 0, 0], [1, 0.5, 0, 0]),
        (4, [1, 1, 1, 0], [0.5, 1, 1, 0], [1, 0.5, 0.25, 0]),
        (99, [1, 1, 1, 0], [0.5, 1, 1, 0], [1, 0.5, 0.25, 0]),
    ],
)
def test_by_hand(k, hits, recalls, reciprocals):
    np.testing.assert_array_equal(hit_at_k(RELEVANT, k), hits)
    np.testing.assert_array_equal(recall_at_k(RELEVANT, NUM_GOLD, k), recalls)
    np.testing.assert_array_equal(reciprocal_rank(RELEVANT, k), reciprocals)


def test_ranks_count_from_one():
    np.testing.assert_array_equal(first_relevant_rank(RELEVANT), [1, 2, 4, np.inf])
    assert mean_rank(RELEVANT[:3]) == pytest.approx(7 / 3)
    assert mean_rank(RELEVANT) == np.inf
    np.testing.assert_array_equal(reciprocal_rank(RELEVANT), [1, 0.5, 0.25, 0])


def test_dpr_counts_ranks_from_zero():
    assert mean_rank(RELEVANT[:3], official_quirks=True) == pytest.approx(4 / 3)
    assert median_rank(RELEVANT[:3], official_quirks=True) == 1
    assert median_rank(RELEVANT[:3]) == 2
    assert median_rank(RELEVANT) == 3  # of 1, 2, 4 and unknown


def test_graded_by_hand():
    np.testing.assert_allclose(precision_at_k(RELEVANT, 2), [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(precision_at_k(RELEVANT, 8), [0.25, 0.125, 0.125, 0])
    np.testing.assert_allclose(average_precision(RELEVANT, NUM_GOLD, 3), [(1 + 2 / 3) / 3, 0.5, 0, 0])
    np.testing.assert_allclose(average_precision(RELEVANT, NUM_GOLD, 3, "gold"), [(1 + 2 / 3) / 4, 0.5, 0, 0])
    second, third, fifth = 1 / np.log2([3, 4, 5])
    np.testing.assert_allclose(ndcg_at_k(RELEVANT, NUM_GOLD, 3), [(1 + third) / (1 + second + third), second, 0, 0])
    np.testing.assert_allclose(ndcg_at_k(RELEVANT, NUM_GOLD)[2], fifth)


def test_all_rankings_equal_ir_measures():
    ir_measures = pytest.importorskip("ir_measures")
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(12.0), (20, 1)), axis=1)  # no ties, which tools break each in their way
    gold = rng.random((20, 12)) < 0.25
    gold[:, 0] |= ~gold.any(axis=1)
    qrels = {str(q): {str(d): 1 for d in np.flatnonzero(row)} for q, row in enumerate(gold)}
    run = {str(q): {str(d): float(score) for d, score in enumerate(row)} for q, row in enumerate(scores)}
    relevant, num_gold = relevance_from_scores(scores, gold), gold.sum(axis=1)
    for k in (1, 5, 10):
        ours = {
            f"Success@{k}": hit_at_k(relevant, k),
            f"R@{k}": recall_at_k(relevant, num_gold, k),
            f"P@{k}": precision_at_k(relevant, k),
            f"AP@{k}": average_precision(relevant, num_gold, k, divide_by="gold"),
            f"RR@{k}": reciprocal_rank(relevant, k),
            f"nDCG@{k}": ndcg_at_k(relevant, num_gold, k),
        }
        for name, values in ours.items():
            said = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.parse_measure(name)], qrels, run)}
            np.testing.assert_allclose(values, [said[str(q)] for q in range(20)], atol=1e-9, err_msg=name)
    said = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.parse_measure("AP")], qrels, run)}
    np.testing.assert_allclose(average_precision(relevant, num_gold), [said[str(q)] for q in range(20)], atol=1e-9)


def test_hit_and_recall_agree_with_one_wanted_passage():
    relevant = RELEVANT[1:3]
    for k in range(1, 5):
        np.testing.assert_array_equal(hit_at_k(relevant, k), recall_at_k(relevant, 1, k))


def test_permuting_queries_permutes_the_result():
    order = [2, 0, 3, 1]
    np.testing.assert_array_equal(hit_at_k(RELEVANT[order], 2), hit_at_k(RELEVANT, 2)[order])
    np.testing.assert_array_equal(reciprocal_rank(RELEVANT[order]), reciprocal_rank(RELEVANT)[order])


def test_relevance_from_ids_of_unequal_lengths():
    marks = relevance_from_ids([["no", "sj", "fr"], ["fr"], []], [{"sj", "no", "bv"}, ["fr"], {"us"}])
    np.testing.assert_array_equal(marks, [[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert marks.dtype == np.bool_


def test_relevance_from_scores_matches_a_loop():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=(20, 12)) / 10  # many ties
    gold = rng.random((20, 12)) < 0.3
    for row, marks in enumerate(relevance_from_scores(scores, gold)):
        order = sorted(range(12), key=lambda column: (-scores[row, column], column))
        np.testing.assert_array_equal(marks, gold[row, order])


def test_ties_keep_column_order():
    np.testing.assert_array_equal(relevance_from_scores([[1.0, 1.0, 1.0]], [[False, True, False]]), [[0, 1, 0]])


def test_no_queries():
    empty = np.zeros((0, 3), dtype=bool)
    assert hit_at_k(empty, 1).shape == recall_at_k(empty, 1, 1).shape == reciprocal_rank(empty).shape == (0,)
    with pytest.raises(InvalidInputError, match="no rows"):
        mean_rank(empty)


def test_no_results():
    empty = relevance_from_ids([[], []], [{"fr"}, {"nl"}])
    assert empty.shape == (2, 0)
    np.testing.assert_array_equal(hit_at_k(empty, 1), [0, 0])
    np.testing.assert_array_equal(recall_at_k(empty, 1, 1), [0, 0])
    np.testing.assert_array_equal(reciprocal_rank(empty), [0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hit_at_k(RELEVANT, 0), "at least 1; came: 0"),
        (lambda: reciprocal_rank(RELEVANT, -1), "at least 1; came: -1"),
        (lambda: hit_at_k(RELEVANT[0], 1), r"came: bool \(4,\)"),
        (lambda: hit_at_k([[0.3, 0.9]], 1), "came: float64"),  # scores instead of marks
        (lambda: recall_at_k(RELEVANT, 0, 1), "at least 1"),
        (lambda: recall_at_k(RELEVANT, 1, 1), "number of wanted results"),  # row 0 has two
        (lambda: recall_at_k(RELEVANT, [4, 1], 1), r"expected a number or \(4,\)"),
        (lambda: ndcg_at_k(RELEVANT, 1, 1), "number of wanted results"),
        (lambda: average_precision(RELEVANT, NUM_GOLD, 1, "all"), "divide_by='all'"),
        (lambda: median_rank(np.zeros((0, 3), dtype=bool)), "median rank of no queries"),
        (lambda: relevance_from_ids([["fr"]], []), "1 rankings came with 0"),
        (lambda: relevance_from_ids([["fr"]], ["fr"]), "gold_ids holds 'fr'"),
        (lambda: relevance_from_ids(["fr"], [["fr"]]), "ranked_ids holds 'fr'"),
        (lambda: relevance_from_scores([[1.0, float("nan")]], [[True, False]]), "NaN"),
        (lambda: relevance_from_scores([[1.0]], [[True, False]]), "one shape"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
