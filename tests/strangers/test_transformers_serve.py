"""OpenAI's client asks about an image: our server answers with evidence, that of transformers closed-book."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import pipeline
from transformers.utils.import_utils import is_serve_available


if not is_serve_available():
    pytest.skip('needs: pip install "hf_ravlm[serve]"', allow_module_level=True)

FLAGS = Path(__file__).parents[2] / "examples" / "flags"
FLAG = FLAGS / "unseen" / "is__circleflags.png"
MODEL = str(FLAGS / "checkpoint")
QUESTION = "What is the capital of the country that uses this flag?"


def image_part(path: Path = FLAG) -> dict:
    text = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}


def messages(*parts: dict, question: str = QUESTION) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def wait_for(address, timeout: float = 120) -> str:
    """Calls `address` until it gives one."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := address():
            return found
        time.sleep(0.05)
    raise TimeoutError("the server did not start")


def client_of(address: str):
    import openai

    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def server():
    """In a thread of this process, with the shipped model and its knowledge base."""
    from hf_ravlm.integrations.transformers_serve import serve

    server = serve(MODEL, host="127.0.0.1", port=0, device="cpu", non_blocking=True)
    yield server
    server.kill_server()
    assert not server._thread.is_alive()


@pytest.fixture(scope="module")
def address(server):
    def address():
        if server.server.started:
            return "http://127.0.0.1:{1}".format(*server.server.servers[0].sockets[0].getsockname())

    return wait_for(address)


@pytest.fixture(scope="module")
def ask(address):
    client = client_of(address)

    def ask(conversation, **settings):
        create = client.chat.completions.create
        return create(model=MODEL, messages=conversation, **{"max_tokens": 30, **settings})

    return ask


