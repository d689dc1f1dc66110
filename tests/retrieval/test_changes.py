from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm.errors import (
    InvalidInputError,
    KnowledgeBaseLockedError,
    KnowledgeBaseMismatchError,
    KnowledgeBaseNotFoundError,
)
from hf_ravlm.retrieval import KnowledgeBase, Passage, RavlmRetriever, store_info
from hf_ravlm.retrieval import retriever as retriever_module
from hf_ravlm.retrieval.indexes.index_types import INDEX_KINDS
from hf_ravlm.retrieval.store import saving
from hf_ravlm.retrieval.store.versions import read_version


APPROXIMATE = [kind for kind in INDEX_KINDS if kind not in ("flat", "auto")]


@pytest.fixture
def hash_encoder():
    return HashEncoder()


def answers(retriever: RavlmRetriever, k: int = 4) -> list[list[tuple[str, str]]]:
    texts = [f"topic{n} number {n} first" for n in range(7)]
    return [[(item.id, item.text) for item in found] for found in retriever.retrieve(texts=texts, k=k)]


@pytest.fixture(params=["in-memory", "in-a-folder"])
def living(request, hash_encoder, tmp_path):
    """A retriever over 30 passages."""
    retriever = built(numbered(range(30)), hash_encoder)
    if request.param == "in-a-folder":
        retriever.save_pretrained(tmp_path)
    return retriever


# --- Changes


def test_what_was_added_is_found_and_what_was_removed_is_not(living, hash_encoder):
    living.add(numbered([30, 31]))
    living.remove(["3", "31", "10"])
    expected = built(numbered([n for n in range(31) if n not in (3, 10)]), hash_encoder)
    assert len(living) == len(living.knowledge_base) == 29
    assert living.knowledge_base.table.equals(expected.knowledge_base.table)
    np.testing.assert_array_equal(living.vectors, expected.vectors)
    assert answers(living, 29) == answers(expected, 29)
    scores, rows = living.search_vectors(expected.vectors, 1)
    assert rows[:, 0].tolist() == list(range(29))  # rows of the knowledge base, whatever was removed
    np.testing.assert_allclose(scores, 1, atol=1e-6)


def test_an_update_replaces_what_differs_and_encodes_nothing_else(living, hash_encoder):
    before = hash_encoder.num_encoded
    living.update([*numbered([4, 5]), *numbered([6, 40], tag="second")])
    assert hash_encoder.num_encoded == before + 2
    assert len(living) == 31
    assert living.knowledge_base["6"].text == "topic6 number 6 second"
    assert living.knowledge_base["4"].text == "topic4 number 4 first"
    assert living.retrieve(texts="topic6 number 6 second", k=1)[0][0].id == "6"
    assert all(
        item.text != "topic6 number 6 first" for item in living.retrieve(texts="topic6 number 6 first", k=31)[0]
    )
    living.update([{**numbered([4])[0], "licence": "CC0-1.0"}])
    assert living.knowledge_base["4"].licence == "CC0-1.0"


@pytest.mark.parametrize("kind", ["dictionary", "passage", "knowledge base"])
def test_an_update_keeps_what_is_not_given_again(living, kind):
    image = living.knowledge_base["1"].image_bytes
    row = {"id": "x", "text": "topic1 x", "image": image, "title": "T", "year": 1999, "colour": "red"}
    living.add([row, {"id": "y", "text": "topic1 y", "image": image}])
    new = {"id": "x", "text": "topic1 z", "year": 2000}
    if kind == "passage":
        living.update([Passage("x", text="topic1 z", metadata={"year": 2000})])
    else:
        living.update(KnowledgeBase.from_dicts([new]) if kind == "knowledge base" else [new])
    after = living.knowledge_base["x"]
    assert (after.text, after.title, after.image_bytes) == ("topic1 z", "T", image)
    assert after.metadata == {"year": 2000, "colour": "red"}
    assert living.knowledge_base["y"].image_bytes == image


