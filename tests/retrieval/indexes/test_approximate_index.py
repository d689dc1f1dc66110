from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace

import faiss
import numpy as np
import pytest

from clustered_vectors import clustered
from hf_ravlm.errors import InvalidInputError, KnowledgeBaseCorruptError
from hf_ravlm.retrieval.indexes import vector_index
from hf_ravlm.retrieval.indexes.exact_search import exact_search
from hf_ravlm.retrieval.indexes.index_choice import estimate_index
from hf_ravlm.retrieval.indexes.index_tuning import found_share
from hf_ravlm.retrieval.indexes.index_types import INDEX_TYPES, is_available
from hf_ravlm.retrieval.indexes.vector_index import ApproximateIndex, FlatIndex, build_index, open_index


KINDS = [kind for kind in INDEX_TYPES if is_available(kind)]
VECTORS, QUERIES = clustered(3000), clustered(100, seed=1)


@pytest.fixture(autouse=True)
def without_planner(monkeypatch):
    """These vectors are so few that exact search would be chosen throughout."""
    monkeypatch.setattr(vector_index, "exact_is_cheaper", lambda *_: False)


@pytest.fixture(scope="module")
def indexes():
    return {kind: build_index(VECTORS, kind, num_threads=1) for kind in KINDS}


@pytest.fixture(params=KINDS)
def index(request, indexes) -> ApproximateIndex:
    return indexes[request.param]


def test_the_wanted_recall_is_reached_and_reported(index):
    scores, rows = index.search(QUERIES, 10)
    exact_scores, exact_rows = exact_search(QUERIES, VECTORS, 10)
    assert found_share(rows, exact_rows) >= 0.93
    # The made queries are no easier than these, so the report does not flatter.
    assert 0.93 <= index.spec["recall"]["measured"] <= found_share(rows, exact_rows) + 0.03
    # What is found has its exact score, whatever the index stores.
    same = rows == exact_rows
    assert same.any()
    np.testing.assert_array_equal(scores[same], exact_scores[same])


def test_results_are_valid_best_first_and_distinct(index):
    for num_queries, k in ((1, 1), (3, 25), (40, 7)):
        scores, rows = index.search(QUERIES[:num_queries], k)
        assert rows.shape == scores.shape == (num_queries, k)
        assert (np.diff(scores, axis=1) <= 0).all()
        assert all(len(set(row)) == k for row in rows.tolist())
        assert rows.min() >= 0
    scores, rows = index.search(QUERIES[:2], 10_000)
    assert (np.sort(rows, axis=1) == np.arange(len(VECTORS))).all()


@pytest.mark.parametrize("num_queries", [1, 20])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.01, 0.001])
def test_filters_are_kept_and_found(index, share, num_queries):
    allowed = np.random.default_rng(5).random(len(VECTORS)) < share
    hits = []
    for start in range(0, 20, num_queries):
        queries = QUERIES[start : start + num_queries]
        scores, rows = index.search(queries, 10, allowed=allowed)
        assert rows.shape == (num_queries, min(10, allowed.sum()))
        assert allowed[rows].all()
        hits.append(found_share(rows, exact_search(queries, VECTORS, 10, allowed)[1]))
    assert np.mean(hits) >= 0.9


def test_a_filter_against_the_query_still_fills_the_answer(index):
    # Only what is far from the query is allowed: a graph or a few lists alone would find nothing.
    query = QUERIES[:1]
    similarity = VECTORS @ query[0]
    allowed = similarity < np.quantile(similarity, 0.4)
    scores, rows = index.search(query, 10, allowed=allowed)
    assert rows.shape == (1, 10)
    assert allowed[rows].all()


def test_written_and_opened_it_answers_the_same(index, tmp_path):
    index.write(tmp_path / "index.faiss")
    spec = json.loads(json.dumps(index.spec))
    for mmap in (True, False):
        opened = open_index(tmp_path / "index.faiss", spec, VECTORS, mmap=mmap)
        assert opened.spec == index.spec
        for ours, theirs in zip(opened.search(QUERIES, 10), index.search(QUERIES, 10)):
            np.testing.assert_array_equal(ours, theirs)


