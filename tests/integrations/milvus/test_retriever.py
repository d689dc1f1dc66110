"""One argument moves a retriever to Milvus: the answers are those of the local one. milvus-lite is the server."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError, KnowledgeBaseMismatchError
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever


pytest.importorskip("pymilvus", reason='pip install "hf_ravlm[milvus]"')
pytest.importorskip("milvus_lite", reason='pip install "hf_ravlm[test]"')

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs every error that it raises

QUESTIONS = ["Which bird is orange?", "the white swan", "Birds lay eggs"]


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "birds.db")


@pytest.fixture
def both(uri, rows, encoder):
    rng = np.random.default_rng(0)
    words = "nest egg song wing feather beak lake tree".split()
    more = [
        {"id": f"{row}", "text": " ".join(rng.choice(words, 5)), "source": f"book {row % 3}", "page": row}
        for row in range(60)
    ]
    knowledge_base = KnowledgeBase.from_dicts([*rows, *more])
    local = RavlmRetriever.build(knowledge_base, encoder)
    remote = RavlmRetriever.build(
        knowledge_base, encoder, backend="milvus", uri=uri, collection="birds", index_type="FLAT"
    )
    yield local, remote
    remote.backend.close()


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


def test_options_of_a_search_work(both):
    _, remote = both
    hybrid = remote.retrieve(texts=["orange robin"], k=3, channels=["dense", "bm25"])[0]
    assert hybrid[0].id == "robin"
    assert_same(*both, 0.05, texts=QUESTIONS, k=2, channels=["dense", "bm25"], weights={"dense": 0.5, "bm25": 0.5})
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


def test_changes_are_the_same(both, encoder):
    local, remote = both
    changed = [{"id": "wren", "text": "The wren hides in the heather."}, {"id": "auk", "text": "The auk dives."}]
    for retriever in both:
        retriever.update(changed)
        retriever.add([{"id": "tern", "text": "The tern screams over the heather."}])
        retriever.remove(["robin", "5"])
        retriever.remove("6")
    assert len(local) == len(remote) == 66
    assert_same(*both, texts=["heather", "auk", "robin orange"], k=5)
    for retriever in both:
        with pytest.raises(InvalidInputError, match="'tern'"):
            retriever.add([{"id": "tern", "text": "again"}])
        with pytest.raises(InvalidInputError, match="'robin'"):
            retriever.remove(["robin"])
    encoder.calls.clear()
    remote.update(changed)
    assert encoder.calls == []  # nothing is new


def test_another_process_opens_it_and_another_encoder_does_not(both, uri, encoder, toy_encoder):
    _, remote = both
    opened = RavlmRetriever.from_milvus(uri, "birds", encoder)
    assert_same(remote, opened, texts=QUESTIONS, k=5)
    with pytest.raises(KnowledgeBaseMismatchError, match="built by 'ToyEncoder seed=0' .* is 'ToyEncoder seed=1'"):
        RavlmRetriever.from_milvus(uri, "birds", toy_encoder(seed=1))
    encoder.fingerprint = "f" * 64  # trained meanwhile
    with pytest.raises(KnowledgeBaseMismatchError, match="has changed"):
        remote.add([{"id": "new", "text": "new"}])


def test_what_a_collection_cannot_do_is_refused(both, tmp_path):
    _, remote = both
    for refused in (
        lambda: remote.knowledge_base,
        lambda: remote.vectors,
        lambda: remote.index,
        lambda: remote.search_vectors(np.ones((1, 64)), 3),
        lambda: remote.save_pretrained(tmp_path),
        lambda: remote.push_to_hub("owner/name"),
        lambda: remote.compact(purge=True),
        lambda: remote.learn_weights([["robin"]], texts=["robin"]),
    ):
        with pytest.raises(InvalidInputError, match="live in the Milvus collection 'birds'"):
            refused()
    assert not remote.refresh()
    assert isinstance(remote, RavlmRetriever)
    assert remote.passages(["robin", "nobody"])[1] is None


def test_wrong_backends_are_refused(encoder, rows, uri):
    passages = KnowledgeBase.from_dicts(rows)
    with pytest.raises(InvalidInputError, match="backend='qdrant'"):
        RavlmRetriever.build(passages, encoder, backend="qdrant")
    with pytest.raises(InvalidInputError, match=r"\['uri'\]"):
        RavlmRetriever.build(passages, encoder, uri=uri)
    with pytest.raises(InvalidInputError, match="at least one passage"):
        RavlmRetriever.build(KnowledgeBase(), encoder, backend="milvus", uri=uri, collection="empty")


def test_without_the_client_the_error_names_the_extra(monkeypatch, encoder, uri):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImportError, match=r'pip install "hf_ravlm\[milvus\]"'):
        RavlmRetriever.from_milvus(uri, "birds", encoder)
