"""MaxSim against the triple loop, token pooling against SciPy's Ward clustering, and the reranker over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import Passage
from hf_ravlm.retrieval.ranking.channels import Query
from hf_ravlm.retrieval.ranking.late_interaction import LateInteractionReranker, maxsim, pool_tokens, ward_clusters


def unit_rows(rng, *shape) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_maxsim_is_the_triple_loop():
    rng = np.random.default_rng(0)
    queries, documents = unit_rows(rng, 3, 5, 8), unit_rows(rng, 3, 4, 7, 8)
    query_mask, document_mask = rng.random((3, 5)) < 0.6, rng.random((3, 4, 7)) < 0.5
    document_mask[:, :, 0] = True
    expected = np.zeros((3, 4))
    for b in range(3):
        for m in range(4):
            for i in np.flatnonzero(query_mask[b]):
                expected[b, m] += max(queries[b, i] @ documents[b, m, j] for j in np.flatnonzero(document_mask[b, m]))
    scores = maxsim(*map(torch.from_numpy, (queries, documents, query_mask, document_mask)))
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)


def test_padding_changes_nothing():
    """Also where all cosines are negative: a pad that counted as zero would win there."""
    rng = np.random.default_rng(1)
    queries = torch.from_numpy(np.abs(unit_rows(rng, 1, 3, 4)))
    documents = -torch.from_numpy(np.abs(unit_rows(rng, 1, 2, 5, 4)))
    plain = maxsim(queries, documents)
    padded = maxsim(
        torch.nn.functional.pad(queries, (0, 0, 0, 2), value=9.0),
        torch.nn.functional.pad(documents, (0, 0, 0, 3), value=9.0),
        torch.tensor([[True] * 3 + [False] * 2]),
        torch.tensor([[[True] * 5 + [False] * 3] * 2]),
    )
    torch.testing.assert_close(padded, plain)
    assert (plain < 0).all()


def test_documents_without_tokens_come_last():
    mask = torch.tensor([[[True], [False]]])
    assert maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 1, 3), document_mask=mask).tolist() == [[6.0, -np.inf]]
    assert maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 0, 3)).tolist() == [[-np.inf, -np.inf]]


@pytest.mark.parametrize("num_clusters", [1, 3, 8, 12])
def test_clusters_by_trying_every_pair(num_clusters):
    """Ward's criterion written out: merge the pair that adds least to the squared distances from the means."""
    vectors = unit_rows(np.random.default_rng(7), 12, 4).astype(np.float64)

    def spread(places):
        return np.square(vectors[places] - vectors[places].mean(axis=0)).sum()

    clusters = [[place] for place in range(12)]
    while len(clusters) > num_clusters:
        pairs = [(i, j) for i in range(len(clusters)) for j in range(i + 1, len(clusters))]
        i, j = min(
            pairs,
            key=lambda pair: (
                spread(clusters[pair[0]] + clusters[pair[1]]) - spread(clusters[pair[0]]) - spread(clusters[pair[1]])
            ),
        )
        clusters[i] += clusters.pop(j)
    found = ward_clusters(vectors, num_clusters)
    assert sorted(np.flatnonzero(found == first).tolist() for first in set(found)) == sorted(map(sorted, clusters))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_clusters", [1, 4, 9, 24])
def test_clusters_are_those_of_scipy(seed, num_clusters):
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    vectors = unit_rows(np.random.default_rng(seed), 24, 6).astype(np.float64)
    expected = hierarchy.fcluster(hierarchy.linkage(vectors, "ward"), num_clusters, "maxclust")
    clusters = ward_clusters(vectors, num_clusters)
    np.testing.assert_array_equal(clusters[:, None] == clusters[None, :], expected[:, None] == expected[None, :])
    for place, cluster in enumerate(clusters):  # named after its first token
        assert cluster == np.flatnonzero(clusters == clusters[place])[0]


@pytest.mark.parametrize(("num_tokens", "factor", "left"), [(10, 3, 3), (10, 1, 10), (2, 3, 1), (1, 2, 1), (0, 2, 0)])
def test_pooling_leaves_unit_vectors(num_tokens, factor, left):
    vectors = unit_rows(np.random.default_rng(0), num_tokens, 5)
    pooled = pool_tokens(vectors, factor)
    assert pooled.shape == (left, 5)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-6)


def test_pooling_merges_copies_without_loss():
    vectors = unit_rows(np.random.default_rng(1), 4, 16)
    np.testing.assert_allclose(pool_tokens(np.repeat(vectors, 3, axis=0), 3), vectors, atol=1e-6)


class WordEncoder:
    """A vector per word; the same word always gets the same."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode_queries_tokens(self, images, texts):
        return [self._vectors(text) for text in texts]

    def encode_passages_tokens(self, texts, images):
        self.encoded.extend(texts)
        return [self._vectors(text or "") for text in texts]

    @staticmethod
    def _vectors(text):
        words = [sum(map(ord, word)) for word in text.split()]
        return np.array([unit_rows(np.random.default_rng(word), 32) for word in words], np.float32).reshape(-1, 32)


PASSAGES = [Passage("0", "red kite"), Passage("1", "red"), Passage("2", ""), Passage("3", "blue bird of kite")]


def test_reranker_counts_words_found():
    encoder = WordEncoder()
    candidates = [PASSAGES, [PASSAGES[1], PASSAGES[0]], []]
    scores = LateInteractionReranker(encoder).score([Query("red kite"), Query("red"), Query("x")], candidates)
    assert scores[0][0] == pytest.approx(2, abs=1e-5)
    assert 1 < scores[0][1] < 2
    assert np.isnan(scores[0][2])
    assert scores[1] == pytest.approx([1, 1], abs=1e-5)
    assert len(scores[2]) == 0
    assert len(encoder.encoded) == 4  # once per passage, not once per candidate


class StoredTokens:
    """Keeps token vectors in bfloat16 and pads them when asked, as `PassageStates` does."""

    def __init__(self, token_vectors):
        self.token_vectors = token_vectors

    def gather(self, rows):
        width = max(len(self.token_vectors[row]) for row in rows.ravel())
        padded = torch.zeros(*rows.shape, width, 32, dtype=torch.bfloat16)
        mask = torch.zeros(*rows.shape, width, dtype=torch.bool)
        for place, row in np.ndenumerate(rows):
            vectors = torch.from_numpy(self.token_vectors[row])
            padded[place][: len(vectors)], mask[place][: len(vectors)] = vectors, True
        return padded, mask


def test_stored_tokens_give_the_same_scores():
    encoder = WordEncoder()
    stored = StoredTokens(encoder.encode_passages_tokens([passage.text for passage in PASSAGES], None))
    queries, candidates = [Query("red kite"), Query("of bird")], [PASSAGES[:2], PASSAGES[1:]]
    fresh = LateInteractionReranker(encoder).score(queries, candidates)
    encoder.encoded.clear()
    kept = LateInteractionReranker(encoder, stored, rows_of=lambda ids: list(map(int, ids))).score(queries, candidates)
    for expected, found in zip(fresh, kept):
        np.testing.assert_allclose(found, expected, atol=0.02)
    assert encoder.encoded == []


def test_encoders_without_token_vectors_are_refused(encoder):
    with pytest.raises(InvalidInputError, match="ToyEncoder"):
        LateInteractionReranker(encoder)
    with pytest.raises(InvalidInputError, match="rows_of"):
        LateInteractionReranker(WordEncoder(), stored=object())