def test_the_file_is_about_as_large_as_was_estimated(index, tmp_path):
    index.write(tmp_path / "index")
    size = (tmp_path / "index").stat().st_size
    # Codes that are compared 32 at once fill their lists up to multiples of 32.
    assert 0.75 < size / estimate_index(3000, 32, index.kind).disk_bytes < 1.6


def test_growing_leaves_the_old_index_as_it_is(index, tmp_path):
    index.write(tmp_path / "index.faiss")
    mapped = open_index(tmp_path / "index.faiss", index.spec, VECTORS)
    more = clustered(500, seed=7)
    before = index.search(QUERIES, 10)
    for old in (index, mapped):
        longer = old.grow(np.concatenate([VECTORS, more]))
        assert (len(old), len(longer)) == (3000, 3500)
        found = longer.search(more, 1)[1][:, 0]
        assert (found == np.arange(3000, 3500)).mean() >= 0.95
        for ours, theirs in zip(old.search(QUERIES, 10), before):
            np.testing.assert_array_equal(ours, theirs)
    assert longer.spec["rows"] == 3500
    assert longer.spec["built_rows"] == 3000


def test_an_index_that_has_more_than_doubled_is_built_anew():
    small = build_index(VECTORS[:400], "ivf_sq8", num_threads=1)
    grown = small.grow(VECTORS)
    assert grown.spec["built_rows"] == 3000
    with pytest.raises(InvalidInputError, match="at least the 400"):
        small.grow(VECTORS[:300])


def test_searching_while_growing_and_with_other_filters_is_safe(indexes):
    for kind in ("hnsw_sq8", "ivf_sq8"):
        index = indexes[kind]
        allowed = np.arange(len(VECTORS)) % 2 == 0
        expected = [index.search(QUERIES[:4], 10)[1], index.search(QUERIES[:4], 10, allowed=allowed)[1]]
        wrong, grown = [], []

        def search(mask, rows, index=index, wrong=wrong):
            for _ in range(40):
                if not np.array_equal(index.search(QUERIES[:4], 10, allowed=mask)[1], rows):
                    wrong.append(rows)

        def grow(index=index, grown=grown):
            longer = index
            for seed in range(5):
                longer = longer.grow(np.concatenate([longer.vectors, clustered(20, seed=seed)]))
            grown.append(len(longer))

        threads = [threading.Thread(target=search, args=pair) for pair in zip((None, allowed), expected)]
        threads.append(threading.Thread(target=grow))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert grown == [3100]


def test_the_same_seed_builds_the_same_index(index, tmp_path):
    again = build_index(VECTORS, index.kind, num_threads=1)
    assert again.spec == index.spec
    for place, which in enumerate((index, again)):
        which.write(tmp_path / str(place))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_a_damaged_foreign_or_missing_file_is_refused(indexes, tmp_path):
    index, path = indexes["ivf_sq8"], tmp_path / "index.faiss"
    index.write(path)
    data = path.read_bytes()
    others = clustered(3000, seed=8)
    with pytest.raises(KnowledgeBaseCorruptError, match="built of others"):
        open_index(path, index.spec, others)
    with pytest.raises(KnowledgeBaseCorruptError, match="3000 vectors of width 32 instead of 2999"):
        open_index(path, index.spec, VECTORS[:2999])
    with pytest.raises(KnowledgeBaseCorruptError, match="IndexIVFScalarQuantizer instead of IndexHNSWSQ"):
        open_index(path, indexes["hnsw_sq8"].spec, VECTORS)
    for size in (0, 4, 100, len(data) // 2, len(data) - 100):
        (tmp_path / "cut").write_bytes(data[:size])
        for mmap in (True, False):
            with pytest.raises(KnowledgeBaseCorruptError, match="cannot be read"):
                open_index(tmp_path / "cut", index.spec, VECTORS, mmap=mmap)
    with pytest.raises(KnowledgeBaseCorruptError, match="cannot be read"):
        open_index(tmp_path / "absent", index.spec, VECTORS)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "flat"},
        {"kind": ["ivf_sq8"]},
        {"effort": []},
        {"effort": [[1, 2]]},
        {"effort": [[2.0, 4, 100.0, 2]]},
        {"effort": [[1.0, float("nan"), 1.0, 2]]},
        {"effort": [[1.0, -5, 1.0, 2]]},
        {"effort": [[1.0, 4, 100.0, 10**9]]},
        {"effort": [[1.0, 4, 100.0, 0]]},
        {"effort": [[1.0, 4, 100.0, float("inf")]]},
        {"candidates": 2},
        {"recall": None},
        {"built_rows": "many"},
    ],
)
def test_a_description_that_cannot_be_is_refused(indexes, tmp_path, change):
    index, path = indexes["ivf_sq8"], tmp_path / "index.faiss"
    index.write(path)
    with pytest.raises((KnowledgeBaseCorruptError, InvalidInputError)):
        open_index(path, {**index.spec, **change}, VECTORS)


