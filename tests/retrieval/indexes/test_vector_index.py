from __future__ import annotations

import threading

import faiss
import numpy as np
import pytest
import torch

from clustered_vectors import random_units
from hf_ravlm.errors import InvalidInputError, UnsafeInputError
from hf_ravlm.retrieval import FlatIndex


@pytest.mark.parametrize("num_queries", [1, 7, 8, 50])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_search_equals_brute_force(num_queries, k):
    vectors, queries = random_units(300), random_units(num_queries, seed=1)
    scores, rows = FlatIndex(vectors).search(queries, k)
    expected = queries @ vectors.T  # (n, N)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, axis=1), atol=1e-6)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64


@pytest.mark.parametrize("num_queries", [1, 20])
def test_k_beyond_the_index_returns_every_row_once(num_queries):
    scores, rows = FlatIndex(random_units(3)).search(random_units(num_queries, seed=1), k=1000)
    assert rows.shape == scores.shape == (num_queries, 3)
    assert (np.sort(rows, axis=1) == [0, 1, 2]).all()


def test_an_empty_index_and_an_empty_batch_return_nothing():
    scores, rows = FlatIndex(np.zeros((0, 16), np.float32)).search(random_units(4), k=5)
    assert scores.shape == rows.shape == (4, 0)
    scores, rows = FlatIndex(random_units(3)).search(np.zeros((0, 16), np.float32), k=2)
    assert scores.shape == rows.shape == (0, 2)


def test_equal_scores_come_in_the_order_of_rows():
    vectors = np.repeat(random_units(1), 6, axis=0)
    for queries in (random_units(1), np.repeat(random_units(1), 9, axis=0)):
        _, rows = FlatIndex(vectors).search(queries, k=6)
        assert (rows == np.arange(6)).all()


def test_queries_of_any_length_type_and_layout_give_cosines():
    vectors, queries = random_units(50), random_units(9, seed=1)
    index = FlatIndex(vectors)
    scores, rows = index.search(queries, 5)
    variants = [
        queries * 1000,
        queries.astype(np.float64),
        np.asfortranarray(queries),
        np.repeat(queries, 2, axis=0)[::2],
        torch.tensor(queries, requires_grad=True),
    ]
    for variant in variants:
        other_scores, other_rows = index.search(variant, 5)
        np.testing.assert_array_equal(other_rows, rows)
        np.testing.assert_allclose(other_scores, scores, atol=1e-6)
    half_scores, _ = index.search(torch.tensor(queries).bfloat16(), 5)
    np.testing.assert_allclose(half_scores, scores, atol=2e-2)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.zeros(16, np.float32), r"reshape\(1, -1\)"),
        (np.zeros((2, 3, 16), np.float32), r"\(2, 3, 16\)"),
        (np.ones((2, 15), np.float32), "15 wide.*width 16"),
        (np.ones((2, 16), np.int32), "int32"),
    ],
)
def test_queries_of_a_wrong_shape_or_type_are_refused(queries, message):
    with pytest.raises(InvalidInputError, match=message):
        FlatIndex(random_units(5)).search(queries, 1)


@pytest.mark.parametrize("k", [0, -1, 1.5, "3", None, True])
def test_k_is_a_whole_number_of_at_least_one(k):
    with pytest.raises(InvalidInputError, match="k="):
        FlatIndex(random_units(5)).search(random_units(1), k)
    with pytest.raises(InvalidInputError, match="k="):
        FlatIndex(np.zeros((0, 0), np.float32)).search(random_units(1), k)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_vectors_without_a_direction_are_refused_with_their_rows(value):
    vectors = random_units(10).copy()
    vectors[[3, 7]] = value
    for use in (FlatIndex, lambda bad: FlatIndex(random_units(5)).search(bad, 1)):
        with pytest.raises(UnsafeInputError, match="2 of 10 .*: 3, 7"):
            use(vectors)


def test_stored_vectors_must_have_length_one():
    vectors = random_units(4).copy()
    vectors[2] *= 1000
    with pytest.raises(UnsafeInputError, match=r"not of length 1 .*: 2\."):
        FlatIndex(vectors)


def test_the_blas_threshold_of_the_process_is_restored(monkeypatch):
    before = faiss.cvar.distance_compute_blas_threshold
    index, seen = FlatIndex(random_units(20)), []
    original = faiss.knn

    def knn(*args, **kwargs):
        seen.append(faiss.cvar.distance_compute_blas_threshold)
        return original(*args, **kwargs)

    monkeypatch.setattr(faiss, "knn", knn)
    index.search(random_units(1), 3)
    index.search(random_units(8), 3)
    assert seen == [before, 1]

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(faiss, "knn", fail)
    with pytest.raises(MemoryError):
        index.search(random_units(8), 3)
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_threads_may_search_together():
    before = faiss.cvar.distance_compute_blas_threshold
    index, queries = FlatIndex(random_units(500)), random_units(12, seed=1)
    expected = index.search(queries, 5)[1]
    wrong = []

    def search():
        for size in (1, 12, 3, 12):
            rows = index.search(queries[:size], 5)[1]
            if not np.array_equal(rows, expected[:size]):
                wrong.append(rows)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_the_vectors_of_an_index_cannot_be_changed_through_it():
    with pytest.raises(ValueError, match="read-only"):
        FlatIndex(random_units(3)).vectors[0] = 0
