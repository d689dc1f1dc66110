"""Vectors that grow behind a mapped file: no copy, nothing written back, and the same searches."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest

from hash_encoder import HashEncoder, numbered
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever, row_spool
from hf_ravlm.retrieval.sources.checked_rows import SourceRow, table_from_rows
from hf_ravlm.retrieval.store.growing_array import GrowingArray, joined, with_room


ROWS = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "vectors"
    path.write_bytes(b"head" * 100 + ROWS.tobytes() + b"tail" * 10)
    return path, np.memmap(path, np.float32, "r", 400, ROWS.shape)


def test_a_mapped_array_grows_without_being_copied_and_its_file_stays(mapped):
    path, vectors = mapped
    before = path.read_bytes()
    buffer = GrowingArray()
    longer = buffer.extended(vectors[:], ROWS[:3])
    longest = buffer.extended(longer, ROWS[5:7])
    np.testing.assert_array_equal(longest, np.concatenate([ROWS, ROWS[:3], ROWS[5:7]]))
    assert np.shares_memory(longer, longest)
    assert path.read_bytes() == before
    if sys.platform == "linux":  # what stands in the file is what is seen
        with open(path, "r+b") as file:
            file.seek(400)
            file.write(np.float32(7).tobytes())
        assert longest[0, 0] == 7


def test_other_arrays_are_copied_and_a_file_that_is_gone_is_no_fault(mapped):
    path, vectors = mapped
    np.testing.assert_array_equal(with_room(ROWS, 2)[:-2], ROWS)
    np.testing.assert_array_equal(with_room(vectors[::2], 2)[:-2], ROWS[::2])
    part = with_room(vectors[3:], 2)
    np.testing.assert_array_equal(part[:-2], ROWS[3:])
    path.unlink()
    np.testing.assert_array_equal(with_room(vectors, 2)[:-2], ROWS)
    np.testing.assert_array_equal(joined([vectors, ROWS[:5], ROWS[:1]]), np.concatenate([ROWS, ROWS[:5], ROWS[:1]]))


@pytest.mark.parametrize("index", ["flat", "ivf_sq8"])
def test_what_is_added_to_a_stored_base_is_found_there_and_when_it_is_opened_again(tmp_path, index):
    encoder, rows = HashEncoder(), numbered(range(12_000))
    RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder, index=index).save_pretrained(tmp_path)
    opened = RavlmRetriever.from_pretrained(tmp_path, encoder)
    for start in (12_000, 12_010):
        opened.add(numbered(range(start, start + 10)))
    again = RavlmRetriever.from_pretrained(tmp_path, encoder)
    for retriever in (opened, again):
        assert len(retriever) == 12_020
        for number in (0, 11_999, 12_000, 12_019):
            words = numbered([number])[0]["text"]
            assert retriever.retrieve(None, [words], k=1)[0][0].id == str(number)
    np.testing.assert_array_equal(opened.vectors, again.vectors)
    opened.remove(["12015", "3"])
    opened.update([{"id": "5", "text": "topic9 quite another"}])
    assert opened.retrieve(None, ["topic9 quite another"], k=1)[0][0].id == "5"
    assert len(RavlmRetriever.from_pretrained(tmp_path, encoder)) == 12_018


def test_rows_beyond_a_size_wait_on_the_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(row_spool, "MAX_BYTES_IN_MEMORY", 100_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = [SourceRow(f"row {n}", {"id": n, "text": "words " * 40}, {"number": n}) for n in range(5_000)]
    table, skipped = table_from_rows(rows)
    assert (len(table), skipped, list(tmp_path.iterdir())) == (5_000, [], [])
    monkeypatch.undo()
    assert table.equals(table_from_rows(rows)[0])
    assert pa.total_allocated_bytes() < 100_000_000


def test_a_spool_that_is_given_up_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(row_spool, "MAX_BYTES_IN_MEMORY", 1_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = [{"id": n, "text": "words"} for n in range(2_500)] + [{"id": "x"}]
    with pytest.raises(ValueError, match="neither text nor image"):
        KnowledgeBase.from_dicts(rows)
    assert list(tmp_path.iterdir()) == []