def test_an_update_drops_what_it_says_it_drops(living):
    image = living.knowledge_base["1"].image_bytes
    living.add([{"id": "x", "text": "topic1 x", "image": image, "title": "T", "year": 1999, "colour": "red"}])
    living.update([{"id": "x", "image": None, "colour": None}])
    assert living.knowledge_base["x"] == Passage("x", text="topic1 x", title="T", metadata={"year": 1999})
    living.update([{"id": "x", "metadata": None, "title": None}])
    assert living.knowledge_base["x"] == Passage("x", text="topic1 x")
    with pytest.raises(InvalidInputError, match="neither text nor image"):
        living.update([{"id": "x", "text": None}])


def test_passages_may_come_as_dictionaries_as_passages_or_as_a_knowledge_base(living, hash_encoder):
    image = living.knowledge_base["1"].image_bytes
    living.add([Passage("x", text="topic1 x", image_bytes=image, licence="CC0-1.0", metadata={"year": 1999})])
    living.add(KnowledgeBase.from_dicts([{"id": "y", "text": "topic1 y"}]))
    living.add([])
    living.add(KnowledgeBase())
    assert living.knowledge_base["x"].metadata == {"year": 1999}
    assert living.knowledge_base["x"].licence == "CC0-1.0"
    assert living.knowledge_base["y"].text == "topic1 y"


def test_ids_that_are_taken_or_unknown_are_named_and_nothing_changes(living, hash_encoder):
    before, encoded = answers(living), hash_encoder.num_encoded
    with pytest.raises(InvalidInputError, match="2 of 3 passages have ids .* already: '3', '7'.*`update`"):
        living.add(numbered([3, 100, 7]))
    with pytest.raises(InvalidInputError, match="1 of 2 ids are not in the knowledge base: '99'. Nothing was removed"):
        living.remove(["5", "99"])
    assert answers(living) == before
    assert len(living) == 30
    assert hash_encoder.num_encoded == encoded
    living.remove("5")
    with pytest.raises(InvalidInputError, match="'5'"):
        living.remove("5")
    living.add(numbered([5]))  # free again
    assert living.knowledge_base.ids[-1] == "5"


def test_everything_may_go_and_come_back(living, hash_encoder):
    living.remove([str(n) for n in range(30)])
    assert len(living) == 0
    assert living.retrieve(texts="topic1") == [[]]
    living.compact()
    assert living.retrieve(texts="topic1") == [[]]
    living.add(numbered(range(3)))
    assert sorted(item.id for item in living.retrieve(texts="topic1")[0]) == ["0", "1", "2"]


def test_compacting_changes_no_answer(living):
    living.remove([str(n) for n in range(0, 30, 3)])
    before = answers(living, 20)
    living.compact()
    assert answers(living, 20) == before
    assert len(living.index) == len(living) == 20


def test_words_filters_and_sources_know_of_changes(living):
    living.add([{"id": "new", "text": "zygomorphic petals", "source": "s9"}])
    living.retrieve(texts="petals", channels=["bm25"])
    living.add([{"id": "newer", "text": "zygomorphic sepals", "source": "s9"}])
    living.remove("new")
    assert [item.id for item in living.retrieve(texts="zygomorphic", channels=["bm25"])[0]] == ["newer"]
    (found,) = living.retrieve(texts="topic1 number 1", k=30, where={"source": ["s9", "s1"]})
    assert sorted({item.source for item in found}) == ["s1", "s9"]
    assert "new" not in {item.id for item in found}
    (found,) = living.retrieve(texts="topic1 number 1", k=6, max_per_source=2)
    assert max(np.unique([item.source for item in found], return_counts=True)[1]) <= 2
    living.compact()
    assert [item.id for item in living.retrieve(texts="zygomorphic", channels=["bm25", "dense"])[0]][0] == "newer"
    with pytest.raises(InvalidInputError, match="SearchOptions"):
        living.retrieve(texts="topic1", max_per_sauce=2)


def test_an_encoder_that_was_trained_cannot_add(living, hash_encoder):
    hash_encoder.fingerprint = "b" * 64
    with pytest.raises(KnowledgeBaseMismatchError, match="has changed since"):
        living.add(numbered([50]))
    living.remove("3")
    assert len(living) == 29


