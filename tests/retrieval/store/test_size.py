"""What only size shows: memory that grows with the knowledge, a catalogue with faults, writers that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hash_encoder import HashEncoder, built
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever, row_spool, verify_store
from hf_ravlm.retrieval.passage import rows_at
from hf_ravlm.retrieval.store.state import KnowledgeState


_POOLS: list[pa.MemoryPool] = []  # what they gave may live longer than a test


@contextmanager
def counted_memory():
    """Gives a pool of Arrow that knows the most it had to give while the block ran."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    _POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


@pytest.fixture(scope="module")
def heavy_rows():
    return [{"id": str(n), "text": f"topic{n % 5} {n} {'x' * 2_000}"} for n in range(10_000)]  # 20 MB


@pytest.mark.parametrize("num_rows", [5, 200])
def test_a_few_passages_of_many_are_not_copied_with_all_others(num_rows):
    parts = [{"id": [f"{n}" for n in range(part, part + 500)], "text": ["x" * 2_000] * 500}
             for part in range(0, 20_000, 500)]  # fmt: skip
    table = pa.concat_tables(map(pa.table, parts))
    rows = np.random.default_rng(0).integers(20_000, size=num_rows)
    with counted_memory() as pool:
        found = rows_at(table, rows)
    assert found["id"].to_pylist() == [str(row) for row in rows]
    assert pool.max_memory() < table.nbytes / 10


def test_what_is_left_after_removals_is_not_copied(heavy_rows):
    retriever = built(heavy_rows, HashEncoder())
    gone = {"0", "7", "8", "9999"}
    with counted_memory() as pool:
        retriever.remove(sorted(gone))
        table = retriever.knowledge_base.table
    assert pool.max_memory() < 3_000_000
    assert table["id"].to_pylist() == [row["id"] for row in heavy_rows if row["id"] not in gone]
    retriever.remove([str(n) for n in range(1, 9_000, 2) if str(n) not in gone])
    left = [row["id"] for n, row in enumerate(heavy_rows) if row["id"] not in gone and (n % 2 == 0 or n > 9_000)]
    assert retriever.knowledge_base.ids == left
    retriever.remove(left)
    assert retriever.knowledge_base.ids == []


def test_a_store_is_verified_and_opened_without_all_of_its_passages_in_memory(heavy_rows, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ravlm.retrieval.store.row_files._MAX_ROWS_PER_FILE", 500)
    built(heavy_rows, HashEncoder()).save_pretrained(tmp_path)
    with counted_memory() as pool:
        report = verify_store(tmp_path / "knowledge_base")
    assert (report["ok"], report["passages"]) == (True, 10_000)
    assert pool.max_memory() < 10_000_000
    monkeypatch.setattr(row_spool, "MAX_BYTES_IN_MEMORY", 1_000_000)
    with counted_memory() as pool:
        opened = RavlmRetriever.from_pretrained(tmp_path, HashEncoder())
    assert opened.knowledge_base["77"].text == heavy_rows[77]["text"]
    assert pool.max_memory() < 10_000_000
    row_spool.release_rows()
    assert opened.knowledge_base.passages([9_999])[0].text == heavy_rows[9_999]["text"]


def test_ids_are_compared_without_an_object_for_each(monkeypatch):
    ids = pa.chunked_array([pa.array([str(n) for n in range(5_000)])])
    knowledge = built([{"id": "owl", "text": "an owl"}], HashEncoder())._knowledge
    monkeypatch.setattr(KnowledgeBase, "ids", property(lambda self: pytest.fail("a list of ids was made")))
    knowledge.check_new(ids)
    assert knowledge.rows_of(pa.chunked_array([pa.array(["kite", "owl"])])).tolist() == [-1, 0]
    with pytest.raises(ValueError, match="1 of 2 passages have ids that are in the knowledge base already: 'owl'"):
        KnowledgeState.check_new(knowledge, pa.chunked_array([pa.array(["kite", "owl"])]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_catalogue_with_broken_rows_outlives_kills_and_two_writers(tmp_path):
    program = Path(__file__).parent / "broken_catalogue.py"  # with 20,000 rows it takes minutes
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), str(tmp_path / "catalogue"), "300"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["statuses"] == [0, 0, 0], report["trouble"]
    assert (report["build_was_killed"], report["writer_was_killed"]) == (True, True)
    assert report["share_encoded_again"] < 0.7
    assert report["left_out"] == report["broken"] == 75
    assert (report["verified"], report["wrong"], report["wrong_vectors"]) == (True, [], 0)
