"""What the page shows is what the model said: with retrieval, without, and both."""

from __future__ import annotations

import pytest

from hf_ravlm import InvalidInputError, KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.demo.answering import BOTH, TABLE_HEAD, WITH, WITHOUT, answer_for_page, choose_for_page
from hf_ravlm.pipelines.answering import answer_questions
from hf_ravlm.pipelines.closed_answers import Choice, choose_answers
from tiny import picture, tiny_model, tiny_processor


QUESTION = "what is the capital ?"


@pytest.fixture(scope="module")
def parts():
    model, processor = tiny_model(), tiny_processor()
    rows = [{"id": "a", "text": "Oslo", "image": picture(3), "licence": "CC0-1.0"}, {"id": "b", "text": "Chad"}]
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), RavlmEncoder(model.model, processor))
    return model, processor, retriever


def said(parts, k: int) -> str:
    model, processor, retriever = parts
    given = (model, processor, retriever, [picture(0)], [QUESTION])
    return answer_questions(*given, k=k, max_new_tokens=8, do_sample=False)[0][0].text


def test_every_mode_shows_its_own_answers(parts):
    shown = {mode: answer_for_page(*parts, picture(0), QUESTION, mode, 2, 8) for mode in (WITH, WITHOUT, BOTH)}
    retrieved, closed_book = said(parts, k=2), said(parts, k=0)
    assert retrieved != closed_book
    assert (shown[WITH].retrieved, shown[WITH].closed_book) == (retrieved, None)
    assert (shown[WITHOUT].retrieved, shown[WITHOUT].closed_book) == (None, closed_book)
    assert (shown[BOTH].retrieved, shown[BOTH].closed_book) == (retrieved, closed_book)
    assert [len(shown[mode].table) for mode in (WITH, WITHOUT, BOTH)] == [2, 0, 2]


def test_passages_are_shown_with_what_they_gave(parts):
    shown = answer_for_page(*parts, picture(0), QUESTION, WITH, 2, 8)
    rows = {row[0]: dict(zip(TABLE_HEAD, row, strict=True)) for row in shown.table}
    assert rows["a"]["licence"] == "CC0-1.0"
    assert sum(row["posterior"] for row in rows.values()) == pytest.approx(1, abs=0.002)
    assert [caption.split()[1] for _, caption in shown.gallery] == list(rows)
    assert [caption.split(":")[0] for _, caption in shown.maps] == ["image", "answer", *rows]
    assert {picture.mode for picture, _ in (*shown.gallery, *shown.maps)} == {"RGB"}
    assert [passage["id"] for passage in shown.record["passages"]] == list(rows)


def test_blanks_ask_the_models_own_question(parts):
    shown = answer_for_page(*parts, picture(0), "  ", WITHOUT, 2, 8)
    assert shown.record["question"] == parts[0].config.default_prompt


def test_what_is_missing_is_told(parts):
    model, processor, retriever = parts
    with pytest.raises(InvalidInputError, match="no image"):
        answer_for_page(*parts, None, QUESTION)
    with pytest.raises(InvalidInputError, match="no knowledge base"):
        answer_for_page(model, processor, None, picture(0), QUESTION)
    with pytest.raises(InvalidInputError, match="with retrieval; without retrieval"):
        answer_for_page(*parts, picture(0), QUESTION, "aloud")
    assert answer_for_page(model, processor, None, picture(0), QUESTION, WITHOUT, 2, 8).closed_book


def test_among_answers_of_ones_own_the_best_are_shown_with_what_was_read(parts):
    scores, table = choose_for_page(*parts, picture(0), QUESTION, " Oslo\n\nChad\nred ", 2)
    (told,) = choose_answers(*parts, [picture(0)], [QUESTION], Choice(["Oslo", "Chad", "red"], top_k=3), k=2)
    assert list(scores) == [one["answer"] for one in told]
    assert list(scores.values()) == [pytest.approx(one["score"], abs=1e-4) for one in told]
    assert {dict(zip(TABLE_HEAD, row, strict=True))["id"] for row in table} == {"a", "b"}
    assert choose_for_page(*parts, picture(0), "", "Oslo\nChad", 0)[1] == []
    for answers, said_of_it in (
        ("\n \n", "empty"),
        ("Oslo\nOslo", "Oslo"),
        ("\n".join(map(str, range(1001))), "1,001"),
    ):
        with pytest.raises(InvalidInputError, match=said_of_it):
            choose_for_page(*parts, picture(0), QUESTION, answers, 2)