def test_states_that_share_memory_never_change_each_other(hash_encoder):
    start = built(numbered(range(10)), hash_encoder)._knowledge
    states, tables = [start], [KnowledgeBase.from_dicts(numbered([n])).table for n in range(10, 40)]
    vectors = {n: hash_encoder.encode_queries(None, [f"topic{n % 7} number {n} first"]) for n in range(40)}
    for n, table in enumerate(tables, start=10):
        states.append(states[-1].appended(table, vectors[n]))
    fork = states[5].appended(tables[29], vectors[39])  # from the middle
    for number, state in enumerate(states):
        np.testing.assert_array_equal(state.vectors, np.concatenate([vectors[n] for n in range(10 + number)]))
    np.testing.assert_array_equal(fork.vectors[-1], vectors[39][0])
    assert len({id(state.vectors.base) for state in states[1:]}) < 15  # few copies for many additions


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_every_index_kind_grows_shrinks_and_is_found_again(kind, hash_encoder, tmp_path):
    retriever = built(numbered(range(300)), hash_encoder, index=kind)
    assert retriever.index.spec["kind"] == kind
    retriever.save_pretrained(tmp_path)
    retriever.add(numbered(range(300, 400)))
    retriever.remove([str(n) for n in range(100)])
    exact = built(numbered(range(100, 400)), hash_encoder)
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)
    for one in (retriever, again):
        assert one.index.spec["kind"] == kind
        np.testing.assert_array_equal(one.vectors, exact.vectors)
        rows = one.search_vectors(exact.vectors, 1)[1][:, 0]
        assert (rows == np.arange(300)).mean() > 0.95  # finds its own
        found = one.retrieve(texts=[f"topic{n} number {n} first" for n in range(100)], k=5)
        assert all(len(items) == 5 and all(int(item.id) >= 100 for item in items) for items in found)
    again.compact()
    assert len(again.index) == 300
    assert again.index.spec["kind"] == kind


def test_a_small_knowledge_base_gets_the_index_that_was_asked_for_once_it_has_grown(hash_encoder, tmp_path):
    retriever = built(numbered(range(20)), hash_encoder, index="hnsw")
    retriever.save_pretrained(tmp_path)
    assert retriever.index.spec["kind"] == "flat"
    retriever.add(numbered(range(20, 200)))
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)
    assert retriever.index.spec["kind"] == again.index.spec["kind"] == "hnsw"
    assert store_info(tmp_path / "knowledge_base")["index"]["indexed_rows"] == 200


# --- In a folder


def test_every_change_is_committed_and_writes_new_parts_only(hash_encoder, tmp_path):
    retriever = built(numbered(range(30)), hash_encoder)
    retriever.save_pretrained(tmp_path)
    store = tmp_path / "knowledge_base"

    def names():
        return {path.name for path in (store / "objects").rglob("*.*")}

    before = names()
    retriever.add(numbered([30]))
    added = names() - before
    assert len(added) == 2  # passages and vectors of one row
    retriever.remove("0")
    removed = names() - before - added
    assert len(removed) == 1  # the tombstones
    assert store_info(store)["generation"] == "gen-00000003"
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)
    assert answers(again, 30) == answers(retriever, 30)
    assert again.knowledge_base.table.equals(retriever.knowledge_base.table)
    assert KnowledgeBase.load(tmp_path).table.equals(retriever.knowledge_base.table)
    assert again.knowledge_base.ids[-1] == "30"


def test_two_retrievers_share_a_folder(hash_encoder, tmp_path):
    one = built(numbered(range(10)), hash_encoder)
    one.save_pretrained(tmp_path)
    two = RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)
    one.add(numbered([10]))
    assert len(two) == 10  # a reader keeps its state
    two.add(numbered([11]))  # a writer stands on the newest
    assert two.knowledge_base.ids[-2:] == ["10", "11"]
    assert one.refresh()
    assert not one.refresh()
    two.remove(["10", "3"])
    one.update(numbered([3], tag="second"))
    two.refresh()
    assert answers(one, 20) == answers(two, 20)
    one.compact()
    two.add(numbered([12]))
    assert "12" in two.knowledge_base
    assert len(two) == 12
    two.save_pretrained(tmp_path)
    assert len(RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)) == 12


