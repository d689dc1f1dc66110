"""Requests that wait are answered together, each as if it were alone."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from hf_ravlm.errors import UnsafeInputError
from hf_ravlm.integrations.chat_requests import ChatRequest
from hf_ravlm.integrations.served_reader import Reader
from hf_ravlm.pipelines import RavlmImageToTextPipeline
from hf_ravlm.pipelines.streaming import StreamLeftError
from tiny import picture
from tiny_folder import tiny_parts


@pytest.fixture(scope="module")
def pipe():
    model, processor, retriever = tiny_parts()
    model.generation_config.eos_token_id = model.generation_config.eos_token_id or 2
    return RavlmImageToTextPipeline(model, processor, retriever, device="cpu")


@pytest.fixture
def held(pipe, monkeypatch):
    """A reader whose first call waits until it is let go; and the sizes of the batches that it was asked."""
    reader, sizes, begun, go = Reader("tiny", pipe), [], threading.Event(), threading.Event()
    generate = pipe.model.generate

    def counted(*args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        begun.set()
        assert go.wait(30)
        return generate(*args, **kwargs)

    monkeypatch.setattr(pipe.model, "generate", counted)
    yield reader, sizes, begun, go
    go.set()
    reader.close()


class Client:
    """A request and what it was told."""

    def __init__(self, reader, question="what ?", image=0, **asked):
        self.told, self.found = [], None
        request = ChatRequest(question, ["an image"], **{"max_new_tokens": 8, **asked})
        self.writing = reader.writing_for(request, self.told.append, self.take)
        images = [picture(image) if isinstance(image, int) else image]
        self.future = reader.submit(request, images, self.writing)

    def take(self, read, unread):
        self.found = [passage.id for passage in read]


def test_requests_that_wait_are_answered_together_and_each_as_if_alone(pipe, held):
    reader, sizes, begun, go = held
    first = Client(reader, "first ?")
    assert begun.wait(30)
    asked = ["what is the capital ?", "red ?", "who is it ?", "white ?"]
    clients = [Client(reader, question, n, max_new_tokens=4 + n) for n, question in enumerate(asked)]
    gone, broken = Client(reader, "gone ?"), Client(reader, "broken ?", b"no image")
    stopped, other = Client(reader, "stop ?", stop=("e", "a", "i", "o")), Client(reader, "other ?", k=1)
    sampled = Client(reader, "by chance ?", temperature=1.0, seed=3)
    gone.writing.leave()
    go.set()
    wait([client.future for client in (first, *clients, gone, broken, stopped, other, sampled)], timeout=60)
    assert sizes == [1, len(clients) + 1, 1, 1]
    for n, (question, client) in enumerate(zip(asked, clients, strict=True)):
        (alone,) = pipe(picture(n), question=question, max_new_tokens=4 + n, with_posterior=False)
        answer = client.future.result()
        assert "".join(client.told) == client.writing.text == answer.text == alone["generated_text"]
        assert client.found == [one["id"] for one in alone["evidence"]] == [one.id for one in answer.evidence]
        assert 0 < client.writing.num_tokens <= 4 + n
    assert isinstance(gone.future.exception(), StreamLeftError)
    assert isinstance(broken.future.exception(), UnsafeInputError)
    assert not set("eaio") & set(stopped.writing.text)
    assert len(other.future.result().evidence) == 1
    assert reader.wait_until_idle(60)


def test_a_request_that_cannot_be_answered_fails_alone(pipe, held):
    reader, sizes, begun, go = held
    first = Client(reader)
    assert begun.wait(30)
    good, long = Client(reader, "red ?"), Client(reader, "red " * 2_000)
    go.set()
    wait([client.future for client in (first, good, long)], timeout=60)
    assert "".join(good.told) == good.future.result().text
    assert "max_length" in str(long.future.exception())


def test_closing_ends_what_is_written_and_what_waits(held):
    reader, _, begun, go = held
    written = Client(reader)
    assert begun.wait(30)
    waiting = Client(reader)
    reader.close()
    go.set()
    assert waiting.future.cancelled()
    assert isinstance(written.future.exception(timeout=30), StreamLeftError)
    assert Client(reader).future.cancelled()
