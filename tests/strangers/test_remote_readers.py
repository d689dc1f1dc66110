"""Servers of other people, and our own, as readers: their answers are those of the same model on this machine."""

from __future__ import annotations

import socket
import time

import pytest
from transformers import TextIteratorStreamer
from transformers.utils.import_utils import is_serve_available

from hash_encoder import HashEncoder
from hf_ravlm import RavlmRetriever, RemoteReader, from_backbones
from hf_ravlm.pipelines.answering import answer_questions
from hf_ravlm.pipelines.remote.messages import RemotePrompts, image_data
from hf_ravlm.retrieval import Evidence, KnowledgeBase
from stub_server import StubServer
from tiny import picture
from tiny_backbones import multimodal_model


if not is_serve_available():
    pytest.skip('needs: pip install "hf_ravlm[serve]"', allow_module_level=True)

READ = [
    Evidence(id="a", text="the capital of Norway is Oslo", score=0.9, rank=1, title="Norway"),
    Evidence(id="b", text="red white", score=0.5, rank=2),
]
ASKED = {"images": [picture(1)], "questions": ["what is the capital ?"], "evidence": [READ], "max_new_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    for part in multimodal_model("llava"):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def other(folder):
    """The server of transformers, which knows nothing of us, as a reader."""
    from transformers.cli.serve import Serve

    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    server = Serve(host="127.0.0.1", port=port, device="cpu", non_blocking=True)
    until = time.monotonic() + 60
    while not server.server.started and time.monotonic() < until:
        time.sleep(0.05)
    yield RemoteReader(f"http://127.0.0.1:{port}/v1", folder)
    server.kill_server()


def text_of(reader, prompts, **options) -> str:
    ((answer,),) = answer_questions(reader, prompts, None, **{**ASKED, **options}, with_posterior=None)
    return answer.text


@pytest.mark.filterwarnings("ignore")
def test_the_answer_is_that_of_the_same_model_on_this_machine(other):
    generator, processor = multimodal_model("llava")
    here = from_backbones(generator=generator, generator_processor=processor)
    for options in (
        {},
        {"passage_order": "best_first", "number_passages": True},
        {"images": None},
        {"evidence": [[]]},
    ):
        ((answer,),) = answer_questions(*here, None, **{**ASKED, **options}, with_posterior=False)
        assert text_of(other, RemotePrompts(), **options) == answer.text


@pytest.mark.filterwarnings("ignore")
def test_its_stream_adds_up_and_calling_it_by_hand_gives_the_same(other):
    import httpx

    streamer = TextIteratorStreamer(None, timeout=30)
    whole = text_of(other, RemotePrompts(), streamer=streamer)
    assert "".join(streamer) == whole
    words = "Passage: red white\n\nPassage: Norway: the capital of Norway is Oslo\n\nQuestion: what is the capital ?"
    parts = [{"type": "image_url", "image_url": {"url": image_data(picture(1))}}, {"type": "text", "text": words}]
    body = {"model": other.name, "messages": [{"role": "user", "content": parts}], "max_tokens": 12, "temperature": 0}
    reply = httpx.post(f"{other.server.address}/chat/completions", json=body, timeout=60).json()
    assert reply["choices"][0]["message"]["content"].strip() == whole


def served(server) -> str:
    until = time.monotonic() + 60
    while not server.server.started and time.monotonic() < until:
        time.sleep(0.02)
    return "http://127.0.0.1:{1}/v1".format(*server.server.servers[0].sockets[0].getsockname())


def test_our_server_reads_through_another_one():
    import openai

    from hf_ravlm.integrations.transformers_serve import serve

    known = [{"id": f"p{n}", "text": f"number {n}", "source": "s", "licence": "CC0-1.0"} for n in range(3)]
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(known), HashEncoder())
    with StubServer() as stub:
        server = serve(stub.address, knowledge=retriever, host="127.0.0.1", port=0, non_blocking=True)
        try:
            client = openai.OpenAI(base_url=served(server), api_key="none", max_retries=0)
            messages = [{"role": "user", "content": "Question: number 2 ?"}]
            create = client.chat.completions.create
            reply = create(model="stub", messages=messages, stop="er", extra_body={"chat_template_kwargs": {"k": 2}})
            assert reply.choices[0].message.content == "Question: Question: numb"
            assert len(reply.choices[0].message.evidence) == 2
            assert reply.usage.total_tokens == 12
            first, found, *pieces, last = create(model="stub", messages=messages, stream=True)
            assert first.choices[0].delta.role == "assistant"
            assert [one["id"] for one in found.choices[0].delta.evidence] == [
                one["id"] for one in last.choices[0].delta.evidence
            ]
            assert "".join(piece.choices[0].delta.content for piece in pieces) == "Question: Question: number 2 ?"
            assert {body["model"] for body in stub.asked} == {"stub"}
            # The address is the operator's: no client names another.
            with pytest.raises(openai.BadRequestError):
                create(model="http://127.0.0.1:9/v1", messages=messages)
        finally:
            server.kill_server()