@pytest.fixture(scope="module")
def post(address):
    """Sends a body as it is, and gives status and reply."""
    import httpx

    def post(body, path="/v1/chat/completions", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        reply = httpx.post(address + path, content=content, headers=headers, timeout=60)
        return reply.status_code, reply.json()

    return post


def text_of(completion) -> str:
    return completion.choices[0].message.content.strip()


def test_it_answers_with_the_knowledge_of_its_folder(ask):
    completion = ask(messages(image_part()))
    assert text_of(completion) == "Reykjavik"
    (best,) = completion.choices[0].message.evidence
    assert (best["id"], best["rank"]) == ("is/capital", 1)
    assert best["source"]
    assert best["licence"]


def test_a_request_may_ask_for_no_passages(ask):
    completion = ask(messages(image_part()), extra_body={"chat_template_kwargs": {"k": 0}})
    closed = text_of(completion)
    assert completion.choices[0].message.evidence == []
    pipe = pipeline("image-to-text", model=str(FLAGS / "checkpoint"), max_new_tokens=30)
    assert closed == pipe(str(FLAG), question=QUESTION, k=0)[0]["generated_text"] != "Reykjavik"


def test_of_a_conversation_the_last_question_and_image_count(ask):
    before = [
        {"role": "system", "content": "You know flags."},
        *messages(image_part(FLAGS / "unseen" / "bg__circleflags.png"), question="Whose flag is this?"),
        {"role": "assistant", "content": "That of Bulgaria."},
    ]
    assert text_of(ask(before + messages(image_part()))) == "Reykjavik"
    assert text_of(ask(before + messages(question=QUESTION))) == "Sofia"


def test_a_stream_adds_up_to_the_answer(ask):
    chunks = list(ask(messages(image_part()), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == "Reykjavik"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].delta.evidence[0]["id"] == "is/capital"
    *_, counted = ask(messages(image_part()), stream=True, stream_options={"include_usage": True})
    assert counted.choices == []
    assert counted.usage.completion_tokens > 0


ADDRESSES = [
    "http://127.0.0.1:9/flag.png",
    str(FLAG),
    "/no/such.png",
    f"file://{FLAG}",
    "//host/a.png",
    "DATA:text/x,",
    "",
]


@pytest.mark.parametrize("image", ADDRESSES)
def test_nobody_makes_it_read_or_fetch_an_image(ask, image):
    import openai

    part = {"type": "image_url", "image_url": {"url": image}}
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(messages(part))
    assert "send the image itself" in refusal.value.response.json()["detail"]


@pytest.mark.parametrize(
    ("conversation", "settings", "message"),
    [
        (messages(question=""), {}, "no words from the user"),
        (messages(image_part()), {"extra_body": {"chat_template_kwargs": {"k": -1}}}, "k=-1: expected 0"),
        (messages({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}), {}, "not an image"),
    ],
)
def test_what_cannot_be_asked_is_told_to_the_client(ask, conversation, settings, message):
    import openai

    with pytest.raises(openai.BadRequestError) as refusal:
        ask(conversation, **settings)
    assert message in refusal.value.response.json()["detail"]


@pytest.mark.slow
def test_the_plain_server_loads_it_with_trust_and_answers_closed_book(tmp_path):
    folder = shutil.copytree(FLAGS / "checkpoint", tmp_path / "flags", ignore=shutil.ignore_patterns("knowledge_base"))
    path = os.pathsep.join(folder for folder in sys.path if folder)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_HOME"] = str(tmp_path / "cache")
    command = ["-m", "transformers.cli.transformers", "serve", str(folder), "--trust-remote-code", "--device", "cpu"]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--host", "127.0.0.1", "--port", "0"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:

        def address():
            assert process.poll() is None, log.read_text()[-3000:]
            found = re.search(r"running on (http://\S+)", log.read_text())
            return found and found[1]

        client = client_of(wait_for(address))
        completion = client.chat.completions.create(model=str(folder), messages=messages(image_part()), max_tokens=30)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    pipe = pipeline("image-to-text", model=str(folder), max_new_tokens=30)
    assert text_of(completion) == pipe(str(FLAG), question=QUESTION, k=0)[0]["generated_text"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/load_model", {"model": "bert-base-uncased"}),
        ("/reset", {}),
        ("/v1/audio/transcriptions", {"model": "openai/whisper-tiny"}),
        ("/v1/completions", {"model": MODEL, "prompt": "x"}),
        ("/v1/responses", {"model": MODEL, "input": "x"}),
        ("/v1/systemone", {}),
        ("/docs", {}),
    ],
)
def test_no_route_loads_or_unloads_anything(post, path, body):
    status, reply = post(body, path)
    assert (status, reply["error"]["type"]) == (404, "invalid_request_error")


def test_it_lists_what_it_serves_and_answers_as_nothing_else(address, post, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nowhere"))
    client = client_of(address)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    for name in ("bert-base-uncased", "/etc", f"{MODEL}@main", 5, {"a": 1}):
        status, reply = post({"model": name, "messages": messages(question="Who?")})
        assert (status, reply["error"]["code"]) == (400, "model_not_found")


TEXT = {"role": "user", "content": "Who?"}
ODD = [
    ("messages", None, "expected a list of messages"),
    ("messages", [], "no words from the user"),
    ("messages", "Who?", "expected a list of messages"),
    ("messages", [5], "messages[0] came as int"),
    ("messages", [{"content": "Who?"}], "messages[0] has the role None"),
    ("messages", [{"role": "tool", "content": "Who?"}], "has the role 'tool'"),
    ("messages", [{"role": "user", "content": None}], "content came as NoneType"),
    ("messages", [{"role": "user"}], "content came as NoneType"),
    ("messages", [{"role": "user", "content": 5}], "content came as int"),
    ("messages", [{"role": "user", "content": {}}], "content came as dict"),
    ("messages", messages({"type": "text"}), "a text part has no text"),
    ("messages", messages({"type": "text", "text": 5}), "a text part has no text"),
    ("messages", messages("Who?"), "a part of the type None"),
    ("messages", messages({"type": "video", "url": "a"}), "a part of the type 'video' is not read here"),
    ("messages", messages({"type": "video_url", "video_url": {"url": "a"}}), "a part of the type 'video_url'"),
    ("messages", messages({"type": "input_audio", "input_audio": {}}), "a part of the type 'input_audio'"),
    ("messages", messages({"type": "image", "image": "x"}), "an image part came without its image"),
    ("messages", messages({"type": "image_url"}), "an image part came without its image"),
    ("messages", messages({"type": "image_url", "image_url": {"url": 5}}), "an image part came without its image"),
    ("messages", messages(question="x" * 1_000_000), "1,000,000 letters: at most 20,000"),
    ("messages", messages(question="\ud83d"), "half"),
    ("messages", [{"role": "system", "content": image_part()["image_url"]}, TEXT], "content came as dict"),
    ("max_tokens", 0, "max_tokens=0: expected a whole number from 1"),
    ("max_tokens", "7", "max_tokens='7': expected a whole number"),
    ("max_tokens", True, "max_tokens=True: expected a whole number"),
    ("max_completion_tokens", 1.5, "max_completion_tokens=1.5: expected"),
    ("temperature", "hot", "temperature='hot': expected 0 or a number from 0.001 to 2"),
    ("temperature", -1, "temperature=-1: expected 0 or a number"),
    ("temperature", 1e-300, "temperature=1e-300: expected 0 or"),
    ("top_p", 0, "top_p=0: expected a number from 0.001 to 1"),
    ("seed", "x", "seed='x': expected a whole number"),
    ("n", 2, "n=2 is not applied by this server: expected nothing or 1"),
    ("n", "1", "n='1' is not applied"),
    ("stream", "yes", "stream='yes': expected true or false"),
    ("stream_options", {"include_usage": True}, "stream_options came without stream"),
    ("logprobs", True, "logprobs=True is not applied"),
    ("top_logprobs", 3, "top_logprobs=3 is not applied"),
    ("logit_bias", {"5": 1}, "logit_bias={'5': 1} is not applied"),
    ("tools", [{"type": "function"}], "tools=[{'type': 'function'}] is not applied"),
    ("response_format", {"type": "json_object"}, "response_format={'type': 'json_object'} is not applied"),
    ("stop", 5, "stop=5: expected a text"),
    ("stop", [""], "stop=['']: expected a text"),
    ("stop", ["a"] * 17, "or up to 16 of them"),
    ("generation_config", '{"num_beams": 4}', "'generation_config' is no field"),
    ("num_beams", 4, "'num_beams' is no field"),
    ("chat_template_kwargs", 5, "chat_template_kwargs=5: expected an object"),
    ("chat_template_kwargs", {"chat_template": "{{ 1 }}"}, "chat_template_kwargs has ['chat_template']: expected k"),
    ("chat_template_kwargs", {"k": True}, "k=True: expected 0"),
]


@pytest.mark.parametrize(("field", "value", "message"), ODD)
def test_an_odd_request_is_refused_in_one_line(post, field, value, message):
    status, reply = post({"model": MODEL, "messages": [TEXT], field: value})
    error = reply["error"]
    assert (status, error["type"]) == (400, "invalid_request_error"), error
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 600
    assert error["param"] in (field, None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"[]", "came as list"),
        (b"\xff", "is no JSON"),
        (b'{"temperature": NaN}', "NaN is no number"),
        (b'{"a":' * 50_000, "nested too deep"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "is no JSON"),
    ],
)
def test_what_is_no_request_is_told(post, body, message):
    status, reply = post(body)
    assert status == 400
    assert message in reply["error"]["message"]


