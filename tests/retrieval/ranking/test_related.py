"""Passages that name related ones are followed one hop."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever


class Words:
    """A vector per passage: which of a few words it has."""

    name, fingerprint = "words", "0" * 64
    words = ["flag", "country", "river", "bridge", "song"]

    def encode_queries(self, images, texts):
        return np.array([[0.1 + text.count(word) for word in self.words] for text in texts], np.float32)

    def encode_passages(self, texts, images):
        return self.encode_queries(images, texts)


ROWS = [
    {"id": "a", "text": "flag flag", "related": ["b", "c", "nobody"], "source": "one"},
    {"id": "b", "text": "river river", "related": "a", "source": "one"},
    {"id": "c", "text": "bridge", "source": "two"},
    {"id": "d", "text": "song song song", "related": ["c", "b"], "source": "two"},
]


@pytest.fixture
def retriever():
    return RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), Words())


def ids(found):
    return [[passage.id for passage in row] for row in found]


def test_what_found_passages_name_stands_behind_them(retriever):
    found = retriever.retrieve(texts=["flag", "song"], k=1, expand=2)
    assert ids(found) == [["a", "b", "c"], ["d", "c", "b"]]
    assert [passage.rank for passage in found[0]] == [1, 2, 3]
    alone = retriever.retrieve(texts="flag", k=4)[0]
    cosine = {passage.id: passage.score for passage in alone}
    assert [passage.score for passage in found[0]] == pytest.approx([cosine[name] for name in ("a", "b", "c")])
    scores = [passage.ranking_score for passage in found[0]]
    assert scores == sorted(scores, reverse=True)
    assert ids(retriever.retrieve(texts="flag", k=1, expand=1)) == [["a", "b"]]
    assert ids(retriever.retrieve(texts="flag", k=1)) == [["a"]]


def test_conditions_and_removals_hold_one_hop_further(retriever):
    assert ids(retriever.retrieve(texts="flag", k=1, expand=3, where={"source": "one"})) == [["a", "b"]]
    retriever.remove("b")
    assert ids(retriever.retrieve(texts="flag", k=1, expand=3)) == [["a", "c"]]
    assert ids(retriever.retrieve(texts="flag", k=3, expand=3)) == [["a", "c", "d"]]  # none twice
    found = retriever.retrieve(texts="flag", k=1, expand=2, channels=["bm25"])
    assert ids(found) == [["a", "c"]]


def test_another_key_and_clear_errors(retriever):
    with pytest.raises(InvalidInputError, match="no passage names related ones"):
        retriever.retrieve(texts="flag", expand=1, related_key="edges")
    with pytest.raises(InvalidInputError, match="expand=-1"):
        retriever.retrieve(texts="flag", expand=-1)
    wrong = RavlmRetriever.build(KnowledgeBase.from_dicts([{"id": 1, "text": "flag", "related": [{"x": 1}]}]), Words())
    with pytest.raises(InvalidInputError, match="Expected ids of passages"):
        wrong.retrieve(texts="flag", expand=1)
    other = [{**row, "near": row.get("related")} for row in ROWS]
    named = RavlmRetriever.build(KnowledgeBase.from_dicts(other), Words())
    assert ids(named.retrieve(texts="flag", k=1, expand=1, related_key="near")) == [["a", "b"]]
