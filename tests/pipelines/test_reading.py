"""What an answer says was read, cited and thought."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm.model.prompts.thinking import split_thinking
from hf_ravlm.pipelines.answering import add_attributions, answer_questions, greedy_unless_asked, read_answers
from hf_ravlm.pipelines.citations import check_citations
from hf_ravlm.retrieval import Evidence
from tiny import picture, tiny_model, tiny_processor
from tiny_backbones import causal_tokenizer, reader_of_kind, tokenizer_with


LONG = [Evidence(id=name, text=f"{name} " * 40, score=0.5, rank=rank) for rank, name in enumerate("abc", start=1)]


@pytest.mark.parametrize("kind", ["marks", "words", "image_text"])
def test_evidence_is_what_was_read_and_the_rest_is_unread(kind):
    model, processor = reader_of_kind(kind)
    images = None if kind == "words" else [picture(0), picture(1)]
    options = {
        "evidence": [LONG, [LONG[0]]],
        "max_new_tokens": 3,
        "prompt": {"max_length": 120},
        "with_leave_one_out": True,
    }
    (cut,), (whole,) = answer_questions(model, processor, None, images, ["what ?", "red ?"], **options)
    assert 0 < len(cut.evidence) < 3
    assert [passage.id for passage in [*cut.evidence, *cut.unread]] == ["a", "b", "c"] == [p.id for p in cut.found]
    assert len(cut.posterior) == len(cut.leave_one_out) == len(cut.evidence)
    assert (whole.evidence, whole.unread) == ([LONG[0]], [])
    record = cut.to_record()
    assert [item["id"] for item in record["evidence"] + record["unread"]] == ["a", "b", "c"]
    assert len(record["scores"]) == len(record["evidence"])
    assert not {"citations", "thinking"} & set(record)


@pytest.mark.parametrize("kind", ["marks", "image_text"])
def test_attribution_of_a_cut_prompt_does_not_depend_on_its_batch(kind):
    model, processor = reader_of_kind(kind)
    processor.max_length = 130
    questions = ["what ?", "red ?"]
    answers = [a for (a,) in read_answers(model, processor, None, questions, [LONG, LONG], False, max_new_tokens=3)]
    answers[0].text, answers[1].text = "red", "white " * 40  # one that is much longer than the other
    add_attributions(model, processor, None, questions, answers)
    together = answers[0].posterior, answers[0].leave_one_out
    add_attributions(model, processor, None, questions[:1], answers[:1])
    assert together[0] == pytest.approx(answers[0].posterior, abs=1e-4)
    assert together[1] == pytest.approx(answers[0].leave_one_out, abs=1e-4)


def test_a_reader_does_not_sample_unless_it_is_asked_to():
    model, processor = tiny_model(), tiny_processor()
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=50)
    asked = {"questions": ["what ?"], "images": [picture(0)], "max_new_tokens": 8, "with_posterior": False}
    texts = {answer_questions(model, processor, None, **asked)[0][0].text for _ in range(4)}
    assert len(texts) == 1
    torch.manual_seed(0)
    sampled = {answer_questions(model, processor, None, **asked, do_sample=True)[0][0].text for _ in range(6)}
    assert len(sampled) > 1
    assert greedy_unless_asked(model, {"temperature": 0.5})["do_sample"] is False


def test_citations_come_with_the_answer_where_they_are_asked_for():
    model, processor = reader_of_kind("words")
    asked = {"images": None, "questions": ["what ?"], "evidence": [LONG], "max_new_tokens": 2, "with_posterior": False}
    (answer,) = answer_questions(model, processor, None, **asked, cite=True)[0]
    assert answer.citations == answer.to_record()["citations"] == []
    assert answer_questions(model, processor, None, **asked)[0][0].citations is None


OSLO = Evidence(id="no", text="Oslo, with 709,037 people, is the capital.", title="Norway")
CHAD = Evidence(id="td", text="N'Djamena lies on the Chari. [2] The moon is cheese. [9] So it is.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Oslo [1]", [("no", True)]),
        ("It is Bergen [1].", [("no", False)]),  # the rest of its words are the question's
        ("Oslo has 709,037 people. [1]", [("no", True)]),
        ("Oslo has 709,038 people [1].", [("no", False)]),
        ("Oslo [3]", [(None, False)]),
        ("Oslo [0]", [(None, False)]),
        ("The moon is cheese [9].", [(None, False)]),  # a number that a passage writes is none
        ("The moon is cheese [1].", [("no", False)]),
        ("[1] says Oslo.", [("no", True)]),
        ("Oslo is the capital, N'Djamena lies on the Chari [1, 2].", [("no", True), ("td", True)]),
        ("Oslo [1][2]", [("no", True), ("td", False)]),
        ("奥斯陆【1】", [("no", False)]),
        ("Oslo", []),
        ("an array[i] and [note]", []),
        ("[1]", [("no", False)]),
    ],
)
def test_citations_are_checked_against_what_was_read(text, expected):
    found = check_citations(text, [OSLO, CHAD], "What is the capital of Norway ?")
    assert [(citation["passage_id"], citation["supported"]) for citation in found] == expected
    for citation in found:
        start, end = citation["span"]
        assert text[start:end] == citation["marker"]
        assert (citation["reason"] is None) == citation["supported"]


def test_citations_of_scripts_without_spaces():
    passage = Evidence(id="zh", text="奥斯陆是挪威的首都。")
    found = check_citations("首都是奥斯陆【1】。北京在中国[1]。", [passage])
    assert [citation["supported"] for citation in found] == [True, False]


def test_thoughts_are_told_apart_from_the_answer():
    marked, plain = tokenizer_with(["<think>", "</think>"]), causal_tokenizer()
    template = "{{ '<think>' }}{{ '</think>' }}"
    cases = [
        ("<think>\nOslo or\n</think>\n\nOslo", False, ("Oslo", "Oslo or")),
        ("Oslo or\n</think>Oslo", True, ("Oslo", "Oslo or")),  # the template opened the thoughts
        ("Oslo or", True, ("", "Oslo or")),  # they never end
        ("<think>\n\n</think>\n\nOslo", False, ("Oslo", None)),
        ("Oslo", False, ("Oslo", None)),
    ]
    for tokenizer in (marked, plain):
        for text, opened, expected in cases:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert split_thinking(tokenizer, ids, template, lambda opened=opened: opened) == expected
    ids = marked("a", add_special_tokens=False)["input_ids"] + [
        id for piece in ("<", "think>", " b") for id in marked(piece, add_special_tokens=False)["input_ids"]
    ]
    assert split_thinking(marked, ids, template, lambda: False) == ("a<think> b", None)  # quoted, not thought
    ids = plain("a </think> b", add_special_tokens=False)["input_ids"]
    assert split_thinking(plain, ids, "no marks", lambda: False) == ("a </think> b", None)
