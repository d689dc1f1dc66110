"""BM25 against the formula written out as loops, against bm25s and rank-bm25; ties, filters, growth."""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.indexes import lexical_index
from hf_ravlm.retrieval.indexes.lexical_index import LexicalIndex, searchable_texts
from hf_ravlm.retrieval.indexes.lexical_tokens import lexical_tokens


pytest.importorskip("bm25s")

WORDS = [*"abcdefghijklmnop", "猫", "红色", "熊"]


def random_texts(num_texts: int, seed: int = 0) -> list[str | None]:
    rng = np.random.default_rng(seed)
    rarity = 1 / np.arange(1, len(WORDS) + 1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 15), p=rarity / rarity.sum())) for _ in range(num_texts)]
    return [None if rng.random() < 0.1 else text for text in texts]


def bm25_by_hand(texts, query, k1=1.5, b=0.75):
    """Lucene's formula, one passage at a time, in double precision."""
    documents = [lexical_tokens(text or "") for text in texts]
    with_text = [document for document in documents if document]
    mean_length = sum(map(len, with_text)) / len(with_text)
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for token in lexical_tokens(query):
            frequency = sum(token in other for other in with_text)
            idf = math.log(1 + (len(with_text) - frequency + 0.5) / (frequency + 0.5))
            tf = counts[token]
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean_length)) if tf else 0.0
        scores.append(score)
    return np.array(scores)


@pytest.fixture
def compiled():
    pytest.importorskip("numba")

    def compile_index(index: LexicalIndex) -> LexicalIndex:
        assert index.compile()
        return index

    return compile_index


def test_scores_are_those_of_the_formula():
    texts = random_texts(60)
    index = LexicalIndex.build(texts)
    for query in ["a d", "p p o", "猫 m", "红色的熊", "c b a unknown"]:
        expected = bm25_by_hand(texts, query)
        [(scores, rows)] = index.search([query], k=60)
        assert set(rows) == set(np.flatnonzero(expected > 0))
        np.testing.assert_allclose(scores, expected[rows], rtol=1e-5)
        assert scores.dtype == np.float32
        assert rows.dtype == np.int64


def test_weights_are_those_of_bm25s():
    import bm25s

    texts = [text for text in random_texts(80) if text]
    reference = bm25s.BM25(method="lucene")
    reference.index([lexical_tokens(text) for text in texts], show_progress=False)
    index = LexicalIndex.build(texts)
    for query in ["a", "b c 猫", "红色 p"]:
        [(scores, rows)] = index.search([query], k=len(texts))
        expected = reference.get_scores(lexical_tokens(query))
        np.testing.assert_allclose(scores, expected[rows], rtol=1e-5)
        assert len(rows) == np.count_nonzero(expected)


def test_order_is_that_of_rank_bm25():
    """rank-bm25 with Lucene's rarity: its own can be negative, and its scores are larger by the factor k1 + 1."""
    rank_bm25 = pytest.importorskip("rank_bm25")
    texts = [text for text in random_texts(80) if text]
    documents = [lexical_tokens(text) for text in texts]
    reference = rank_bm25.BM25Okapi(documents)
    for token in reference.idf:
        frequency = sum(token in document for document in documents)
        reference.idf[token] = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
    index = LexicalIndex.build(texts)
    for query in ["a b", "k l m", "猫 红色 a"]:
        expected = reference.get_scores(lexical_tokens(query))
        [(scores, rows)] = index.search([query], k=20)
        np.testing.assert_allclose(scores, expected[rows] / 2.5, rtol=1e-5)
        np.testing.assert_array_equal(rows, np.lexsort((np.arange(len(texts)), -expected.astype(np.float32)))[:20])


@pytest.mark.slow  # the compiler takes its time, once
@pytest.mark.parametrize("k", [1, 3, 20, 1000])
@pytest.mark.parametrize("filtered", [False, True])
def test_compiled_search_gives_the_same_answers(compiled, k, filtered):
    texts = random_texts(400)  # short texts of few words: many ties, also across the k-th place
    queries = ["a", "b a", "", None, "unknown", "p o n", "猫"]
    allowed = np.random.default_rng(1).random(400) < 0.3 if filtered else None
    plain = LexicalIndex.build(texts).search(queries, k, allowed)
    fast = compiled(LexicalIndex.build(texts)).search(queries, k, allowed)
    for (scores, rows), (fast_scores, fast_rows) in zip(plain, fast):
        np.testing.assert_array_equal(rows, fast_rows)
        np.testing.assert_array_equal(scores, fast_scores)
    for scores, rows in plain:
        assert (np.diff(scores) <= 0).all()
        assert (np.diff(rows)[np.diff(scores) == 0] > 0).all()
        assert filtered is False or allowed[rows].all()