def test_saving_to_its_own_folder_loses_nothing_that_others_added(hash_encoder, tmp_path):
    one = built(numbered(range(10)), hash_encoder)
    one.save_pretrained(tmp_path)
    RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder).add(numbered([10]))
    one.save_pretrained(tmp_path)
    assert "10" in one.knowledge_base
    assert len(KnowledgeBase.load(tmp_path)) == 11


def test_a_copy_of_another_folder_is_independent(hash_encoder, tmp_path):
    retriever = built(numbered(range(10)), hash_encoder)
    retriever.save_pretrained(tmp_path / "one")
    retriever.remove("2")
    retriever.save_pretrained(tmp_path / "two")
    retriever.add(numbered([10]))
    assert len(KnowledgeBase.load(tmp_path / "one")) == 9
    assert len(KnowledgeBase.load(tmp_path / "two")) == 10
    assert not read_version(tmp_path / "two" / "knowledge_base").files_of("tombstones")


def test_a_folder_taken_over_by_another_encoder_is_noticed(hash_encoder, encoder, tmp_path):
    retriever = built(numbered(range(10)), hash_encoder)
    retriever.save_pretrained(tmp_path)
    built(numbered(range(5)), encoder).save_pretrained(tmp_path)
    for change in (retriever.refresh, lambda: retriever.add(numbered([20])), lambda: retriever.remove("1")):
        with pytest.raises(KnowledgeBaseMismatchError):
            change()
    assert len(retriever) == 10
    assert len(KnowledgeBase.load(tmp_path)) == 5


def test_a_folder_that_is_gone_is_an_error_and_not_an_empty_knowledge_base(hash_encoder, tmp_path):
    retriever = built(numbered(range(10)), hash_encoder)
    retriever.save_pretrained(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "away")
    with pytest.raises(KnowledgeBaseNotFoundError):
        retriever.add(numbered([20]))
    assert len(retriever) == 10
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_sq8"])
def test_what_was_purged_is_on_the_disk_no_more(kind, hash_encoder, tmp_path):
    secret = "topic1 SECRETPASSAGE of somebody"
    retriever = built([*numbered(range(150)), {"id": "secret", "text": secret}], hash_encoder, index=kind)
    retriever.save_pretrained(tmp_path)
    needles = [b"SECRETPASSAGE", hash_encoder.encode_queries(None, [secret]).tobytes()]

    def files_with(needle):
        return [path for path in tmp_path.rglob("*") if path.is_file() and needle in unpacked(path)]

    assert all(files_with(needle) for needle in needles)
    retriever.remove("secret")
    retriever.compact()
    assert all(files_with(needle) for needle in needles)  # in the version before
    (tmp_path / "knowledge_base" / "staging" / "job").mkdir(parents=True)
    (tmp_path / "knowledge_base" / "staging" / "job" / "shard").write_bytes(needles[1])
    retriever.compact(purge=True)
    assert not any(files_with(needle) for needle in needles)
    assert answers(RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)) == answers(retriever)


