"""Answers told while they are written: the evidence first, several answers apart, each ended by itself."""

from __future__ import annotations

import pytest
import torch

from hash_encoder import HashEncoder
from hf_ravlm import RemoteReader
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.pipelines import RavlmImageToTextPipeline
from hf_ravlm.pipelines.answering import answer_questions
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.pipelines.streaming import AnswerStreamer, StreamLeftError, Writing, decoder_for, streamer_for
from hf_ravlm.retrieval import Evidence, KnowledgeBase
from stub_server import StubServer
from tiny import picture
from tiny_backbones import reader_of_kind
from tiny_folder import PASSAGES, tiny_parts


READ = [Evidence(id=name, text=f"{name} red white", score=0.5, rank=rank) for rank, name in enumerate("ab", start=1)]


@pytest.fixture(scope="module")
def pipe():
    model, processor, retriever = tiny_parts()
    return RavlmImageToTextPipeline(model, processor, retriever, device="cpu")


def test_a_stream_tells_evidence_then_words_then_the_whole(pipe):
    asked = {"question": "what is the capital ?", "max_new_tokens": 12, "k": 2}
    first, *pieces, last = pipe.stream(picture(0), **asked)
    (record,) = pipe(picture(0), **asked)
    assert [one["id"] for one in first["evidence"]] == [one["id"] for one in record["evidence"]]
    assert first["unread"] == []
    assert "".join(piece["text"] for piece in pieces) == record["generated_text"] != ""
    assert len(pieces) > 1
    assert last["answer"]["posterior"] == pytest.approx(record["posterior"])


def test_with_a_policy_nothing_is_told_that_may_yet_be_withheld(pipe):
    events = list(pipe.stream(picture(0), question="what ?", max_new_tokens=6, policy=AnswerPolicy()))
    assert [set(event) for event in events] == [{"text"}, {"answer"}]


def test_an_answer_that_is_read_on_for_is_told_once(pipe):
    once = pipe(picture(0), question="what ?", max_new_tokens=3, k=1)[0]["generated_text"]
    policy = AnswerPolicy(num_readings=3, no_answers=[once])
    events = list(pipe.stream(picture(0), question="what ?", max_new_tokens=3, k=1, policy=policy))
    assert events[-1]["answer"]["readings"] > 1
    assert [event.get("text") for event in events[:-1]] == [events[-1]["answer"]["generated_text"]]


def test_a_stop_word_in_a_draft_ends_no_later_answer():
    told = []
    writing = Writing(told.append, lambda tokens: "".join(map(chr, tokens)), stop=["b"], at_once=True)
    for text, over in (("ab", True), ("ac", False)):
        writing.begin(0)
        for token in map(ord, text):
            writing.add_token(token)
        assert writing.is_over == over
    writing.finish("ac")
    assert told == ["ac"]


def test_leaving_a_stream_ends_its_answer(pipe):
    events = pipe.stream(picture(0), question="what ?", max_new_tokens=200, min_new_tokens=200)
    next(events)
    next(events)
    events.close()  # returns when the reader has stopped
    assert pipe(picture(0), question="what ?", max_new_tokens=2)


def test_a_stream_is_of_one_answer_and_errors_come_out_of_it(pipe):
    with pytest.raises(InvalidInputError, match="one answer"):
        pipe.stream([picture(0), picture(1)], question="what ?")
    with pytest.raises(InvalidInputError, match="streamer="):
        pipe.stream(picture(0), question="what ?", streamer=None)
    with pytest.raises(InvalidInputError, match="k=-1"):
        list(pipe.stream(picture(0), question="what ?", k=-1))


def test_a_stream_of_a_remote_reader_tells_the_same_events():
    with StubServer() as stub:
        known = [{"id": one["id"], "text": one["text"]} for one in PASSAGES]
        parts = {"knowledge": KnowledgeBase.from_dicts(known), "encoder": HashEncoder()}
        pipe = RavlmImageToTextPipeline(RemoteReader(stub.address), **parts)
        first, *pieces, last = pipe.stream(question="red ?", k=2)
        assert len(first["evidence"]) == 2
        assert "".join(piece["text"] for piece in pieces) == last["answer"]["generated_text"] == "Question: red ?"


class Parts:
    def __init__(self, model, processor):
        self.model, self.processor = model, processor


@pytest.mark.parametrize("kind", ["marks", "words", "image_text"])
def test_answers_of_a_batch_are_told_apart_and_end_by_themselves(kind):
    parts = Parts(*reader_of_kind(kind))
    questions = ["what is the capital ?", "red ?", "who ?"]
    images = None if kind == "words" else [picture(n) for n in range(3)]
    asked = {"images": images, "questions": questions, "evidence": [READ, READ[:1], []], "with_posterior": False}
    whole = [a.text for (a,) in answer_questions(parts.model, parts.processor, None, **asked, max_new_tokens=12)]
    told: list[list[str]] = [[], [], []]
    found: list = [None] * 3
    limits = [12, 3, 12]
    writings = [
        Writing(
            told[n].append,
            decoder_for(parts),
            max_tokens=limits[n],
            tell_evidence=lambda read, unread, n=n: found.__setitem__(n, [one.id for one in read]),
        )
        for n in range(3)
    ]
    writings[2].leave()
    streamer = streamer_for(parts, writings)
    rows = answer_questions(parts.model, parts.processor, None, **asked, max_new_tokens=12, streamer=streamer)
    for writing, (answer,) in zip(writings[:2], rows[:2], strict=True):
        writing.finish(answer.text)
    assert "".join(told[0]) == whole[0]
    assert whole[1].startswith("".join(told[1]))
    assert [writing.num_tokens for writing in writings] == [12, 3, 0]
    assert found == [["a", "b"], ["a"], []]


def test_when_nobody_waits_writing_ends_with_an_error():
    writings = [Writing(print), Writing(print)]
    streamer = AnswerStreamer(writings)
    streamer.put(torch.ones(2, 3))
    for writing in writings:
        writing.leave()
    with pytest.raises(StreamLeftError):
        streamer.put(torch.ones(2))


def test_a_text_ends_before_a_stop_word_and_whole_letters_alone_are_told():
    told: list[str] = []
    texts = iter(["Re", "Reyk", "Reykj\ufffd", "Reykjav", "Reykjavik"])
    writing = Writing(told.append, lambda _: next(texts), stop=["jav"])
    for token in range(5):
        writing.add_token(token)
    writing.finish("Reykjavik")
    assert ("".join(told), writing.text, writing.stopped, writing.num_tokens) == ("Reyk", "Reyk", True, 4)