def test_ties_across_the_last_place_go_to_the_first_rows():
    assert LexicalIndex.build(["b"] * 50 + ["a"] * 50).search(["a"], k=3)[0][1].tolist() == [50, 51, 52]


@pytest.mark.slow
def test_ties_of_the_compiled_search_go_to_the_first_rows(compiled):
    index = compiled(LexicalIndex.build(["b"] * 50 + ["a"] * 50))
    assert index.search(["a"], k=3)[0][1].tolist() == [50, 51, 52]


def test_filters_come_before_the_best_are_chosen():
    texts = ["a a a", "a a", "a", "b"]
    allowed = np.array([False, False, True, True])
    assert LexicalIndex.build(texts).search(["a"], 1, allowed)[0][1].tolist() == [2]


def test_growing_equals_building():
    texts = random_texts(90)
    grown = LexicalIndex.build(texts[:40]).add(texts[40:41]).add([]).add(texts[41:])
    built = LexicalIndex.build(texts)
    assert grown.vocabulary == built.vocabulary
    for name in ("indptr", "rows", "counts", "lengths"):
        np.testing.assert_array_equal(getattr(grown, name), getattr(built, name))
    for (scores, rows), (other_scores, other_rows) in zip(grown.search(WORDS, 10), built.search(WORDS, 10)):
        np.testing.assert_array_equal(rows, other_rows)
        np.testing.assert_array_equal(scores, other_scores)


def test_growing_leaves_the_old_index_alone():
    index = LexicalIndex.build(["a b"])
    before = index.search(["a"], 5)
    longer = index.add(["a", "c"])
    np.testing.assert_array_equal(index.search(["a"], 5)[0][0], before[0][0])
    assert (len(index), len(longer)) == (1, 3)
    assert "c" not in index.vocabulary


def test_words_may_be_those_of_another_function():
    index = LexicalIndex.build(["One two", "one"], tokenise=str.split)
    assert index.search(["One"], 5)[0][1].tolist() == [0]
    assert index.add(["One"]).search(["One"], 5)[0][1].tolist() == [2, 0]


@pytest.mark.parametrize("texts", [[], [None, None], ["", "...!"]])
def test_nothing_to_find(texts):
    index = LexicalIndex.build(texts)
    assert [rows.tolist() for _, rows in index.search(["a", None, ""], 3)] == [[], [], []]
    assert not index.compile()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 1, "allowed": np.ones(3, bool)}, r"\(3,\)"),
        ({"k": 1, "allowed": np.ones(2)}, "float64"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        LexicalIndex.build(["a", "b"]).search(["a"], **arguments)


def test_large_batches_compile_and_say_once_where_they_cannot(monkeypatch, caplog):
    monkeypatch.setattr(lexical_index, "_WORK_WORTH_COMPILING", 4)
    monkeypatch.setitem(sys.modules, "numba", None)
    lexical_index._has_numba.cache_clear()
    index = LexicalIndex.build(["a b", "a"])
    with caplog.at_level(logging.WARNING):
        found = [index.search(["a"] * 2, 1) for _ in range(3)]
    lexical_index._has_numba.cache_clear()
    assert [record.message for record in caplog.records if "numba" in record.message] == [caplog.records[0].message]
    assert all(rows.tolist() == [1] for answers in found for _, rows in answers)


def test_titles_are_searched_too():
    knowledge_base = KnowledgeBase.from_dicts(
        [
            {"id": 1, "title": "Robin", "text": "A bird."},
            {"id": 2, "text": "An owl."},
            {"id": 3, "title": "Wren", "text": "x"},
        ]
    )
    assert searchable_texts(knowledge_base.table) == ["Robin\nA bird.", "An owl.", "Wren\nx"]