def unpacked(path) -> bytes:
    import pyarrow.parquet as pq

    return repr(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()


def test_purging_waits_for_readers_and_can_be_repeated(hash_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(retriever_module, "_PURGE_TIMEOUT_SECONDS", 0.1)
    writer = built(numbered(range(10)), hash_encoder)
    writer.save_pretrained(tmp_path)
    reader = RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)
    writer.remove("1")
    with pytest.raises(KnowledgeBaseLockedError, match="gen-00000001 could not be removed.*purge=True"):
        writer.compact(purge=True)
    assert len(answers(reader, 10)[0]) == 10
    reader.refresh()
    writer.compact(purge=True)
    assert store_info(tmp_path / "knowledge_base")["generations"] == ["gen-00000003"]
    assert answers(reader, 10) == answers(writer, 10)


def test_purging_does_not_wait_for_itself_where_another_process_has_written_since(hash_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(retriever_module, "_PURGE_TIMEOUT_SECONDS", 0.1)
    purging = built(numbered(range(10)), hash_encoder)
    purging.save_pretrained(tmp_path)
    other = RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)
    purge = purging._current.purge

    def purge_after_another_commit(*arguments):
        other.add(numbered([20]))
        purge(*arguments)

    monkeypatch.setattr(purging._current, "purge", purge_after_another_commit)
    purging.compact(purge=True)
    assert len(purging) == 11
    assert len(store_info(tmp_path / "knowledge_base")["generations"]) == 1


def test_leased_versions_stay_until_their_reader_has_gone(hash_encoder, tmp_path):
    writer = built(numbered(range(10)), hash_encoder)
    writer.save_pretrained(tmp_path)
    reader = RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)
    copied = copy.deepcopy(reader)  # holds no lease
    for n in range(10, 14):
        writer.add(numbered([n]))
    manifests = tmp_path / "knowledge_base" / "manifests"
    assert sorted(path.stem for path in manifests.iterdir()) == ["gen-00000001", "gen-00000004", "gen-00000005"]
    del reader
    writer.add(numbered([14]))
    assert sorted(path.stem for path in manifests.iterdir()) == ["gen-00000005", "gen-00000006"]
    assert len(copied) == 10


def test_a_retriever_can_be_sent_to_another_process(hash_encoder, tmp_path):
    retriever = built(numbered(range(10)), hash_encoder)
    retriever.save_pretrained(tmp_path)
    again = pickle.loads(pickle.dumps(retriever))  # noqa: S301
    assert answers(again) == answers(retriever)
    again.add(numbered([10]))
    retriever.refresh()
    assert "10" in retriever.knowledge_base


def test_a_large_addition_goes_on_where_it_was_interrupted(hash_encoder, tmp_path, monkeypatch):
    retriever = built(numbered(range(10)), hash_encoder)
    retriever.save_pretrained(tmp_path)
    new = numbered(range(10, 1300))
    original, calls = hash_encoder.encode_passages, []

    def encode_passages(texts, images):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(texts, images)

    monkeypatch.setattr(hash_encoder, "encode_passages", encode_passages)
    with pytest.raises(KeyboardInterrupt):
        retriever.add(new, batch_size=2)
    assert len(retriever) == 10
    retriever.add(new, batch_size=2)
    assert sum(calls) < 1290 + 2 * calls[0] + calls[1]
    assert len(retriever) == 1300
    assert not any((tmp_path / "knowledge_base" / "staging").iterdir())


def test_threads_search_while_others_change(hash_encoder, tmp_path):
    retriever = built([{"id": "0", "text": "topic0 state 0"}, {"id": "x", "text": "topic1 other"}], hash_encoder)
    retriever.save_pretrained(tmp_path)
    wrong, stop = [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            found = [item for item in retriever.retrieve(texts="topic0 state", k=5)[0] if item.id == "0"]
            if len(found) != 1 or len(retriever.retrieve(texts="topic0", k=9)[0]) < 2:
                wrong.append(found)

    readers = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in readers:
        thread.start()

    def keep_changing(writer):
        for n in range(6):
            retriever.add([{"id": f"{writer}-{n}", "text": f"topic2 {writer} {n}"}])
            retriever.update([{"id": "0", "text": f"topic0 state {writer} {n}"}])

    writers = [threading.Thread(target=keep_changing, args=(n,)) for n in range(2)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not wrong
    assert len(retriever) == len(KnowledgeBase.load(tmp_path)) == 14


def test_the_index_file_is_stored_anew_only_when_much_was_added(hash_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_MIN_UNINDEXED_ROWS", 20)
    retriever = built(numbered(range(200)), hash_encoder, index="ivf_flat")
    retriever.save_pretrained(tmp_path)
    store = tmp_path / "knowledge_base"
    counts = []
    for start in range(200, 230, 6):
        retriever.add(numbered(range(start, start + 6)))
        counts.append(store_info(store)["index"]["indexed_rows"])
    assert counts == [200, 200, 200, 224, 224]
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=hash_encoder)
    assert len(again.index) == 230
    assert again.search_vectors(retriever.vectors, 1)[1][:, 0].tolist() == list(range(230))
