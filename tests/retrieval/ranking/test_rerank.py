"""Rerankers: what the model gives becomes one score per candidate, whatever shape it comes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import Passage
from hf_ravlm.retrieval.ranking.channels import Query
from hf_ravlm.retrieval.ranking.rerank import (
    CrossEncoderReranker,
    ItmReranker,
    YesNoReranker,
    answer_token_ids,
    score_pairs,
)


QUERIES = [Query("a red bird"), Query(None), Query("of")]
CANDIDATES = [
    [Passage("0", "red"), Passage("1", "a bird"), Passage("2", None, b"")],
    [Passage("0", "red")],
    [],
]


def overlap(query, passage):
    return len(set((query.text or "").split()) & set((passage.text or "").split()))


def test_pairs_go_in_batches_and_come_back_in_order():
    batches = []

    def score(queries, passages):
        batches.append(len(queries))
        return [overlap(*pair) for pair in zip(queries, passages)]

    scores = score_pairs(QUERIES, CANDIDATES, score, batch_size=3)
    assert [of_query.tolist() for of_query in scores] == [[1, 2, 0], [0], []]
    assert batches == [3, 1]


def test_a_wrong_number_of_scores_is_refused():
    with pytest.raises(InvalidInputError, match=r"\(1,\) for 4 pairs"):
        score_pairs(QUERIES, CANDIDATES, lambda queries, passages: [1.0], batch_size=32)
    with pytest.raises(InvalidInputError, match="batch_size=0"):
        score_pairs(QUERIES, CANDIDATES, lambda queries, passages: [1.0], batch_size=0)


def test_no_queries():
    assert score_pairs([], [], lambda queries, passages: [], batch_size=2) == []


def test_itm_logits_become_the_probability_of_a_match():
    logits = torch.tensor([[0.5, 1.0], [2.0, -1.0], [0.0, 200.0], [-300.0, 0.0]], dtype=torch.bfloat16)
    scores = np.concatenate(ItmReranker(lambda queries, passages: logits).score(QUERIES, CANDIDATES))
    np.testing.assert_allclose(scores, logits.float().softmax(dim=1)[:, 1].numpy(), atol=1e-6)


def test_itm_scores_stay_as_they_are():
    scores = ItmReranker(lambda queries, passages: np.arange(4) / 10).score(QUERIES, CANDIDATES)
    assert np.concatenate(scores) == pytest.approx([0, 0.1, 0.2, 0.3])


def test_yes_against_no_over_all_spellings():
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    reranker = YesNoReranker(lambda queries, passages: logits, yes_ids=[1, 2], no_ids=[5])
    probabilities = logits[:, [1, 2, 5]].softmax(dim=1)  # of the three tokens alone
    scores = np.concatenate(reranker.score(QUERIES, CANDIDATES))
    np.testing.assert_allclose(scores, probabilities[:, :2].sum(dim=1).numpy(), atol=1e-6)


@pytest.mark.parametrize(("yes", "no"), [([], [1]), ([1], []), ([1, 2], [2])])
def test_yes_and_no_must_differ(yes, no):
    with pytest.raises(InvalidInputError, match="yes_ids"):
        YesNoReranker(lambda queries, passages: None, yes, no)


def test_single_tokens_of_a_word():
    vocabulary = {"yes": [3], " yes": [4], "Yes": [3, 9], " Yes": [5]}

    def tokenizer(text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": vocabulary.get(text, [1, 2])}

    assert answer_token_ids(tokenizer, "yes") == [3, 4, 5]
    with pytest.raises(InvalidInputError, match="'no'"):
        answer_token_ids(tokenizer, "no")


class FakeCrossEncoder:
    """Counts common words, as `CrossEncoder.predict` would be called."""

    def predict(self, pairs, show_progress_bar):
        return np.array([overlap(Query(query), Passage("", passage)) for query, passage in pairs])


def test_cross_encoders_judge_texts_only():
    scores = CrossEncoderReranker(FakeCrossEncoder(), batch_size=1).score(QUERIES, CANDIDATES)
    np.testing.assert_array_equal(np.concatenate(scores), [1, 2, np.nan, np.nan])


@pytest.mark.parametrize("num_labels", [1, 2])
def test_sequence_classifiers_score_pairs_as_one_by_one(num_labels):
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] a red bird".split())}
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=num_labels,
    )
    model = BertForSequenceClassification(config).eval()
    scores = CrossEncoderReranker(model, tokenizer).score(QUERIES, CANDIDATES)
    for passage, score in zip(CANDIDATES[0][:2], scores[0]):
        logits = model(**tokenizer(QUERIES[0].text, passage.text, return_tensors="pt")).logits[0]
        expected = logits[0] if num_labels == 1 else logits[1] - logits[0]
        assert score == pytest.approx(expected.item(), abs=1e-5)
    assert np.isnan(scores[0][2])


def test_a_classifier_needs_its_tokenizer():
    with pytest.raises(InvalidInputError, match="tokenizer"):
        CrossEncoderReranker(torch.nn.Linear(1, 1))
