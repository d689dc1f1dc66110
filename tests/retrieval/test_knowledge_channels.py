"""The channels of a retriever: hybrid searches from end to end, and channels that follow a growing knowledge base."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval.knowledge_channels import CHANNEL_NAMES


pytest.importorskip("bm25s")


def found_ids(retriever, **arguments):
    return [[evidence.id for evidence in found] for found in retriever.retrieve(**arguments)]


def test_words_and_meaning_together(retriever):
    alone = retriever.retrieve(texts="orange eggs", k=7)[0]
    words = retriever.retrieve(texts="orange eggs", k=7, channels=("bm25",))[0]
    assert {evidence.id for evidence in words} == {"robin", "text-only"}
    both = retriever.retrieve(texts="orange eggs", k=7, channels=("dense", "bm25"))[0]
    assert {evidence.id for evidence in both[:2]} == {"robin", "text-only"}
    assert len(alone) == len(both) == 7
    assert [evidence.rank for evidence in both] == list(range(1, 8))


def test_default_is_the_dense_channel_with_cosines(retriever, encoder):
    query = encoder.encode_queries(None, ["a brown wren"])
    cosines = (query @ retriever.vectors.T)[0]
    found = retriever.retrieve(texts="a brown wren", k=7)[0]
    assert [evidence.id for evidence in found] == [
        retriever.knowledge_base.ids[row] for row in np.argsort(-cosines, kind="stable")
    ]
    assert [evidence.score for evidence in found] == pytest.approx(-np.sort(-cosines), abs=1e-6)


def test_queries_that_words_cannot_serve_are_found_by_image(retriever):
    blue = Image.new("RGB", (8, 8), "blue")
    [by_image, by_text] = found_ids(
        retriever, images=[blue, None], texts=[None, "white"], k=1, channels=("dense", "bm25")
    )
    assert (by_image, by_text) == (["kingfisher"], ["swan"])
    assert found_ids(retriever, images=[blue], k=3, channels=("bm25",)) == [[]]


def test_parts_are_encoded_alone(retriever, encoder):
    blue = Image.new("RGB", (8, 8), "blue")
    by_image = found_ids(retriever, images=blue, texts="swan", k=7, channels=("dense_image",))[0]
    assert by_image[0] == "kingfisher"
    assert set(by_image) == set(retriever.knowledge_base.ids) - {"text-only"}
    by_text = found_ids(retriever, images=blue, texts="swan", k=7, channels=("dense_text",))[0]
    assert by_text[0] == "swan"
    assert set(by_text) == set(retriever.knowledge_base.ids) - {"image-only"}
    encoder.calls.clear()
    found_ids(retriever, images=blue, texts="swan", k=7, channels=("dense_image", "dense_text", "bm25", "dense"))
    assert {kind for kind, _ in encoder.calls} == {"queries"}  # passages were encoded once and for all


def test_channels_follow_the_knowledge_base(retriever, encoder, toy_encoder):
    found_ids(retriever, texts="x", channels=CHANNEL_NAMES)
    encoder.calls.clear()
    green = Image.new("RGB", (8, 8), "lime")
    retriever.add([{"id": "parrot", "text": "The parrot is green.", "image": green}, {"id": "egg", "text": "An egg."}])
    retriever.remove(["swan"])
    asked = {"images": [green, None], "texts": ["green parrot", "eggs white swan"], "k": 9}
    rebuilt = RavlmRetriever.build(retriever.knowledge_base, toy_encoder())
    for name in ("dense", "dense_image", "dense_text"):
        assert found_ids(retriever, channels=(name,), **asked) == found_ids(rebuilt, channels=(name,), **asked)
    # Words count removed passages in their rarity until `compact`; what is found does not change.
    for grown, new in zip(
        *(found_ids(each, channels=("bm25",), **asked) for each in (retriever, rebuilt)), strict=True
    ):
        assert set(grown) == set(new)
    assert sum(count for kind, count in encoder.calls if kind == "passages") == 2 + 1 + 2  # the new ones; by parts
    retriever.compact()
    assert found_ids(retriever, channels=("bm25",), **asked) == found_ids(rebuilt, channels=("bm25",), **asked)


def test_filters_and_caps_reach_the_retriever(rows, encoder):
    rows = [{**row, "source": "atlas" if number % 2 else "web"} for number, row in enumerate(rows)]
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder)
    found = retriever.retrieve(texts="bird", k=5, channels=("dense", "bm25"), where={"source": "atlas"})[0]
    assert {evidence.source for evidence in found} == {"atlas"}
    capped = retriever.retrieve(texts="bird", k=5, max_per_source=1)[0]
    assert sorted(evidence.source for evidence in capped) == ["atlas", "web"]
    copies = retriever.retrieve(images=rows[0]["image"], k=2, near_duplicate_threshold=0.9, mmr_lambda=0.5)[0]
    assert len(copies) == 2


def test_a_reranker_reaches_the_retriever(retriever):
    class Shortest:
        def score(self, queries, candidates):
            return [np.array([-len(passage.text or "x" * 99) for passage in found]) for found in candidates]

    assert found_ids(retriever, texts="anything", k=1, reranker=Shortest()) == [["text-only"]]


def test_learned_weights_are_options_of_a_search(retriever):
    names = ["robin", "wren", "swan", "raven"]
    retriever.remove(["kingfisher"])
    questions = [f"Where does the {name} live?" for name in names]
    channels = ("dense", "bm25")
    learned = retriever.learn_weights([{name} for name in names], texts=questions, channels=channels)
    assert json.loads(json.dumps(learned)) == learned
    options = {"weights": learned["weights"], "normalise": learned["normalise"]}
    found = found_ids(retriever, texts=questions, k=1, channels=channels, **options)
    assert learned["ndcg"] == 1.0
    assert found == [[name] for name in names]
    for gold, message in [(["robin"], "collection"), ([{"kingfisher"}], "kingfisher"), ([set()], "nothing to learn")]:
        with pytest.raises(InvalidInputError, match=message):
            retriever.learn_weights(gold, texts=["A question?"])


def test_an_empty_knowledge_base(encoder):
    retriever = RavlmRetriever.build(KnowledgeBase(), encoder)
    assert found_ids(retriever, texts=["a", "b"], channels=CHANNEL_NAMES) == [[], []]


def test_unknown_channels_and_options_are_refused(retriever):
    with pytest.raises(InvalidInputError, match="dense_image"):
        retriever.retrieve(texts="a", channels=("dense", "sound"))
    with pytest.raises(InvalidInputError, match="mmr"):
        retriever.retrieve(texts="a", mmr=0.5)
