"""An encoder behind a server: what it is sent, what it gives, a knowledge base that it builds, and what that costs."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from hash_encoder import HashEncoder, numbered
from hf_ravlm import KnowledgeBase, RavlmRetriever, load_encoder
from hf_ravlm.errors import InvalidInputError, RemoteServerError
from hf_ravlm.retrieval import RemoteEncoder, embed_corpus, estimate_embedding
from stub_server import StubServer, send


def embed(handler, body):
    """Vectors of what a text says, out of order, and not of unit length."""
    vectors = 3 * HashEncoder().encode_queries(None, body["input"])
    rows = [{"object": "embedding", "index": n, "embedding": vector.tolist()} for n, vector in enumerate(vectors)]
    send(handler, 200, {"object": "list", "data": rows[::-1], "model": body["model"]})


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("hf_ravlm.servers._FIRST_WAIT", 0.01)


@pytest.fixture
def stub():
    with StubServer(embed, models=["bge"]) as stub:
        yield stub


def test_texts_go_in_batches_and_unit_vectors_come_in_order(stub):
    encoder = load_encoder(f"{stub.address}#other", query_prompt="query: ")
    texts = [f"text number {n}" for n in range(150)]
    vectors = encoder.encode_passages(texts, [None] * 150)
    assert np.allclose(vectors, HashEncoder().encode_queries(None, texts), atol=1e-6)
    assert sorted(len(body["input"]) for body in stub.asked) == [22, 64, 64]
    assert {body["model"] for body in stub.asked} == {"other"}
    encoder.encode_queries(None, ["who"])
    assert stub.asked[-1]["input"] == ["query: who"]
    assert encoder.encode_queries(None, []).shape == (0, 0)


def test_it_is_known_by_its_model_and_prompts_and_not_by_its_address(stub):
    with StubServer(embed, models=["bge"]) as other:
        here, there = load_encoder(stub.address), RemoteEncoder(other.address, "bge")
        assert here.name == "bge behind a server"
        assert here.fingerprint == there.fingerprint
        assert here.fingerprint != RemoteEncoder(other.address, "bge", query_prompt="q ").fingerprint
        assert here.reference is None


def test_a_knowledge_base_is_built_by_it_and_does_not_name_the_address(stub, tmp_path):
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(numbered(range(9))), load_encoder(stub.address))
    retriever.save_pretrained(tmp_path)
    port = stub.address.rpartition(":")[2].removesuffix("/v1")
    assert not any(port.encode() in path.read_bytes() for path in tmp_path.rglob("*.json"))
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=load_encoder(stub.address))
    ((found,),) = again.retrieve(None, ["topic3 number 3 first"], k=1)
    assert found.id == "3"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({}, "gave no vectors"),
        ({"data": [{"index": 0}]}, "gave no vectors"),
        ({"data": [{"index": 0, "embedding": ["a"]}]}, "gave no vectors"),
        ({"data": [{"index": 1, "embedding": [1.0]}]}, "for 1 texts"),
        ({"data": [{"index": 0, "embedding": []}]}, "for 1 texts"),
        ({"data": []}, "for 1 texts"),
    ],
)
def test_nonsense_is_told_as_such(stub, reply, said):
    stub.behave = lambda handler, _: send(handler, 200, reply)
    with pytest.raises(RemoteServerError, match=said):
        load_encoder(stub.address).encode_passages(["a"])


def test_what_does_not_fit_is_refused(stub):
    with pytest.raises(InvalidInputError, match="takes no kind= and no dtype="):
        load_encoder(stub.address, dtype="bfloat16")
    with pytest.raises(InvalidInputError, match="reads texts only"):
        load_encoder(stub.address).encode_queries([object()], [None])
    stub.models = ["a", "b"]
    with pytest.raises(InvalidInputError, match=r"It lists a, b. Name one: .*#NAME"):
        load_encoder(stub.address)
    stub.behave = lambda handler, _: send(handler, 400, {"error": {"message": "input too long"}})
    with pytest.raises(InvalidInputError, match=r"input too long \(the model is 'c', 1 texts\)"):
        load_encoder(f"{stub.address}#c").encode_passages(["a"])


def test_a_build_that_breaks_off_goes_on_where_it_stopped(stub, tmp_path):
    known, options = KnowledgeBase.from_dicts(numbered(range(40))), {"batch_size": 1, "shard_rows": 8}

    def behave(handler, body):
        send(handler, 400, {"error": "full"}) if len(stub.asked) > 2 else embed(handler, body)

    stub.behave = behave
    with pytest.raises(InvalidInputError, match="full"):
        embed_corpus(known, load_encoder(stub.address), staging=tmp_path, **options)
    stub.behave = embed
    vectors = embed_corpus(known, load_encoder(stub.address), staging=tmp_path, **options)
    assert np.allclose(vectors, HashEncoder().encode_passages(known.table["text"].to_pylist(), None), atol=1e-6)
    assert [len(body["input"]) for body in stub.asked] == [8] * 6, "two shards of five were finished"


def test_the_cost_is_said_before_the_work(tmp_path, caplog):
    known = KnowledgeBase.from_dicts(numbered(range(100)))
    cost = estimate_embedding(known, HashEncoder(), sample=10)
    assert (cost.num_passages, cost.dim, cost.vector_bytes) == (100, 32, 12_800)
    assert cost.seconds > 0
    with caplog.at_level(logging.INFO, "hf_ravlm.retrieval.encoding.cost"):
        embed_corpus(known, HashEncoder(), staging=tmp_path, batch_size=1, shard_rows=32, process=(0, 1))
    (said,) = [record.message for record in caplog.records if record.name.endswith("cost")]
    assert said.startswith("Embedding 100 passages: about ")
    with pytest.raises(InvalidInputError, match="sample=0"):
        estimate_embedding(known, HashEncoder(), sample=0)


def test_a_disk_that_is_too_small_is_seen_at_the_start(tmp_path, monkeypatch):
    known, encoder = KnowledgeBase.from_dicts(numbered(range(100))), HashEncoder()
    monkeypatch.setattr("hf_ravlm.retrieval.encoding.cost.shutil.disk_usage", lambda _: SimpleNamespace(free=1_000))
    with pytest.raises(InvalidInputError, match=r"25.6 kB, and 1.0 kB are free there"):
        embed_corpus(known, encoder, staging=tmp_path, batch_size=1, shard_rows=32, process=(0, 1))
    assert encoder.num_encoded == 32
