"""A retriever over Milvus gives the answers of a local one. milvus-lite is the server."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bird_world import ToyEncoder
from hf_ravlm.errors import InvalidInputError, KnowledgeBaseMismatchError
from hf_ravlm.integrations.milvus import MilvusRetriever
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever


QUESTIONS = ["Which bird is orange?", "the white swan", "Birds lay eggs"]


def both_over(uri, collection, rows, encoder):
    """A local retriever and one on the server, over the same passages."""
    rng = np.random.default_rng(0)
    words = "nest egg song wing feather beak lake tree".split()
    more = [
        {"id": f"{row}", "text": " ".join(rng.choice(words, 5)), "source": f"book {row % 3}", "page": row}
        for row in range(60)
    ]
    knowledge_base = KnowledgeBase.from_dicts([*rows, *more])
    local = RavlmRetriever.build(knowledge_base, encoder)
    remote = MilvusRetriever.build(
        knowledge_base, encoder, uri=uri, collection=collection, index_type="FLAT", overwrite=True
    )
    return local, remote


@pytest.fixture(scope="module")
def both(uri, rows, encoder):
    """Retrievers that no test changes."""
    return both_over(uri, "birds", rows, encoder)


@pytest.fixture
def changing(uri, rows, encoder):
    """Retrievers that the test may change."""
    return both_over(uri, "changing", rows, encoder)


def assert_same(local, remote, scores_differ_by=1e-5, **arguments):
    wanted, found = local.retrieve(**arguments), remote.retrieve(**arguments)
    assert any(wanted)
    for ours, theirs in zip(wanted, found, strict=True):
        assert {passage.id for passage in ours} == {passage.id for passage in theirs}
        np.testing.assert_allclose(
            [passage.score for passage in ours], [passage.score for passage in theirs], atol=scores_differ_by
        )
        assert [passage.rank for passage in theirs] == list(range(1, len(theirs) + 1))
    return wanted, found


def test_evidence_is_the_same(both, rows):
    wanted, found = assert_same(*both, texts=QUESTIONS, k=4)
    for ours, theirs in zip(wanted, found):
        for passage in ours:
            (twin,) = [other for other in theirs if other.id == passage.id]
            assert (twin.text, twin.image_bytes, twin.licence, twin.source, twin.metadata) == (
                passage.text,
                passage.image_bytes,
                passage.licence,
                passage.source,
                passage.metadata,
            )
    assert_same(*both, images=[rows[0]["image"], None], texts=[None, "wing and beak"], k=3)
    assert_same(*both, texts="swan", k=100)


def test_filters_are_the_same(both):
    for where in ({"licence": "CC0-1.0"}, {"source": ["book 1", None]}, {"metadata.page": {"min": 50}}):
        assert_same(*both, texts=QUESTIONS, k=6, where=where)


def test_words_are_the_same(both):
    local, remote = both
    for question in ("orange robin", "lake", "feathers"):
        ours, theirs = (retriever.retrieve(texts=question, k=5, channels=["bm25"])[0] for retriever in both)
        assert ours
        # milvus-lite rounds the lengths of texts.
        np.testing.assert_allclose([p.score for p in ours], [p.score for p in theirs], rtol=0.02)
    assert (
        remote.retrieve(texts="zebra", channels=["bm25"]) == local.retrieve(texts="zebra", channels=["bm25"]) == [[]]
    )


def test_options_of_a_search_work(changing):
    _, remote = changing
    hybrid = remote.retrieve(texts=["orange robin"], k=3, channels=["dense", "bm25"])[0]
    assert hybrid[0].id == "robin"
    assert_same(*changing, 0.05, texts=QUESTIONS, k=2, channels=["dense", "bm25"], weights={"dense": 0.5, "bm25": 0.5})
    capped = remote.retrieve(texts=["wing beak lake tree"], k=6, max_per_source=2)[0]
    sources = [passage.source for passage in capped if passage.source]
    assert len(capped) == 6
    assert max(sources.count(source) for source in sources) == 2
    twin = {"id": "twin", "text": "The robin is orange.", "image": hybrid[0].image}
    remote.add([twin])
    plain = remote.retrieve(texts=["The robin is orange."], k=3)[0]
    assert {plain[0].id, plain[1].id} == {"robin", "twin"}
    thinned = remote.retrieve(texts=["The robin is orange."], k=3, near_duplicate_threshold=0.999)[0]
    assert len({"robin", "twin"} & {passage.id for passage in thinned}) == 1
    varied = remote.retrieve(texts=["The robin is orange."], k=3, mmr_lambda=0.3)[0]
    assert not {"robin", "twin"} <= {passage.id for passage in varied[:2]}
    with pytest.raises(InvalidInputError, match="no channel"):
        remote.retrieve(texts="x", channels=["colour"])
    with pytest.raises(InvalidInputError, match="16,384"):
        remote.retrieve(texts="x", k=20_000)


def test_changes_are_the_same(changing, encoder):
    local, remote = changing
    changed = [{"id": "wren", "text": "The wren hides in the heather."}, {"id": "auk", "text": "The auk dives."}]
    for retriever in changing:
        retriever.update(changed)
        retriever.add([{"id": "tern", "text": "The tern screams over the heather."}])
        retriever.remove(["robin", "5"])
        retriever.remove("6")
    assert len(local) == len(remote) == 66
    assert_same(*changing, texts=["heather", "auk", "robin orange"], k=5)
    for retriever in changing:
        with pytest.raises(InvalidInputError, match="'tern'"):
            retriever.add([{"id": "tern", "text": "again"}])
        with pytest.raises(InvalidInputError, match="'robin'"):
            retriever.remove(["robin"])
    encoder.calls.clear()
    remote.update(changed)
    assert encoder.calls == []  # nothing is new


def test_another_process_opens_it_and_another_encoder_does_not(both, uri):
    _, remote = both
    encoder = ToyEncoder()
    opened = MilvusRetriever.open(uri, "birds", encoder)
    assert_same(remote, opened, texts=QUESTIONS, k=5)
    with pytest.raises(KnowledgeBaseMismatchError, match="built by 'ToyEncoder seed=0' .* is 'ToyEncoder seed=1'"):
        MilvusRetriever.open(uri, "birds", ToyEncoder(seed=1))
    encoder.fingerprint = "f" * 64  # trained meanwhile
    with pytest.raises(KnowledgeBaseMismatchError, match="as after training"):
        opened.add([{"id": "new", "text": "new"}])


def test_readers_and_adapters_take_it(both):
    _, remote = both
    assert [passage and passage.id for passage in remote.passages(["robin", "nobody"])] == ["robin", None]
    pytest.importorskip("langchain_core", reason='pip install "hf_ravlm[langchain]"')
    from hf_ravlm.integrations.langchain import RavlmLangchainRetriever

    documents = RavlmLangchainRetriever(retriever=remote, k=2).invoke("orange robin")
    assert documents[0].id == "robin"


def test_a_wrong_k_and_an_empty_knowledge_base_are_refused(both, encoder, uri):
    _, remote = both
    for k in (0, -1, True, 2.0, 20_000):
        with pytest.raises(InvalidInputError, match="k="):
            remote.retrieve(texts="swan", k=k)
    with pytest.raises(InvalidInputError, match="fields of `SearchOptions`"):
        remote.retrieve(texts="swan", top=3)
    with pytest.raises(InvalidInputError, match="at least one passage"):
        MilvusRetriever.build(KnowledgeBase(), encoder, uri=uri, collection="empty")


def test_without_the_client_the_error_names_the_extra(monkeypatch, encoder, uri):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImportError, match=r'pip install "hf_ravlm\[milvus\]"'):
        MilvusRetriever.open(uri, "birds", encoder)