def test_a_description_of_an_earlier_version_has_one_number_of_candidates(indexes, tmp_path):
    index, path = indexes["ivf_sq8"], tmp_path / "index.faiss"
    index.write(path)
    earlier = {**index.spec, "effort": [row[:3] for row in index.spec["effort"]], "candidates": 2}
    opened = open_index(path, earlier, VECTORS)
    assert opened.spec == index.spec
    np.testing.assert_array_equal(opened.search(QUERIES, 10)[1], index.search(QUERIES, 10)[1])


def test_a_row_that_does_not_exist_is_an_error_and_not_another_passage(indexes):
    index = indexes["ivf_flat"]
    beyond = faiss.deserialize_index(faiss.serialize_index(index._filled.index))
    beyond.reset()
    beyond.add_with_ids(VECTORS, np.arange(len(VECTORS)) + 1_000_000)
    damaged = ApproximateIndex(beyond, VECTORS, index._table, index.spec)
    with pytest.raises(KnowledgeBaseCorruptError, match=r"outside 0\.\.2999"):
        damaged.search(QUERIES, 5)


def test_given_queries_set_the_effort_and_too_few_are_refused():
    tuned = build_index(VECTORS, "hnsw", queries=QUERIES, num_threads=1)
    assert tuned.spec["recall"]["queries"] == "given"
    with pytest.raises(InvalidInputError, match="at least 2"):
        build_index(VECTORS, "hnsw", queries=QUERIES[:1])


def test_more_recall_costs_more_effort(indexes):
    careful = build_index(VECTORS, "ivf_sq8", recall=0.995, num_threads=1)
    assert careful.spec["effort"][0][1] > indexes["ivf_sq8"].spec["effort"][0][1]
    assert found_share(careful.search(QUERIES, 10)[1], exact_search(QUERIES, VECTORS, 10)[1]) >= 0.985


def test_few_vectors_are_searched_exactly_and_an_unknown_kind_is_refused():
    assert isinstance(build_index(VECTORS[:50], "hnsw"), FlatIndex)
    assert isinstance(build_index(np.zeros((0, 8), np.float32), "auto"), FlatIndex)
    for wrong in ({"kind": "annoy"}, {"recall": 0}, {"recall": 1.5}, {"kind": "hnsw", "memory_budget": 1000}):
        with pytest.raises(InvalidInputError):
            build_index(VECTORS, **wrong)


def test_what_it_needs_is_logged_before_and_what_it_finds_after(caplog):
    with caplog.at_level(logging.INFO, logger="hf_ravlm"):
        build_index(VECTORS, "ivf_sq8", num_threads=1)
    first, second = (record.getMessage() for record in caplog.records)
    assert "3000 vectors" in first
    assert "of memory" in first
    assert "exact 10 best" in second


class _Blind:
    """A FAISS index that never finds some vectors, as a large graph may."""

    def __init__(self, index, unseen):
        self.index, self.unseen = index, unseen

    def search(self, queries, count, params=None):
        scores, rows = self.index.search(queries, count, params=params)
        return scores, np.where(np.isin(rows, self.unseen), -1, rows)


def test_an_index_that_misses_single_vectors_belongs_to_its_vectors_all_the_same():
    vectors = clustered(600, seed=5)
    index = build_index(vectors, "hnsw_sq8", num_threads=1)
    assert index.finds_itself()
    whole = index._filled
    index._filled = replace(whole, index=_Blind(whole.index, [300, 0]))
    assert index.finds_itself()
    index._filled = replace(whole, index=_Blind(whole.index, np.arange(600)))
    assert not index.finds_itself()
