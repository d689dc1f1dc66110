from __future__ import annotations

import numpy as np
import pytest

from clustered_vectors import clustered
from hf_ravlm.retrieval.indexes import index_tuning
from hf_ravlm.retrieval.indexes.approximate_search import FilledIndex, exact_is_cheaper
from hf_ravlm.retrieval.indexes.exact_search import exact_search
from hf_ravlm.retrieval.indexes.index_building import add_rows, trained_index
from hf_ravlm.retrieval.indexes.index_tuning import EffortTable, found_share, perturbed_passages, tune


TABLE = EffortTable((1.0, 10.0), (16, 64), (500.0, 2000.0), (2, 7), 0.95)


def test_effort_and_cost_lie_on_lines_between_what_was_measured():
    assert [TABLE.effort(depth) for depth in (0.5, 1.0, 10**0.5, 10.0, 30.0)] == [16, 16, 32, 64, 192]
    assert [round(TABLE.cost(depth)) for depth in (0.5, 1.0, 10**0.5, 10.0)] == [500, 500, 1000, 2000]
    assert TABLE.cost(11.0) == float("inf")
    assert [TABLE.candidates_at(depth) for depth in (0.5, 1.0, 2.0, 10.0, 30.0)] == [2, 2, 7, 7, 7]


def filled_index(vectors, kind):
    index = trained_index(vectors, kind, seed=0)
    add_rows(index, vectors)
    return FilledIndex(index, kind, vectors)


def test_made_queries_are_unit_vectors_away_from_every_passage_and_seeded():
    vectors = clustered(2000)
    made = perturbed_passages(vectors, 300, seed=0)
    assert made.shape == (300, 32)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(made, perturbed_passages(vectors, 300, seed=0))
    nearest = exact_search(made, vectors, 1)[0]
    assert 0.5 < nearest.mean() < 0.95


def test_passages_as_queries_would_flatter_the_index():
    vectors = clustered(3000)
    index = filled_index(vectors, "ivf_sq8")
    made = perturbed_passages(vectors, 600, seed=1)
    honest = tune(index, 0.95, made, seed=0)
    flattered = tune(index, 0.95, vectors[:600], seed=0)
    assert flattered.efforts[0] <= honest.efforts[0]
    assert flattered.efforts[0] < honest.efforts[-1]


def test_deeper_answers_take_no_less_effort_and_more_recall_takes_more():
    vectors = clustered(3000)
    index = filled_index(vectors, "ivf_flat")
    tables = [tune(index, recall, None, seed=0) for recall in (0.8, 0.99)]
    for table in tables:
        assert list(table.efforts) == sorted(table.efforts)
    assert tables[0].efforts[0] < tables[1].efforts[0]
    assert tables[0].recall < tables[1].recall


@pytest.mark.parametrize(
    ("deeper", "candidates", "depths"), [(10, (5, 10, 10, 10), (1.0, 3.0, 10.0, 30.0)), (1000, (5,), (1.0,))]
)
def test_deeper_answers_get_as_many_candidates_as_they_need(monkeypatch, deeper, candidates, depths):
    """With those of the first depth alone, half of the passages behind a filter were compared one by one."""
    index = filled_index(clustered(1000), "ivf_pq")

    def reaches(trial, recall, effort, candidates):
        return candidates >= (5 if trial.allowed is None else deeper)

    monkeypatch.setattr(index_tuning._Trial, "reaches", reaches)
    table = tune(index, 0.95, None, seed=0)
    assert (table.candidates, table.depths) == (candidates, depths)


def test_the_share_that_is_found_ignores_the_order():
    assert found_share(np.array([[1, 2, 3]]), np.array([[3, 1, 9]])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", ["hnsw_sq8", "ivf_sq8", "ivf_pq", "ivf_rabitq"])
@pytest.mark.parametrize("num_queries", [1, 50])
def test_the_stricter_a_filter_the_sooner_exact_search_is_chosen(kind, num_queries):
    chosen = [exact_is_cheaper(5000, 70, kind, 10**6, allowed, num_queries) for allowed in (10**6, 10**5, 10**4, 100)]
    assert chosen == sorted(chosen)
    assert chosen[-1]
    assert exact_is_cheaper(float("inf"), 70, kind, 10**6, 10**6, num_queries)
