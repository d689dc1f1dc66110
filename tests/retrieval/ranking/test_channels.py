"""Channels: which queries and passages each of them serves."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval.indexes.lexical_index import LexicalIndex
from hf_ravlm.retrieval.ranking.channels import DenseChannel, LexicalChannel, Query


PURPLE = Image.new("RGB", (8, 8), "purple")


class BruteForceIndex:
    """Exact search as the contract of vector indexes says it."""

    def __init__(self, vectors):
        self.vectors = vectors

    def __len__(self):
        return len(self.vectors)

    def search(self, queries, k, allowed=None):
        scores = queries @ self.vectors.T
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        k = min(k, len(self) if allowed is None else int(allowed.sum()))
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, rows, axis=1), rows


class PartEncoder:
    """Remembers which parts of queries it was given."""

    name, fingerprint = "parts", "0" * 64

    def __init__(self):
        self.given = None

    def encode_queries(self, images, texts):
        self.given = (images, texts)
        return np.eye(4, dtype=np.float32)[: len(images if images is not None else texts)]


@pytest.fixture
def vectors():
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


QUERIES = [Query("text", None), Query(None, PURPLE), Query("both", PURPLE)]


@pytest.mark.parametrize(
    ("part", "served", "images", "texts"),
    [
        ("both", [0, 1, 2], [None, PURPLE, PURPLE], ["text", None, "both"]),
        ("text", [0, 2], None, ["text", "both"]),
        ("image", [1, 2], [PURPLE, PURPLE], None),
    ],
)
def test_only_the_wanted_part_of_a_query_is_encoded(vectors, part, served, images, texts):
    encoder = PartEncoder()
    ranking = DenseChannel(encoder, BruteForceIndex(vectors), query_part=part).search(QUERIES, 2, None)
    assert encoder.given == (images, texts)
    scores, rows = BruteForceIndex(vectors).search(np.eye(4, dtype=np.float32)[: len(served)], 2)
    np.testing.assert_array_equal(ranking.rows[served], rows)
    np.testing.assert_array_equal(ranking.scores[served], scores)
    left_out = [place for place in range(3) if place not in served]
    assert (ranking.rows[left_out] == -1).all()


def test_vectors_of_some_passages_only(vectors):
    """Passages 2, 3, 5, 7 and 9 of ten have an image; filters speak of the passages."""
    rows = np.array([2, 3, 5, 7, 9])
    channel = DenseChannel(PartEncoder(), BruteForceIndex(vectors), rows)
    found = channel.search([Query("a")], 5, None)
    np.testing.assert_array_equal(found.rows[0], rows[np.argsort(-vectors[:, 0], kind="stable")])
    allowed = np.zeros(10, bool)
    allowed[[0, 3, 9]] = True
    assert set(channel.search([Query("a")], 5, allowed).rows[0].tolist()) == {3, 9}
    assert channel.search([Query("a")], 5, np.arange(10) < 2).rows.shape == (1, 0)


def test_nothing_is_encoded_for_nothing(vectors):
    encoder = PartEncoder()
    assert (
        DenseChannel(encoder, BruteForceIndex(vectors), query_part="text").search(QUERIES[1:2], 3, None).rows.size == 0
    )
    assert DenseChannel(encoder, BruteForceIndex(vectors[:0])).search(QUERIES, 3, None).rows.size == 0
    assert encoder.given is None


def test_keyword_search_serves_queries_with_text():
    pytest.importorskip("bm25s")
    channel = LexicalChannel(LexicalIndex.build(["both of them", None, "both"]))
    ranking = channel.search(QUERIES, 5, None)
    assert ranking.rows.tolist() == [[-1, -1], [-1, -1], [2, 0]]
    assert channel.search(QUERIES, 5, np.array([True, True, False])).rows[2].tolist() == [0]


def test_wrong_arguments_are_refused(vectors):
    with pytest.raises(InvalidInputError, match="5 vectors came with 4 rows"):
        DenseChannel(PartEncoder(), BruteForceIndex(vectors), np.arange(4))
    with pytest.raises(InvalidInputError, match="query_part"):
        DenseChannel(PartEncoder(), BruteForceIndex(vectors), query_part="words")
    channel = DenseChannel(PartEncoder(), BruteForceIndex(vectors))
    channel.encoder.encode_queries = lambda images, texts: np.eye(4)[:1]
    with pytest.raises(InvalidInputError, match="1 vectors for 3 queries"):
        channel.search(QUERIES, 2, None)
