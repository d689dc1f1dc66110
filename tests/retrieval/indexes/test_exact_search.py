from __future__ import annotations

import threading

import faiss
import numpy as np
import pytest

from clustered_vectors import random_units
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval.indexes import exact_search as module
from hf_ravlm.retrieval.indexes.exact_search import exact_search
from hf_ravlm.retrieval.indexes.faiss_settings import matrix_products, thread_limit
from hf_ravlm.retrieval.unit_vectors import unit_vectors


def brute_force(queries: np.ndarray, vectors: np.ndarray, k: int, allowed: np.ndarray | None = None):
    scores = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
        k = min(k, allowed.sum())
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def duplicated(num_rows: int) -> np.ndarray:
    """Few different vectors, each many times, in random places."""
    return random_units(7)[np.random.default_rng(1).integers(7, size=num_rows)]


@pytest.fixture(params=["bfloat16", "float32"])
def batch_scan(request, monkeypatch):
    """Both scans of batches, whatever this processor has, in blocks that are smaller than the test data."""
    monkeypatch.setattr(module, "_has_fast_bfloat16", lambda: request.param == "bfloat16")
    monkeypatch.setattr(module, "_ROWS_PER_BFLOAT16_BLOCK", 700)
    monkeypatch.setattr(module, "_ROWS_PER_BLOCK", 700)
    monkeypatch.setattr(module, "_QUERIES_PER_BLOCK", 30)


@pytest.mark.usefixtures("batch_scan")
@pytest.mark.parametrize("num_queries", [1, 7, 8, 40])
@pytest.mark.parametrize("make", [random_units, duplicated])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.002])
def test_answers_are_those_of_brute_force(num_queries, make, share):
    vectors, queries = make(2000), random_units(num_queries, seed=2)
    allowed = np.random.default_rng(3).random(2000) < share
    for k in (1, 10):
        scores, rows = exact_search(queries, vectors, k, allowed)
        expected_scores, expected_rows = brute_force(queries, vectors, k, allowed)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.usefixtures("batch_scan")
def test_vectors_closer_than_bfloat16_can_tell_are_told_apart():
    # Sixty vectors that differ from the query by less than a step of bfloat16, hidden among others.
    rng = np.random.default_rng(0)
    query = random_units(1, dim=64)
    close = query + 1e-4 * np.arange(1, 61)[:, None] * random_units(60, dim=64, seed=1)
    vectors = unit_vectors(rng.permutation(np.concatenate([close, random_units(3000, dim=64, seed=2)])), "vectors")
    queries = np.repeat(query, 20, axis=0)
    np.testing.assert_array_equal(exact_search(queries, vectors, 5)[1], brute_force(queries, vectors, 5)[1])


@pytest.mark.usefixtures("batch_scan")
def test_an_answer_does_not_depend_on_the_batch():
    vectors, queries = random_units(3000, dim=50), random_units(64, dim=50, seed=1)
    together = exact_search(queries, vectors, 10)
    for start, stop in ((0, 1), (1, 6), (6, 20), (20, 64)):
        scores, rows = exact_search(queries[start:stop], vectors, 10)
        np.testing.assert_array_equal(rows, together[1][start:stop])
        np.testing.assert_array_equal(scores, together[0][start:stop])


def test_a_memory_map_is_searched_where_it_is(tmp_path, monkeypatch):
    np.save(tmp_path / "vectors.npy", random_units(50))
    vectors, seen = np.load(tmp_path / "vectors.npy", mmap_mode="r"), []
    original = faiss.knn
    monkeypatch.setattr(
        faiss, "knn", lambda queries, x, *rest, **more: (seen.append(x), original(queries, x, *rest, **more))[1]
    )
    for num_queries in (1, 10):
        exact_search(random_units(num_queries, seed=1), vectors, 3)
    assert len(seen) == 2
    assert all(np.shares_memory(array, vectors) for array in seen)


def test_nothing_allowed_finds_nothing():
    scores, rows = exact_search(random_units(3), random_units(10), 5, np.zeros(10, bool))
    assert scores.shape == rows.shape == (3, 0)


def test_the_last_user_of_matrix_products_restores_the_threshold():
    before = faiss.cvar.distance_compute_blas_threshold
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with matrix_products():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(60)
    with matrix_products():
        assert faiss.cvar.distance_compute_blas_threshold == 1
    assert faiss.cvar.distance_compute_blas_threshold == 1
    leave.set()
    thread.join()
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_threads_are_limited_inside_and_restored_after():
    before = faiss.omp_get_max_threads()
    with thread_limit(before + 1):
        assert faiss.omp_get_max_threads() == before + 1
    assert faiss.omp_get_max_threads() == before
    for wrong in (0, 1.5, True):
        with pytest.raises(InvalidInputError, match="num_threads="), thread_limit(wrong):
            pass