def test_labels_and_what_is_not_wanted_are_taken(post):
    unused = {
        "n": 1,
        "logprobs": False,
        "frequency_penalty": 0.0,
        "tools": [],
        "user": "me",
        "stop": None,
        "store": False,
    }
    status, reply = post({"messages": messages(image_part()), **unused})
    assert (status, reply["choices"][0]["message"]["content"]) == (200, "Reykjavik")


@pytest.mark.parametrize("stop", ["jav", ["xyz", "jav"]])
@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_ends_before_a_stop_word(ask, stop, stream):
    reply = ask(messages(image_part()), stop=stop, stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in reply)
    else:
        text = text_of(reply)
        assert reply.choices[0].finish_reason == "stop"
        assert reply.choices[0].message.evidence
    assert text == "Reyk"


def test_the_length_is_what_was_asked_for(ask):
    reply = ask(messages(image_part()), max_tokens=1)
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 1)


def test_sampling_is_asked_for_and_repeated_by_its_seed(ask):
    def told(**settings):
        return text_of(ask(messages(image_part()), max_tokens=8, **settings))

    hot = {told(temperature=2, seed=seed) for seed in range(6)}
    assert len(hot) > 1
    assert told(temperature=2, seed=1) == told(temperature=2, seed=1)
    assert told(temperature=0) == "Reykjavik"


