"""What training looks up about passages: right, and without a Python object for each of many ids."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from hash_encoder import HashEncoder, built
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval.passage import SCHEMA, changed_rows
from hf_ravlm.training.batches.passage_view import PassageView


NUM_ROWS = 200_000


def table_of(texts: list[str] | np.ndarray, ids: pa.Array) -> pa.Table:
    columns = {"id": ids, "text": pa.array(texts, pa.large_string())}
    return pa.table([columns.get(one.name, pa.nulls(len(ids), one.type)) for one in SCHEMA], SCHEMA)


@pytest.fixture(scope="module")
def many():
    """Passages whose ids begin alike, in no order."""
    ids = pa.array(np.random.default_rng(0).permutation(NUM_ROWS)).cast(pa.string())
    return table_of(["one text"] * NUM_ROWS, pa.compute.binary_join_element_wise("article", ids, "-"))


class traced:  # noqa: N801, read as a word
    """The bytes of Python objects that a block makes and keeps or not, at most."""

    def __enter__(self):
        tracemalloc.start()
        return self

    def __exit__(self, *_):
        self.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def test_rows_and_ids_of_many_passages_are_found_without_an_object_for_each(many):
    vectors = np.broadcast_to(np.array([1, 0], np.float32), (NUM_ROWS, 2))
    view = PassageView(RavlmRetriever(KnowledgeBase(many), HashEncoder(), np.ascontiguousarray(vectors)))
    rows = [0, 7, NUM_ROWS - 1]
    with traced() as seen:
        ids = view.ids(rows)
        assert view.rows([*ids, "nobody"]) == rows
    assert ids == [many["id"][row].as_py() for row in rows]
    assert seen.peak < 16 * NUM_ROWS  # a dictionary of strings takes more than a hundred bytes for each


def test_an_id_is_found_in_another_unicode_form():
    view = PassageView(built([{"id": "Köln", "text": "a town"}, {"id": "x", "text": "a letter"}], HashEncoder()))
    assert view.rows(["x", "Ko\u0308ln", "y"]) == [1, 0]


def test_changes_between_many_passages_are_found_without_an_object_for_each(many):
    texts = np.full(NUM_ROWS + 1, "one text", object)
    texts[[3, 100_000]] = "another text"
    ids = many["id"].combine_chunks()
    swapped = pa.concat_arrays([ids[:50], pa.array(["new-1", "new-2"]), ids[53:], ids[50:52]])  # row 52 is gone
    after = table_of(texts, swapped)
    with traced() as seen:
        gone, new = changed_rows(many, after)
    name = [scalar.as_py() for scalar in ids.take(pa.array([3, 52, 100_001]))]
    assert gone == name
    assert new["id"].to_pylist() == [name[0], "new-1", "new-2", name[2]]
    assert seen.peak < 30 * NUM_ROWS


def test_a_change_of_any_column_is_a_change():
    rows = [{"id": "wren", "text": "small", "n": 1}, {"id": "robin", "text": "red"}, {"id": "owl", "text": "big"}]
    before = KnowledgeBase.from_dicts(rows).table
    for key, value in (("text", "x"), ("title", "x"), ("url", "x"), ("n", 2), ("source", "x")):
        after = KnowledgeBase.from_dicts([rows[2], {**rows[0], key: value}, rows[1]]).table
        gone, new = changed_rows(before, after)
        assert (gone, new["id"].to_pylist()) == (["wren"], ["wren"])
    assert changed_rows(before, before.take([2, 0, 1]))[0] == []
    assert changed_rows(before, before.slice(0, 0))[0] == ["wren", "robin", "owl"]
    assert len(changed_rows(before.slice(0, 0), before)[1]) == 3
