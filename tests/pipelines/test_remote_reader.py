"""A reader behind a server: the prompts it gets, what becomes of its replies, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import math
import socket

import pytest
from PIL import Image
from transformers import TextIteratorStreamer, pipeline

from hash_encoder import HashEncoder
from hf_ravlm import RemoteReader
from hf_ravlm.errors import InvalidInputError, RemoteServerError
from hf_ravlm.evaluation.model_evaluation import evaluate_model
from hf_ravlm.model.prompts.settings import PromptSettings
from hf_ravlm.pipelines.answering import answer_questions
from hf_ravlm.pipelines.opening import open_pipeline
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.pipelines.remote.messages import RemotePrompts, write_prompt
from hf_ravlm.retrieval import Evidence
from stub_server import StubServer, answer, completion, piece, send, stream, words_of
from tiny import picture


FOUND = [
    Evidence(id="no", text="The capital of Norway is Oslo.", score=0.9, rank=1, title="Norway"),
    Evidence(id="td", text="Chad lies in Africa.", score=0.5, rank=2),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("hf_ravlm.servers._FIRST_WAIT", 0.01)


@pytest.fixture
def stub():
    with StubServer() as stub:
        yield stub


@pytest.fixture
def knowledge(tmp_path):
    lines = [{"id": f"p{n}", "text": f"number {n} is {word}"} for n, word in enumerate(["one", "two", "three"])]
    place = tmp_path / "known.jsonl"
    place.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return place


def ask(stub, question="Which capital?", images=None, evidence=FOUND, **options):
    reader = RemoteReader(stub.address, "stub", **options.pop("reader", {}))
    asked = {"images": None if images is None else [images], "questions": [question], "evidence": [evidence]}
    return answer_questions(reader, RemotePrompts(), None, **asked, **{"max_new_tokens": 8, **options})[0]


def test_it_gets_words_and_images_and_gives_an_answer_with_its_evidence(stub):
    image = picture(1)
    (found,) = ask(stub, images=image, cite=True, system_message="Be brief.")
    (body,) = stub.asked
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("stub", 8, 0)
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    shown, words = user["content"]
    sent = Image.open(io.BytesIO(base64.b64decode(shown["image_url"]["url"].partition(",")[2])))
    assert sent.tobytes() == image.tobytes()
    # The best passage stands last, and is number 1.
    assert words["text"].startswith("[2] Chad lies in Africa.\n\n[1] Norway: The capital of Norway is Oslo.\n\n")
    assert words["text"].endswith("such as [1].\n\nQuestion: Which capital?")
    assert found.text == "Question: Which capital?"
    assert [passage.id for passage in found.evidence] == ["no", "td"]
    assert (found.posterior, found.citations, found.usage) == ([], [], {"total_tokens": 12})


def test_what_has_no_room_is_not_read(stub):
    (found,) = ask(stub, prompt={"max_length": 18})
    assert ([one.id for one in found.evidence], [one.id for one in found.unread]) == (["no"], ["td"])
    assert "Chad" not in words_of(stub.asked[0])
    with pytest.raises(InvalidInputError, match="max_length=2"):
        ask(stub, prompt={"max_length": 2})


@pytest.mark.parametrize(
    "words",
    ["<|im_end|>", "<|im_start|>system", "</s>", "<s>", "[INST]", "[/INST]", "<start_of_turn>", "<image>", "<think>"]
    + ["<｜User｜>", "<<SYS>>", "<|eot_id|>", "<unused12>", "<|vision_start|>", "</tool_call>"],
)
def test_a_passage_forges_no_prompt(words):
    prompt = write_prompt(PromptSettings(), f"{words} Who?", [], [])
    assert words not in prompt.messages[0]["content"]
    harmless = "a < b, x <y> [1] [a] <b>bold</b> and <3"
    assert write_prompt(PromptSettings(), harmless, [], []).messages[0]["content"] == harmless


def test_passages_show_their_images_where_that_is_said(stub):
    with_image = [{"text": "red", "image": picture(2)}, FOUND[1]]
    ask(stub, images=picture(1), evidence=with_image, passage_images=True, passage_order="best_first")
    kinds = [part["type"] for part in stub.asked[0]["messages"][0]["content"]]
    assert kinds == ["image_url", "text", "image_url", "text"]
    assert words_of(stub.asked[0]).startswith("<image>The first picture is the one that is asked about.")


def test_a_reader_of_words_is_sent_no_image(stub):
    ask(stub, images=picture(1), reader={"sees_images": False})
    assert isinstance(stub.asked[0]["messages"][0]["content"], str)


def test_arguments_of_generate_become_fields_of_the_request(stub):
    said = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 3, "stop_strings": "x", "logprobs": True}
    found = ask(stub, num_return_sequences=2, extra_body={"top_k": 5}, enable_thinking=False, **said)
    assert len(found) == 2
    assert found[0].logprobs == found[0].to_record()["logprobs"] == [-0.5, -0.5]
    sent = {name: value for name, value in stub.asked[0].items() if name not in ("messages", "model", "max_tokens")}
    assert sent == {
        **{"temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["x"], "logprobs": True, "n": 2, "top_k": 5},
        "chat_template_kwargs": {"enable_thinking": False},
    }


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"num_beams": 4}, "num_beams= is not applied by a reader behind a server"),
        ({"top_k": 5}, "extra_body"),
        ({"num_return_sequences": 2}, "do_sample"),
        ({"with_posterior": True}, "with_posterior= needs the weights"),
        ({"with_leave_one_out": True}, "needs the weights"),
        ({"policy": AnswerPolicy()}, "policy= needs the weights"),
        ({"chat_template": "{{ x }}"}, "server writes prompts by its own template"),
        ({"numbered": True}, "numbered= is not applied"),
        ({"question": "  \u200b"}, "no words"),
    ],
)
def test_what_cannot_be_applied_is_refused_before_anything_is_asked(stub, option, said):
    with pytest.raises(InvalidInputError, match=said):
        ask(stub, **option)
    assert stub.asked == []


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("message", "answer", "thinking"),
    [
        ({"content": "<think>hm</think>Oslo"}, "Oslo", "hm"),
        ({"content": "Oslo", "reasoning_content": "hm"}, "Oslo", "hm"),
        ({"content": "Oslo", "reasoning": "hm"}, "Oslo", "hm"),
        ({"content": "hm</think>\n Oslo "}, "Oslo", "hm"),
        ({"content": [{"type": "text", "text": "Oslo"}]}, "Oslo", None),
        ({"content": None}, "", None),
    ],
)
def test_thoughts_are_told_apart(stub, message, answer, thinking, streams):
    def behave(handler, body):
        if body.get("stream"):
            stream(handler, piece("", None, **message), piece("", "stop"))
        else:
            send(handler, 200, completion("", **message))

    stub.behave = behave
    (found,) = ask(stub, **({"streamer": TextIteratorStreamer(None)} if streams else {}))
    assert (found.text, found.thinking) == (answer, thinking)


def test_a_stream_tells_its_pieces_and_ends(stub):
    streamer = TextIteratorStreamer(None, timeout=5)
    (found,) = ask(stub, streamer=streamer)
    pieces = list(streamer)
    assert "".join(pieces) == found.text == "Question: Which capital?"
    assert len(pieces) > 10


def test_a_server_that_does_not_count_streams_is_asked_without():
    def behave(handler, body):
        if "stream_options" in body:
            send(handler, 400, {"error": {"message": "unknown field: stream_options"}})
        else:
            answer(handler, body)

    with StubServer(behave) as stub:
        assert ask(stub, streamer=TextIteratorStreamer(None))[0].text == "Question: Which capital?"


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (lambda handler, _: stream(handler, piece("Os"), done=False), "ended before the answer did, after 2 letters"),
        (lambda handler, _: stream(handler, done=True), "ended before the answer did"),
        (lambda handler, _: stream(handler, piece("Os"), {"error": "lost"}), "lost"),
        (lambda handler, _: stream(handler, piece("Os"), b"data: {{{\n\n"), "no JSON"),
    ],
)
def test_a_stream_that_is_cut_is_no_answer(stub, behave, said):
    stub.behave = behave
    with pytest.raises(RemoteServerError, match=said):
        ask(stub, streamer=TextIteratorStreamer(None), reader={"retries": 0})


@pytest.mark.parametrize(
    "reply",
    [{}, {"choices": []}, {"choices": [1]}, {"choices": [{}]}, {"choices": "yes"}, completion("a", "b")],
)
def test_a_reply_without_an_answer_is_told_as_such(stub, reply):
    stub.behave = lambda handler, _: send(handler, 200, reply)
    with pytest.raises(RemoteServerError, match="came"):
        ask(stub)


def test_a_server_that_refuses_images_is_told_with_what_to_do(stub):
    stub.behave = lambda handler, _: send(handler, 400, {"error": {"message": "no multimodal input"}})
    with pytest.raises(InvalidInputError, match=r"no multimodal input.*sees_images=False"):
        ask(stub, images=picture(1))
    with pytest.raises(InvalidInputError) as told:
        ask(stub)
    assert "sees_images" not in str(told.value)


def test_a_model_that_is_not_there_is_told_with_the_choices(stub):
    stub.behave = lambda handler, _: send(handler, 404, {"error": {"message": "no such model"}})
    with pytest.raises(InvalidInputError, match=r"reader_name='stub': it has stub"):
        ask(stub)


def test_questions_of_a_batch_are_asked_together_and_keep_their_order(stub):
    reader = RemoteReader(stub.address, "stub")
    questions = [f"question {n}?" for n in range(20)]
    rows = answer_questions(reader, RemotePrompts(), None, None, questions, evidence=[[]] * 20)
    assert [answer.text for (answer,) in rows] == questions


@pytest.mark.parametrize("task", ["image-to-text", "visual-question-answering"])
def test_a_pipeline_takes_an_address_for_its_model(stub, knowledge, task):
    pipe = pipeline(task, model=stub.address, reader_name="stub", encoder=HashEncoder(), knowledge=knowledge)
    (record,) = pipe(picture(0), question="number two ?", k=2)
    assert record["answer" if task.startswith("visual") else "generated_text"] == "Question: number two ?"
    assert len(record["evidence"]) == 2
    rows = pipe([{"image": picture(n), "question": f"{n} ?"} for n in range(3)], k=1, batch_size=3)
    assert len(rows) == 3


def test_chat_pipelines_take_a_remote_reader(stub, knowledge):
    parts = {"encoder": HashEncoder(), "knowledge": knowledge}
    pipe = pipeline("image-text-to-text", model=RemoteReader(stub.address), **parts)
    (record,) = pipe(text="number two ?", return_full_text=False)
    assert record["generated_text"] == "Question: number two ?"
    assert len(record["evidence"]) == 3


def test_the_name_may_be_left_out_where_there_is_one_model(stub, knowledge):
    parts = {"encoder": HashEncoder(), "knowledge": knowledge}
    assert open_pipeline(stub.address, **parts).model.name == "stub"
    stub.models = ["b", "a"]
    with pytest.raises(InvalidInputError, match="reader_name=; it has a, b"):
        open_pipeline(stub.address, **parts)
    stub.models = []
    with pytest.raises(InvalidInputError, match="reader_name=; it lists no model"):
        open_pipeline(stub.address, **parts)


def test_a_server_that_is_away_is_told_of_before_anything_is_encoded(knowledge):
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]

    class Untouched(HashEncoder):
        def encode_passages(self, *_, **__):
            raise AssertionError

    with pytest.raises(RemoteServerError, match="cannot be reached"):
        open_pipeline(f"http://127.0.0.1:{port}", knowledge, Untouched())


def test_opening_refuses_what_does_not_fit(stub, knowledge):
    with pytest.raises(InvalidInputError, match="brings no knowledge base"):
        open_pipeline(stub.address)
    with pytest.raises(InvalidInputError, match="reader_name"):
        pipeline("image-to-text", model=RemoteReader(stub.address, "a"), reader_name="b", knowledge=knowledge)
    with pytest.raises(InvalidInputError, match="parallel"):
        RemoteReader(stub.address, parallel=0)
    pipe = open_pipeline(stub.address, knowledge, HashEncoder())
    for save in (pipe.save_pretrained, pipe.push_to_hub):
        with pytest.raises(InvalidInputError, match="behind a server and cannot be saved"):
            save("anywhere")


@pytest.mark.parametrize("gives", [True, False])
def test_an_evaluation_asks_it_and_takes_the_log_probabilities_it_gives(stub, knowledge, tmp_path, gives):
    def behave(handler, body):
        if body.get("logprobs") and not gives:
            send(handler, 400, {"error": {"message": "logprobs is not supported"}})
        else:
            answer(handler, body)

    stub.behave = behave
    questions = [{"id": str(n), "question": f"{n} ?", "answers": [f"{n} ?"]} for n in range(3)]
    given = {"knowledge": knowledge, "encoder": HashEncoder(), "k": 1}
    found = evaluate_model(stub.address, questions, tmp_path / "report", **given).report
    closed = found.arms["closed_book"]
    assert closed.metrics["exact_match"].mean == 1.0
    assert closed.cost.tokens == 12
    if gives:
        assert closed.calibration.mean_confidence == pytest.approx(math.exp(-0.5))
    else:
        assert closed.calibration is None
    times = len(stub.asked)
    evaluate_model(stub.address, questions, tmp_path / "report", **given)
    assert len(stub.asked) <= times + 1  # nothing is asked twice, but whether it gives log-probabilities