def test_large_bodies_are_refused_before_they_are_read(address, post):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 300000000\r\n\r\n".encode())
        assert b" 413 " in connection.recv(100)
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(400):
                connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        except OSError:
            return  # it has hung up
        assert b" 413 " in connection.recv(100)


def test_connections_that_ask_nothing_are_ended(address, monkeypatch):
    from hf_ravlm.integrations import transformers_serve

    monkeypatch.setattr(transformers_serve, "HEAD_SECONDS", 0.2)
    host, port = address.removeprefix("http://").split(":")
    for begun in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc", b"GET /health HTTP/1.1\r\n"):
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(begun)
            assert connection.recv(100) == b""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example"])
def test_it_answers_under_its_own_names_only(post, host):
    asked = {"messages": [TEXT]}
    assert post(asked, Host=host)[0] == 403
    assert post(asked, Origin=f"http://{host}")[0] == 403
    assert post(asked, Host="localhost:1", Origin="http://127.0.0.1:5")[0] == 200
    assert post(asked, **{"Content-Type": "text/plain"})[0] == 415


def test_many_clients_are_all_answered(ask):
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(text_of(ask(messages(image_part()), max_tokens=8))))
        for _ in range(32)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["Reykjavik"] * 32


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_answer(server, address, ask, stream, monkeypatch):
    """The reader is made to write on; after the client has left, the next one is answered."""
    pipe, begun = server.reader.pipe, threading.Event()
    generate = pipe.model.generate

    def endless(*args, streamer=None, **kwargs):
        streamer.put(kwargs["input_ids"][0])
        while True:
            begun.set()
            streamer.put(kwargs["input_ids"][0, :1])
            time.sleep(0.01)

    monkeypatch.setattr(pipe.model, "generate", endless)
    body = json.dumps({"messages": messages(image_part()), "stream": stream}).encode()
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        assert begun.wait(60)
    monkeypatch.setattr(pipe.model, "generate", generate)
    assert text_of(ask(messages(image_part()))) == "Reykjavik"
    assert server.reader.wait_until_idle(60)


def test_a_stream_that_breaks_off_ends_with_the_reason(server, address, ask, monkeypatch):
    import httpx

    pipe = server.reader.pipe
    generate = pipe.model.generate

    def broken(*args, streamer=None, **kwargs):
        streamer.put(kwargs["input_ids"][0])
        for token in pipe.processor.tokenizer("Reykjavik is", add_special_tokens=False)["input_ids"]:
            streamer.put(torch.tensor([token]))
        raise RuntimeError("out of memory at /secret/place")

    monkeypatch.setattr(pipe, "policy", None)  # which would look at the whole answer before a word is told
    monkeypatch.setattr(pipe.model, "generate", broken)
    body = {"messages": messages(image_part()), "stream": True}
    reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert "Reykjavik" in "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert "choices" not in events[-1]
    assert events[-1]["error"]["message"] == "the answer could not be written"
    assert "secret" not in reply.text
    monkeypatch.setattr(pipe.model, "generate", generate)
    assert text_of(ask(messages(image_part()))) == "Reykjavik"


def test_addresses_are_fetched_where_the_operator_allows_it_and_private_ones_never(server, monkeypatch):
    import httpx

    from hf_ravlm.integrations import transformers_serve

    app = transformers_serve.chat_app(server.reader, fetch_images=True)
    fetched = []

    async def post(url):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            part = {"type": "image_url", "image_url": {"url": url}}
            return await client.post("/v1/chat/completions", json={"messages": messages(part), "max_tokens": 1})

    private = asyncio.run(post("http://127.0.0.1:9/a.png"))
    assert private.status_code == 400
    assert "private network" in private.json()["error"]["message"]
    monkeypatch.setattr(transformers_serve, "fetch_image", lambda url, *_, **__: fetched.append(url) or FLAG)
    assert asyncio.run(post("https://example.org/a.png")).status_code == 200
    assert asyncio.run(post("file:///etc/hostname")).status_code == 400
    assert fetched == ["https://example.org/a.png"]
