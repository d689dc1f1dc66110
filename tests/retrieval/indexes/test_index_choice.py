from __future__ import annotations

from dataclasses import replace

import faiss
import pytest

from clustered_vectors import clustered
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval.indexes import index_choice, index_types
from hf_ravlm.retrieval.indexes.index_choice import estimate_index, suitable_kinds
from hf_ravlm.retrieval.indexes.index_types import (
    INDEX_TYPES,
    factory_string,
    is_available,
    metric_of,
    num_lists,
    num_parts,
)
from hf_ravlm.retrieval.indexes.vector_index import build_index


def test_the_choice_follows_size_memory_and_recall():
    assert suitable_kinds(0, 0)[0] == "flat"
    assert suitable_kinds(20_000, 384)[0] == "flat"
    assert suitable_kinds(117_791, 384)[:2] == ("ivf_pq", "hnsw_sq8")
    assert suitable_kinds(117_791, 384, recall=1.0)[0] == "flat"
    assert suitable_kinds(117_791, 384, memory_budget=60_000_000) == ("ivf_pq", "ivf_sq8", "ivf_rabitq")
    assert suitable_kinds(20_000, 384, memory_budget=20_000_000)[0] == "ivf_pq"
    assert "hnsw_sq8" not in suitable_kinds(10_000_000, 384)
    with pytest.raises(InvalidInputError, match="smallest is"):
        suitable_kinds(117_791, 384, memory_budget=1_000_000)


def test_every_choice_fits_its_budget():
    for budget in (10_000_000, 50_000_000, 100_000_000, 300_000_000):
        for kind in suitable_kinds(117_791, 384, memory_budget=budget):
            assert estimate_index(117_791, 384, kind).ram_bytes <= budget


def test_what_the_installed_faiss_lacks_is_not_chosen(monkeypatch):
    monkeypatch.setattr(index_choice, "is_available", lambda kind: kind != "ivf_pq")
    assert suitable_kinds(117_791, 384)[0] == "hnsw_sq8"


def test_auto_takes_another_kind_where_the_first_falls_short(monkeypatch):
    monkeypatch.setattr(index_choice, "_MAX_NUMBERS_TO_SCAN", 1000)
    vectors = clustered(2000)
    assert build_index(vectors, "auto", num_threads=1).spec["kind"] == "ivf_pq"
    # So many candidates that codes of four bits cannot tell apart: only more exact ones find nearly all.
    monkeypatch.setitem(index_types.INDEX_TYPES, "ivf_pq", replace(INDEX_TYPES["ivf_pq"], candidates=(1,)))
    index = build_index(vectors, "auto", num_threads=1)
    assert index.spec["kind"] == "hnsw_sq8"
    assert index.spec["recall"]["measured"] >= 0.94


@pytest.mark.parametrize("dim", [7, 30, 64, 384, 768])
def test_every_factory_string_is_known_to_faiss(dim):
    assert dim % num_parts(dim) == 0
    for kind in INDEX_TYPES:
        if is_available(kind):
            faiss.index_factory(dim, factory_string(kind, 50_000, dim), metric_of(kind))


def test_every_list_gets_forty_vectors():
    assert [num_lists(count) for count in (1, 100, 117_791, 1_000_000)] == [1, 2, 1024, 4096]


def test_one_bit_per_number_is_a_thirtysecond():
    estimate = estimate_index(1_000_000, 768, "binary")
    assert estimate.ram_bytes / estimate.vector_bytes == pytest.approx(1 / 32, rel=0.03)
